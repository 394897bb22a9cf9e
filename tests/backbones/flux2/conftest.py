"""A random-weight FLUX.2 [klein] small enough to run in milliseconds, built from configs only."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from nopair.backbones.flux2 import Flux2KleinBackbone
from nopair.backbones.zimage import ZImageBackbone

SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True}
"""As published. The constant shift is not used under dynamic shifting."""


def _tiny(tokenizer: PreTrainedTokenizerBase) -> Flux2KleinBackbone:
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.get_buffer("bn.running_mean").normal_()
    vae.get_buffer("bn.running_var").uniform_(0.2, 3.0)
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=28,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=8,
            initializer_range=0.3,  # so that the 28 layers do something
            tie_word_embeddings=True,  # as published
        )
    )
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return Flux2KleinBackbone(
        vae=vae.eval().requires_grad_(False),
        text_encoder=text_encoder.eval().requires_grad_(False),
        tokenizer=copy.deepcopy(tokenizer),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULER),
    )


@pytest.fixture(scope="session")
def klein(shared_backbone: ZImageBackbone) -> Flux2KleinBackbone:
    """One for all tests that only read."""
    return _tiny(shared_backbone.tokenizer)


@pytest.fixture
def fresh(shared_backbone: ZImageBackbone) -> Flux2KleinBackbone:
    """The same, for tests that train or change it."""
    return _tiny(shared_backbone.tokenizer)


@pytest.fixture(scope="session")
def folder(klein: Flux2KleinBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flux2") / "model"
    klein.save(path)
    return path
