"""A random-weight Qwen-Image small enough to run in milliseconds, built from configs only."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from nopair.backbones.qwen_image import QwenImageBackbone
from nopair.backbones.zimage import ZImageBackbone

# scheduler/scheduler_config.json of Qwen/Qwen-Image
PUBLISHED_SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}


def _text_encoder(words: int) -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "vocab_size": words,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [0],
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def _tiny(tokenizer: PreTrainedTokenizerBase, zero_cond_t: bool = False) -> QwenImageBackbone:
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, -0.7],
        latents_std=[0.5, 1.5, 2.0, 0.8],
    )
    vae.decoder.conv_out.weight.data *= 5  # so that some pixels leave [0, 1]
    text_encoder = _text_encoder(len(tokenizer))
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=zero_cond_t,
    )
    return QwenImageBackbone(
        vae=vae.eval().requires_grad_(False),
        text_encoder=text_encoder.eval().requires_grad_(False),
        tokenizer=copy.deepcopy(tokenizer),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(**PUBLISHED_SCHEDULER),
    )


@pytest.fixture(scope="session")
def qwen(shared_backbone: ZImageBackbone) -> QwenImageBackbone:
    """One for all tests that only read."""
    return _tiny(shared_backbone.tokenizer)


@pytest.fixture
def make(shared_backbone: ZImageBackbone) -> Callable[..., QwenImageBackbone]:
    """The same, for tests that train or change it, or want `zero_cond_t`."""
    return lambda **settings: _tiny(shared_backbone.tokenizer, **settings)


@pytest.fixture(scope="session")
def folder(qwen: QwenImageBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen_image") / "model"
    qwen.save(path)
    return path
