"""A random-weight Stable Diffusion 3 small enough to run in milliseconds, built from configs only."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from nopair.backbones.sd3 import StableDiffusion3Backbone

CLIP_TOKENS = 24
TRANSFORMER = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 20,
    "pos_embed_max_size": 11,
    "dual_attention_layers": (0, 1),
    "qk_norm": "rms_norm",
}


def _clip_tokenizer(pad: str, longest: int) -> CLIPTokenizer:
    """One token per byte, but for one merge. The end is the last id, as published."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "re", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[("r", "e")], pad_token=pad, model_max_length=longest)


def _t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*pieces, *((chr(code), -3.0) for code in range(33, 127))], extra_ids=0)


def _clip(tokenizer: CLIPTokenizer, width: int, pooled: int, eos: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=24, projection_dim=pooled,
            num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=CLIP_TOKENS, eos_token_id=eos,
        )
    )  # fmt: skip


def _transformer(**changes: object) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(**{**TRANSFORMER, **changes}).eval()


def _pipeline(t5: bool) -> StableDiffusion3Pipeline:
    """The stock text-to-image model, not yet seen by nopair."""
    torch.manual_seed(0)
    # The pipeline cuts prompts for both where the first one does.
    tokenizers = _clip_tokenizer("<|endoftext|>", CLIP_TOKENS), _clip_tokenizer("!", CLIP_TOKENS + 9)
    t5_tokenizer = _t5_tokenizer()
    config = T5Config(
        vocab_size=len(t5_tokenizer), d_model=32, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 32, 64),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            scaling_factor=0.7,
            shift_factor=0.3,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).eval(),
        text_encoder=_clip(tokenizers[0], 12, 8, 2).eval(),  # 2 is the published, outdated end token
        text_encoder_2=_clip(tokenizers[1], 16, 12, len(tokenizers[1]) - 1).eval(),
        text_encoder_3=T5EncoderModel(config).eval() if t5 else None,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        tokenizer_3=t5_tokenizer if t5 else None,
        transformer=_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.5),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _publish(pipeline: StableDiffusion3Pipeline, folder: Path) -> None:
    """Write it in shards, and the CLIP tokenizers in the two files in which they are published."""
    pipeline.save_pretrained(folder, max_shard_size="20KB")
    for name in ("tokenizer", "tokenizer_2"):
        whole = folder / name / "tokenizer.json"
        model = json.loads(whole.read_text())["model"]
        (folder / name / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / name / "merges.txt").write_text("#version: 0.2\nr e\n")
        whole.unlink()


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[[bool], StableDiffusion3Pipeline]:
    """A new stock model, with T5 or without."""
    return _pipeline


@pytest.fixture(scope="session")
def make_transformer() -> Callable[..., SD3Transformer2DModel]:
    """A new text-to-image transformer, like the others but for the changes given."""
    return _transformer


@pytest.fixture(scope="session")
def publish() -> Callable[[StableDiffusion3Pipeline, Path], None]:
    return _publish


@pytest.fixture(scope="session")
def wake() -> Callable[[StableDiffusion3Backbone], StableDiffusion3Backbone]:
    """Gives the reference other weights than zeros."""
    return _wake


@pytest.fixture(scope="session")
def stock() -> StableDiffusion3Pipeline:
    """Only read."""
    return _pipeline(True)


@pytest.fixture(scope="session")
def published(stock: StableDiffusion3Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd3") / "published"
    _publish(stock, path)
    return path


@pytest.fixture(scope="session")
def fresh(published: Path) -> StableDiffusion3Backbone:
    """As loaded, the reference's weights zero; only read."""
    return StableDiffusion3Backbone.load(published)


@pytest.fixture
def backbone(fresh: StableDiffusion3Backbone) -> StableDiffusion3Backbone:
    """As loaded, to train or change."""
    return copy.deepcopy(fresh)


@pytest.fixture(scope="session")
def awake(fresh: StableDiffusion3Backbone) -> StableDiffusion3Backbone:
    """With other weights for the reference than zeros; only read."""
    return _wake(copy.deepcopy(fresh))


@pytest.fixture(scope="session")
def folder(awake: StableDiffusion3Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd3") / "saved"
    awake.save(path)
    return path


def _wake(backbone: StableDiffusion3Backbone) -> StableDiffusion3Backbone:
    weight = backbone.transformer.pos_embed.proj.weight
    with torch.no_grad():
        weight[:, 4:] = 0.3 * torch.randn(weight[:, 4:].shape, generator=torch.Generator().manual_seed(3))
    return backbone
