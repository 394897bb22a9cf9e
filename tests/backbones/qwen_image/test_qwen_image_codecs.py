"""Text, pixels and latents: what is frozen around the transformer, and the sizes of everything."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from nopair.backbones.base import Backbone
from nopair.backbones.qwen_image import MAX_TOKENS, QwenImageBackbone
from nopair.errors import ConfigError
from nopair.types import Text

Make = Callable[..., QwenImageBackbone]

PROMPTS = ["a red circle", "", "a much longer prompt, with more words than the others have, seen from far away"]
EPSILON = 2e-5


# --- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_is_the_last_state_of_the_chat_without_its_beginning(make: Make, side: str) -> None:
    backbone = make()
    backbone.tokenizer.padding_side = side
    backbone.text_encoder.requires_grad_(True)
    prompts = [*PROMPTS, "x" * 2 * MAX_TOKENS]
    text = backbone.encode_text(prompts)
    assert text.lengths[3] == MAX_TOKENS == text.features.shape[1]
    assert text.lengths[0] - text.lengths[1] == len(PROMPTS[0])  # a token is a byte here
    assert not text.features.requires_grad
    template = QwenImagePipeline(scheduler=backbone.scheduler, **dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "transformer")
    )).prompt_template_encode  # fmt: skip
    for i, prompt in enumerate(prompts):
        ids = backbone.tokenizer(template.format(prompt), return_tensors="pt").input_ids[:, : 34 + MAX_TOKENS]
        assert text.lengths[i] == ids.shape[1] - 34
        with torch.no_grad():
            expected = backbone.text_encoder.model(input_ids=ids).last_hidden_state[0, 34:]
        torch.testing.assert_close(text.features[i, : text.lengths[i]], expected, atol=EPSILON, rtol=EPSILON)
        assert torch.count_nonzero(text.features[i, text.lengths[i] :]) == 0


# --- pixels and latents -------------------------------------------------------------------------------------------


def test_latents_are_the_normalised_mode(qwen: QwenImageBackbone) -> None:
    pixels = torch.rand(2, 3, 32, 24)
    mean, deviation = (torch.tensor(qwen.vae.config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        mode = qwen.vae.encode((pixels * 2 - 1).unsqueeze(2)).latent_dist.mode()
        latents = qwen.encode_image(pixels)
        torch.testing.assert_close(latents, (mode.squeeze(2) - mean) / deviation)
        decoded = qwen.vae.decode(mode).sample.squeeze(2) / 2 + 0.5
        torch.testing.assert_close(qwen.decode_latents(latents).clamp(0, 1), decoded, atol=EPSILON, rtol=0)
    assert torch.equal(latents, qwen.encode_image(pixels))
    assert decoded.std() > 0.01


def test_decoding_is_differentiable_also_where_the_library_clamps(qwen: QwenImageBackbone) -> None:
    latents = torch.randn(1, 4, 4, 6).mul(50).requires_grad_(True)
    pixels = qwen.decode_latents(latents)
    outside = (pixels < 0) | (pixels > 1)
    assert outside.any()
    (gradient,) = torch.autograd.grad(pixels[outside].sum(), latents)
    assert gradient.abs().max() > 0
    (gradient,) = torch.autograd.grad(qwen.decode_latents(latents).square().sum(), latents)
    assert gradient.abs().min() > 0


def test_pixels_have_gradient_through_encoding(qwen: QwenImageBackbone) -> None:
    pixels = torch.rand(1, 3, 16, 24, requires_grad=True)
    (gradient,) = torch.autograd.grad(qwen.encode_image(pixels).square().sum(), pixels)
    assert gradient.abs().max() > 0


def test_images_are_coded_one_by_one(qwen: QwenImageBackbone) -> None:
    pixels = torch.rand(3, 3, 24, 40)
    with torch.no_grad():
        latents = qwen.encode_image(pixels)
        decoded = qwen.decode_latents(latents)
        for i in range(3):
            part = slice(i, i + 1)
            torch.testing.assert_close(qwen.encode_image(pixels[part]), latents[part], atol=EPSILON, rtol=0)
            torch.testing.assert_close(qwen.decode_latents(latents[part]), decoded[part], atol=EPSILON, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (64, 24)])
def test_latent_shape_is_the_shape_of_latents(qwen: QwenImageBackbone, size: tuple[int, int]) -> None:
    assert qwen.pixel_multiple == 8
    assert qwen.latent_shape(*size) == tuple(qwen.encode_image(torch.rand(1, 3, *size)).shape[1:])


@pytest.mark.parametrize("size", [(0, 8), (8, 0), (12, 16), (16, 12), (-8, 8)])
def test_sizes_that_do_not_divide_are_refused(qwen: QwenImageBackbone, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        qwen.latent_shape(*size)


def test_the_longest_side_leaves_room_for_the_longest_prompt(qwen: QwenImageBackbone) -> None:
    most = 2 * (4096 - MAX_TOKENS) * 8
    _, rows, columns = qwen.latent_shape(8, most)
    _, words = qwen.transformer.pos_embed([[(1, rows // 2, columns // 2)]], torch.device("cpu"), MAX_TOKENS)
    assert len(words) == MAX_TOKENS
    for size in ((8, most + 8), (most + 8, 8)):
        with pytest.raises(ConfigError, match=f"at most {most}x{most}"):
            qwen.latent_shape(*size)


# --- the published model ------------------------------------------------------------------------------------------

# transformer/config.json of Qwen/Qwen-Image
PUBLISHED_TRANSFORMER = {
    "attention_head_dim": 128,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 60,
    "out_channels": 16,
    "patch_size": 2,
}
# config.json of Qwen/Qwen2.5-VL-7B-Instruct
PUBLISHED_TEXT = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
PUBLISHED_VISION = {"hidden_size": 1280, "out_hidden_size": 3584}


def test_the_published_size_builds_and_runs_without_memory(qwen: QwenImageBackbone) -> None:
    with torch.device("meta"):
        full = dataclasses.replace(
            qwen,
            vae=AutoencoderKLQwenImage(),  # its defaults are the published ones
            text_encoder=Qwen2_5_VLForConditionalGeneration(
                Qwen2_5_VLConfig(text_config=PUBLISHED_TEXT, vision_config=PUBLISHED_VISION)
            ),
            transformer=QwenImageTransformer2DModel(**PUBLISHED_TRANSFORMER),
        )
        shape = full.latent_shape(1024, 768)
        latents = torch.empty(2, *shape)
        text = Text(torch.empty(2, 40, 3584), (40, 7))
        assert full.velocity(latents, torch.empty(2), text, latents).shape == latents.shape
        assert full.encode_image(torch.empty(2, 3, 1024, 768)).shape == latents.shape
        assert full.decode_latents(latents).shape == (2, 3, 1024, 768)
    # Half the bytes of the published bf16 weights: 40.9, 16.6 and 0.254 GB. The text encoder is the one called 7B.
    for part, published in ((full.transformer, 20.4e9), (full.text_encoder, 8.3e9), (full.vae, 127e6)):
        assert sum(parameter.numel() for parameter in part.parameters()) == pytest.approx(published, rel=0.05)
    assert full.pixel_multiple == 16
    assert shape == (16, 128, 96)


def test_half_precision_weights_take_and_give_float32(folder: Path, qwen: QwenImageBackbone) -> None:
    half = QwenImageBackbone.load(folder, torch.bfloat16)
    noisy, t, reference = torch.randn(2, 4, 8, 8), torch.rand(2), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        exact = qwen.velocity(noisy, t, qwen.encode_text(PROMPTS[:2]), reference)
        rounded = half.velocity(noisy, t, half.encode_text(PROMPTS[:2]), reference)
        pixels = half.decode_latents(half.encode_image(torch.rand(1, 3, 16, 16)))
    assert rounded.dtype == pixels.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_all_models_move_together(make: Make) -> None:
    backbone = make()
    assert backbone.to("meta") is backbone
    for part in (backbone.vae, backbone.text_encoder, backbone.transformer):
        assert all(tensor.is_meta for tensor in (*part.parameters(), *part.buffers()))


def test_with_transformer_wants_its_own_family(qwen: QwenImageBackbone) -> None:
    assert isinstance(qwen, Backbone)
    with pytest.raises(TypeError, match="QwenImageTransformer2DModel"):
        qwen.with_transformer(torch.nn.Linear(1, 1))
