"""A base's adapter around models of its architecture: its real code, and none of its weights."""

from typing import Any

import diffusers
import torch
import transformers
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import PreTrainedTokenizerBase

from nopair.backbones.base import StoredBackbone
from nopair.backbones.folder import NEVER_QUANTISED
from nopair.backbones.load import FAMILIES
from nopair.errors import ModelError
from nopair.planning.architecture import Architecture
from nopair.planning.packed import Quantise, pack
from nopair.planning.shapes import META
from nopair.planning.words import word_tokenizer
from nopair.precision import Bits
from nopair.tokenizer import read_tokenizer

CLIP_TOKENS = 77


def shape_backbone(base: Architecture, dtype: torch.dtype, bits: Bits | None = None) -> StoredBackbone:
    """What `nopair.backbones.load.load_backbone` makes of the folder, with frozen modules on the meta device.

    The folder's own tokenizers are used if the folder is here.

    Raises:
        ModelError: a config is missing or unreadable, or does not fit its model, or the family is unknown.
    """
    return random_backbone(base, dtype, bits, META, pack)


def random_backbone(
    base: Architecture, dtype: torch.dtype, bits: Bits | None, device: torch.device, quantise: Quantise
) -> StoredBackbone:
    """The same on any device, with weights as the libraries draw them; with `bits`, quantised by `quantise`.

    Raises:
        ModelError: as `shape_backbone`.
    """
    family = base.config("model_index.json").get("_class_name")
    try:
        with device:
            backbone = _made(family, base, dtype)
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"{base.name}: a config does not fit its model ({_line(error)}); copy it again") from None
    if bits is not None:
        for module in (backbone.transformer, *text_encoders(backbone)):
            kept = {*NEVER_QUANTISED, *(getattr(module, "_keep_in_fp32_modules", None) or ())}  # T5's `wo`, say
            quantise(module, bits, lambda name, kept=kept: kept.isdisjoint(name.split(".")))
    return backbone


def text_encoders(backbone: StoredBackbone) -> list[nn.Module]:
    """What `drop_text_encoder` would drop."""
    found = [value for name, value in vars(backbone).items() if name.startswith("text_encoder")]
    return [value for value in found if isinstance(value, nn.Module)]


def _made(family: Any, base: Architecture, dtype: torch.dtype) -> StoredBackbone:
    match family:
        case "ZImagePipeline":
            return _zimage(base, dtype)
        case "Flux2KleinPipeline":
            return _flux2(base, dtype)
        case "StableDiffusion3Pipeline":
            return _sd3(base, dtype)
        case "QwenImagePipeline":
            return _qwen_image(base, dtype)
        case _:
            raise ModelError(f"{base.name}: holds a {family}; nopair knows {', '.join(FAMILIES)}")


def _zimage(base: Architecture, dtype: torch.dtype) -> StoredBackbone:
    from nopair.backbones.zimage import ZImageBackbone

    return ZImageBackbone(
        vae=_diffusers(base, "vae", dtype),
        text_encoder=_transformers(base, "text_encoder", transformers.Qwen3Model, dtype),
        tokenizer=_tokenizer(base),
        transformer=_diffusers(base, "transformer", dtype),
        shift=float(_scheduler(base).config["shift"]),
    )


def _flux2(base: Architecture, dtype: torch.dtype) -> StoredBackbone:
    from nopair.backbones.flux2 import Flux2KleinBackbone

    return Flux2KleinBackbone(
        vae=_diffusers(base, "vae", dtype),
        text_encoder=_transformers(base, "text_encoder", transformers.Qwen3ForCausalLM, dtype),
        tokenizer=_tokenizer(base),
        transformer=_diffusers(base, "transformer", dtype),
        scheduler=_scheduler(base),
    )


def _sd3(base: Architecture, dtype: torch.dtype) -> StoredBackbone:
    from nopair.backbones.sd3 import StableDiffusion3Backbone
    from nopair.backbones.sd3_reference import accept_reference

    clip = transformers.CLIPTextModelWithProjection
    has_t5 = base.config("model_index.json").get("text_encoder_3") != [None, None]
    return StableDiffusion3Backbone(
        vae=_diffusers(base, "vae", dtype),
        text_encoder=_transformers(base, "text_encoder", clip, dtype),
        text_encoder_2=_transformers(base, "text_encoder_2", clip, dtype),
        text_encoder_3=_transformers(base, "text_encoder_3", transformers.T5EncoderModel, dtype) if has_t5 else None,
        tokenizer=_tokenizer(base, longest=CLIP_TOKENS),
        tokenizer_2=_tokenizer(base, "tokenizer_2", longest=CLIP_TOKENS),
        tokenizer_3=_tokenizer(base, "tokenizer_3") if has_t5 else None,
        transformer=accept_reference(_diffusers(base, "transformer", dtype)),
        shift=float(_scheduler(base).config["shift"]),
    )


def _qwen_image(base: Architecture, dtype: torch.dtype) -> StoredBackbone:
    from nopair.backbones.qwen_image import QwenImageBackbone

    encoder = transformers.Qwen2_5_VLForConditionalGeneration
    return QwenImageBackbone(
        vae=_diffusers(base, "vae", dtype),
        text_encoder=_transformers(base, "text_encoder", encoder, dtype),
        tokenizer=_tokenizer(base),
        transformer=_diffusers(base, "transformer", dtype),
        scheduler=_scheduler(base),
    )


def _diffusers(base: Architecture, part: str, dtype: torch.dtype) -> Any:
    """A diffusers model of the class that its config names."""
    path = f"{part}/config.json"
    config = base.config(path)
    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if kind is None:
        raise ModelError(f"{base.name}: {path} names no known class; copy the model folder again")
    return _frozen(kind.from_config(config), dtype)


def _transformers(base: Architecture, part: str, kind: Any, dtype: torch.dtype) -> Any:
    config = kind.config_class.from_dict(base.config(f"{part}/config.json"))
    return _frozen(kind(config), dtype)


def _frozen(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    nn.Module.to(model, dtype)  # diffusers' own warns of what only files can need
    return model.requires_grad_(False).eval()


def _scheduler(base: Architecture) -> FlowMatchEulerDiscreteScheduler:
    with torch.device("cpu"):
        made: Any = FlowMatchEulerDiscreteScheduler.from_config(base.config("scheduler/scheduler_config.json"))
    return made


def _tokenizer(base: Architecture, part: str = "tokenizer", longest: int = 100_000) -> PreTrainedTokenizerBase:
    if base.folder is None or not (base.folder / part / "tokenizer_config.json").is_file():
        return word_tokenizer(longest=longest)
    return read_tokenizer(base.folder / part)


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
