"""A judge's adapter around a model of its architecture: its real code, and none of its weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import transformers

from nopair.config import JudgeConfig
from nopair.errors import ModelError
from nopair.judges.internvl import InternVL
from nopair.judges.llava_onevision import LlavaOnevision
from nopair.judges.preprocess import Preprocess
from nopair.judges.qwen_vl import QwenPreparation, QwenVL
from nopair.judges.smolvlm import SmolVLM
from nopair.judges.vision_language import Family, VisionLanguageJudge
from nopair.planning.architecture import Architecture
from nopair.planning.packed import Quantise, pack
from nopair.planning.shapes import META
from nopair.planning.words import IMAGE, word_tokenizer
from nopair.tokenizer import read_chat_tokenizer


@dataclass(frozen=True)
class _Kind:
    """How a family is put together. `plain` begins the names of the parts that are never quantised."""

    model: Any
    processor: Any
    family: Callable[[Any, Any], Family]
    plain: tuple[str, ...]


def _llava_onevision(model: Any, processor: Any) -> Family:
    return LlavaOnevision(model, Preprocess.of(processor, model.config.vision_config.image_size))


def _qwen(model: Any, processor: Any) -> Family:
    return QwenVL(model, QwenPreparation.of(processor, model.config.vision_config))


_QWEN_PLAIN: Final = ("model.visual",)
_SMOL_PLAIN: Final = ("model.vision_model", "model.connector")
_KINDS: Final = {
    "idefics3": _Kind(
        transformers.Idefics3ForConditionalGeneration, transformers.Idefics3ImageProcessorPil, SmolVLM.of, _SMOL_PLAIN
    ),
    "internvl": _Kind(
        transformers.InternVLForConditionalGeneration,
        transformers.GotOcr2ImageProcessorPil,
        InternVL.of,
        ("model.vision_tower", "model.multi_modal_projector"),
    ),
    "llava_onevision": _Kind(
        transformers.LlavaOnevisionForConditionalGeneration,
        transformers.LlavaOnevisionImageProcessorPil,
        _llava_onevision,
        ("model.vision_tower", "model.multi_modal_projector"),
    ),
    "qwen2_5_vl": _Kind(
        transformers.Qwen2_5_VLForConditionalGeneration, transformers.Qwen2VLImageProcessorPil, _qwen, _QWEN_PLAIN
    ),
    "qwen3_vl": _Kind(
        transformers.Qwen3VLForConditionalGeneration, transformers.Qwen2VLImageProcessorPil, _qwen, _QWEN_PLAIN
    ),
    "smolvlm": _Kind(
        transformers.SmolVLMForConditionalGeneration, transformers.SmolVLMImageProcessorPil, SmolVLM.of, _SMOL_PLAIN
    ),
}


def shape_judge(judge: Architecture, config: JudgeConfig) -> VisionLanguageJudge:
    """What `nopair.judges.load.load_judge` makes of the folder, with a frozen model on the meta device.

    The folder's own tokenizer is used if the folder is here.

    Raises:
        ModelError: a config is missing or unreadable, or does not fit its model, or the family is unknown.
    """
    return random_judge(judge, config, META, pack)


def random_judge(
    judge: Architecture, config: JudgeConfig, device: torch.device, quantise: Quantise
) -> VisionLanguageJudge:
    """The same on any device, with weights as the library draws them; where `config` has bits, quantised by `quantise`.

    Raises:
        ModelError: as `shape_judge`.
    """
    settings = judge.config("config.json")
    kind = _KINDS.get(str(settings.get("model_type")))
    if kind is None:
        found = settings.get("model_type")
        raise ModelError(f"{judge.name}: is of the family {found!r}; nopair knows {', '.join(sorted(_KINDS))}")
    try:
        with device:
            model = kind.model(kind.model.config_class.from_dict(settings)).to(getattr(torch, config.dtype))
        processor = kind.processor.from_dict(_image_processor(judge))
    except (TypeError, ValueError, KeyError) as error:
        line = next(iter(str(error).strip().splitlines()), "")[:160]
        raise ModelError(f"{judge.name}: a config does not fit its model ({line}); copy it again") from None
    model.requires_grad_(False).eval()
    bits = config.bits
    if bits is not None:
        quantise(model, bits, lambda name: name != "lm_head" and not name.startswith(kind.plain))
    made = _with_tokenizer(judge, kind.family(model, processor))
    if config.checkpointing:
        made.checkpoint()
    return made


def _image_processor(judge: Architecture) -> dict[str, Any]:
    """Its settings: a file of their own or, where the library looks first, a part of what transformers 5 saves."""
    if judge.folder is not None and (judge.folder / "processor_config.json").is_file():
        part = judge.config("processor_config.json").get("image_processor")
        if isinstance(part, dict):
            return part
    return judge.config("preprocessor_config.json")


def _with_tokenizer(judge: Architecture, family: Family) -> VisionLanguageJudge:
    if judge.folder is not None and (judge.folder / "tokenizer_config.json").is_file():
        return VisionLanguageJudge(family, read_chat_tokenizer(judge.folder))
    tokenizer = word_tokenizer((*family.marks.before, *family.marks.after))
    config: Any = family.model.config
    config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    return VisionLanguageJudge(family, tokenizer)
