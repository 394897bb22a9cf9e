"""Random checkpoints of every family, a few hundred kB each, and what its own processor makes of a question."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BatchFeature,
    GotOcr2ImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    Idefics3VisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
    SmolVLMVisionConfig,
)
from transformers.models.smolvlm import processing_smolvlm

MEAN, STD = [0.45, 0.5, 0.55], [0.5, 0.4, 0.6]
"""Uneven, so that a channel mix-up shows."""
CORPUS = [
    "Yes No yes no Yes No",
    " Yes No yes no",
    "Is there a circle? Was this carried out? Before: After: Answer Yes or No.",
]
COMMON = ["<pad>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOL_CHAT = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}"
    "{% if m.content[0].type == 'image' %}:{% else %}: {% endif %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
PLACES = re.compile(r"(\{reference\}|\{edited\})")


def tokenizer_with(special: Sequence[str], template: str, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in the Qwen family."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    every = [*COMMON, *special]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=every, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=list(special),
        extra_special_tokens=named,
    )  # fmt: skip
    fast.chat_template = template
    return fast


@dataclass(frozen=True)
class Case:
    """A family: how to build it, and how to ask the library. `call` holds the processor's settings for one view."""

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    model: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    image_processor: Any
    processor: type
    vision: Callable[[Any], nn.Module]
    language: Callable[[Any], nn.Module]
    settings: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """An ordinary checkpoint folder."""
        torch.manual_seed(0)
        tokenizer = self.tokenizer()
        self.model(tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    def library(self, tokenizer: PreTrainedTokenizerFast, prompt: str, images: dict[str, Image.Image]) -> BatchFeature:
        """The inputs the family's own template and processor make of a question; `images` by their place."""
        parts = [part for part in PLACES.split(prompt) if part]
        shown = [images[part] for part in parts if part in images]
        content = [{"type": "image"} if part in images else {"type": "text", "text": part} for part in parts]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        processor = _without_video(self.processor)(
            self.image_processor, tokenizer, chat_template=tokenizer.chat_template, **self.settings
        )
        return processor(text=[text], images=[shown], return_tensors="pt", **self.call)


def _without_video(processor: type) -> type:
    """The library's processor less its video part, which needs torchvision."""

    def start(self, image_processor, tokenizer, chat_template, **settings):
        processor.__init__(self, image_processor, tokenizer, None, chat_template=chat_template, **settings)

    if "video_processor" not in inspect.signature(processor.__init__).parameters:
        return processor
    attributes = classmethod(lambda _cls: ["image_processor", "tokenizer"])
    return type(processor.__name__, (processor,), {"get_attributes": attributes, "__init__": start})


# The processor of this family asks for a package that it uses for videos only.
processing_smolvlm.num2words = str


def _qwen2(tokenizer: PreTrainedTokenizerFast, **more) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    } | more  # fmt: skip


def _llava_onevision(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**_qwen2(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[64, 64], [64, 128], [128, 64], [128, 128]],
    )
    return LlavaOnevisionForConditionalGeneration(config).eval()


