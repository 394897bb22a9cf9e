"""A random LLaVA-OneVision checkpoint folder, a few hundred kB, built once per test run."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from nopair.judges.llava_onevision import LlavaOnevisionJudge

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
IN_ORDER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGES_FIRST = (
    "{% for m in messages %}<|im_start|>{{ m.role }} "
    "{% for part in m.content if part.type == 'image' %}<image>\n{% endfor %}"
    "{% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "Yes No yes no Yes No",
    " Yes No yes no",
    "Is there a circle? Was this carried out? Before: After: Answer Yes or No.",
]


def byte_level_tokenizer(corpus: list[str], template: str | None = IN_ORDER) -> PreTrainedTokenizerFast:
    """Byte-level BPE as in the Qwen family, trained on `corpus`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", additional_special_tokens=SPECIAL[3:]
    )
    fast.chat_template = template
    return fast


def tiny_model(tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionForConditionalGeneration:
    """Random weights, 64 tokens per 64×64 image."""
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
        vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[64, 64], [64, 128], [128, 64], [128, 128]],
    )
    return LlavaOnevisionForConditionalGeneration(config).eval()


def tiny_processor() -> LlavaOnevisionImageProcessorPil:
    """Uneven means, so that a channel mix-up shows."""
    return LlavaOnevisionImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.45, 0.5, 0.55], image_std=[0.5, 0.4, 0.6],
        image_grid_pinpoints=[[64, 64], [64, 128], [128, 64], [128, 128]],
    )  # fmt: skip


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint; copy it before changing it."""
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = byte_level_tokenizer(CORPUS)
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def judge(judge_folder: Path) -> LlavaOnevisionJudge:
    """The checkpoint, loaded; frozen, so tests may share it."""
    return LlavaOnevisionJudge.load(judge_folder)