def _internvl(tokenizer: PreTrainedTokenizerFast, text: Any = None) -> PreTrainedModel:
    vision = InternVLVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=[32, 32],
        patch_size=[4, 4], initializer_range=0.2,
    )  # fmt: skip
    config = InternVLConfig(
        vision_config=vision,
        text_config=text or Qwen2Config(**_qwen2(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config).eval()


def _internvl3_5(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The later generation: a Qwen3 text model."""
    return _internvl(tokenizer, Qwen3Config(**_qwen2(tokenizer, head_dim=16)))


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    words = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
             "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}  # fmt: skip
    return {name: tokenizer.convert_tokens_to_ids(word) for name, word in words.items()}


def _qwen2_5_vl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4, "window_size": 16,
        "out_hidden_size": 32, "fullatt_block_indexes": [1], "initializer_range": 0.2,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=_qwen2(tokenizer, rope_parameters=rope), **_qwen_ids(tokenizer)
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def _qwen3_vl(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4,
              "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
              "initializer_range": 0.2}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = _qwen2(tokenizer, rope_parameters=rope, head_dim=8)
    config = Qwen3VLConfig(vision_config=vision, text_config=text, **_qwen_ids(tokenizer))
    return Qwen3VLForConditionalGeneration(config).eval()


def _smol(vision: Any, config: Any, model: Any) -> Callable[[PreTrainedTokenizerFast], PreTrainedModel]:
    def build(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        tower = vision(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32,
            patch_size=4, initializer_range=0.2,
        )  # fmt: skip
        settings = config(
            vision_config=tower,
            text_config=LlamaConfig(**_qwen2(tokenizer)),
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=2,
        )
        return model(settings).eval()

    return build


def _qwen_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    return tokenizer_with(special, CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"))


_QWEN_IMAGES = Qwen2VLImageProcessorPil(
    size={"shortest_edge": 24 * 24, "longest_edge": 64 * 64}, patch_size=4, image_mean=MEAN, image_std=STD
)

_SMOL_TOKENS = ["<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>"]

CASES = {
    "idefics3": Case(
        lambda: tokenizer_with(_SMOL_TOKENS, SMOL_CHAT),
        _smol(Idefics3VisionConfig, Idefics3Config, Idefics3ForConditionalGeneration),
        Idefics3ImageProcessorPil(
            size={"longest_edge": 48}, max_image_size={"longest_edge": 32}, image_mean=MEAN, image_std=STD
        ),
        Idefics3Processor,
        vision=lambda model: model.model.vision_model,
        language=lambda model: model.model.text_model,
        settings={"image_seq_len": 16},
        call={"do_image_splitting": False},
    ),
    "llava_onevision": Case(
        lambda: tokenizer_with(["<image>", "<video>"], CHAT.replace("IMAGE", "<image>")),
        _llava_onevision,
        LlavaOnevisionImageProcessorPil(
            size={"height": 64, "width": 64}, image_mean=MEAN, image_std=STD,
            image_grid_pinpoints=[[64, 64], [64, 128], [128, 64], [128, 128]],
        ),
        LlavaOnevisionProcessor,
        vision=lambda model: model.model.vision_tower,
        language=lambda model: model.model.language_model,
        settings={"num_image_tokens": 64, "vision_feature_select_strategy": "full"},
    ),
    "internvl": Case(
        lambda: tokenizer_with(
            ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"], CHAT.replace("IMAGE", "<IMG_CONTEXT>\n"),
            start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
        _internvl,
        GotOcr2ImageProcessorPil(
            size={"height": 32, "width": 32}, image_mean=MEAN, image_std=STD, crop_to_patches=True
        ),
        InternVLProcessor,
        vision=lambda model: model.model.vision_tower,
        language=lambda model: model.model.language_model,
        settings={"image_seq_length": 16},
        call={"crop_to_patches": False},
    ),
    "qwen2_5_vl": Case(
        _qwen_tokenizer, _qwen2_5_vl, _QWEN_IMAGES, Qwen2_5_VLProcessor,
        vision=lambda model: model.model.visual,
        language=lambda model: model.model.language_model,
    ),
    "qwen3_vl": Case(
        _qwen_tokenizer, _qwen3_vl, _QWEN_IMAGES, Qwen3VLProcessor,
        vision=lambda model: model.model.visual,
        language=lambda model: model.model.language_model,
    ),
    "smolvlm": Case(
        lambda: tokenizer_with(_SMOL_TOKENS, SMOL_CHAT),
        _smol(SmolVLMVisionConfig, SmolVLMConfig, SmolVLMForConditionalGeneration),
        SmolVLMImageProcessorPil(
            size={"longest_edge": 48}, max_image_size={"longest_edge": 32}, image_mean=MEAN, image_std=STD
        ),
        SmolVLMProcessor,
        vision=lambda model: model.model.vision_model,
        language=lambda model: model.model.text_model,
        settings={"image_seq_len": 16},
        call={"do_image_splitting": False},
    ),
}  # fmt: skip

INTERNVL3_5 = replace(CASES["internvl"], model=_internvl3_5)
