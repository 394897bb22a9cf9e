import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from nopair.backbones.base import Backbone
from nopair.backbones.flux2 import TOKENS, Flux2KleinBackbone
from nopair.backbones.roles import TRAINED, LoraRoles, Role
from nopair.errors import ConfigError
from nopair.method.flow import guided, levels
from nopair.method.rollout import rollout, sampler_levels
from nopair.types import Text

PROMPTS = ["a red circle", "", "a much longer prompt, with more words than the others have, seen from far away"]
SIZES = [(8, 8), (8, 12), (12, 8)]  # of latents; the stock pipeline takes no reference below 8 (64 pixels)
EPSILON = 2e-5

with_and_without_reference = pytest.mark.parametrize("referenced", [False, True], ids=["plain", "reference"])


@pytest.fixture
def pipeline(folder: Path) -> Flux2KleinPipeline:
    stock = Flux2KleinPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    return stock


def _inputs(batch: int, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, times, reference latents."""
    return torch.randn(batch, 16, *size), torch.rand(batch), torch.randn(batch, 16, *size)


def _photo(size: tuple[int, int]) -> tuple[Image.Image, Tensor]:
    """Noise of so many latents as the stock pipeline takes it, and as nopair does."""
    rows, columns = size
    pixels = torch.randint(0, 256, (rows * 8, columns * 8, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()), (pixels.permute(2, 0, 1)[None] / 255)


# --- the base's own generation ------------------------------------------------------------------------------------


@with_and_without_reference
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sampling_through_velocity_is_the_stock_pipeline(
    klein: Flux2KleinBackbone, pipeline: Flux2KleinPipeline, size: tuple[int, int], referenced: bool
) -> None:
    prompts, steps, scale = ["a red circle", "two blue squares on a striped ground, seen from far"], 3, 4.0
    height, width = size[0] * 8, size[1] * 8
    noise, (image, pixels) = torch.randn(2, 16, *size), _photo(size)
    expected = pipeline(
        image if referenced else None, list(prompts), height=height, width=width, latents=noise.clone(),
        num_inference_steps=steps, guidance_scale=scale, output_type="pt",
    ).images  # fmt: skip

    text, empty = klein.encode_text(prompts), klein.encode_text(["", ""])
    times = [*levels(steps, klein.shift_for(height, width, steps)).tolist(), 0.0]
    x = noise
    with torch.no_grad():
        reference = klein.encode_image(pixels).expand(2, -1, -1, -1) if referenced else None
        for level, following in itertools.pairwise(times):
            t = torch.full((2,), level)
            conditional, unconditional = (klein.velocity(x, t, words, reference) for words in (text, empty))
            x = x + (following - level) * guided(conditional, unconditional, torch.full((2,), scale))
        images = klein.decode_latents(x).clamp(0, 1)

    assert expected.std() > 0.01
    assert (expected[0] - expected[1]).abs().mean() > 0.01
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


@with_and_without_reference
def test_the_stock_pipeline_with_a_stochastic_scheduler_is_the_rollout(
    klein: Flux2KleinBackbone, pipeline: Flux2KleinPipeline, referenced: bool
) -> None:
    size, steps, scale_free = (8, 12), 4, 1.0
    prompts, (image, pixels) = PROMPTS[:2], _photo(size)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, stochastic_sampling=True
    )
    first = torch.randn(2, 16, *size)
    torch.manual_seed(7)
    expected = pipeline(
        image if referenced else None, list(prompts), height=64, width=96, latents=first.clone(),
        num_inference_steps=steps, sigmas=[1.0, 0.75, 0.5, 0.25], guidance_scale=scale_free, output_type="pt",
    ).images  # fmt: skip

    torch.manual_seed(7)
    packed = [torch.randn(2, 8 * 12, 16) for _ in range(steps - 1)]
    noises = torch.stack([first, *(noise.transpose(1, 2).reshape(first.shape) for noise in packed)])
    text = klein.encode_text(prompts)
    with torch.no_grad():
        reference = klein.encode_image(pixels).expand(2, -1, -1, -1) if referenced else None
        x0 = rollout(
            lambda x, t: klein.velocity(x, t, text, reference),
            noises,
            sampler_levels(levels(steps, klein.shift_for(64, 96, steps)), 2),
        )
        images = klein.decode_latents(x0).clamp(0, 1)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert (images[0] - images[1]).abs().mean() > 0.01


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (512, 512), (768, 1024), (1024, 1024)], ids=str)
@pytest.mark.parametrize("steps", [1, 4, 50])
def test_levels_of_the_constant_shift_are_the_scheduler_s(
    klein: Flux2KleinBackbone, size: tuple[int, int], steps: int
) -> None:
    scheduler, tokens = klein.scheduler, size[0] * size[1] // 8**2
    uniform = [(steps - i) / steps for i in range(steps)]
    scheduler.set_timesteps(sigmas=uniform, mu=compute_empirical_mu(tokens, steps))
    torch.testing.assert_close(levels(steps, klein.shift_for(*size, steps)), scheduler.sigmas[:-1], atol=1e-6, rtol=0)


def test_the_shift_depends_on_size_and_steps(klein: Flux2KleinBackbone) -> None:
    shifts = [klein.shift_for(64, 64, 4), klein.shift_for(512, 512, 4), klein.shift_for(64, 64, 50)]
    assert len(set(shifts)) == 3
    assert klein.shift_for(64, 512, 4) == klein.shift_for(512, 64, 4)
    with pytest.raises(ConfigError, match="multiples of 8"):
        klein.shift_for(60, 64, 4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_is_the_stock_pipeline_s(fresh: Flux2KleinBackbone, pipeline: Flux2KleinPipeline, side: str) -> None:
    prompts = [*PROMPTS, "x" * 2 * TOKENS]
    fresh.tokenizer.padding_side = pipeline.tokenizer.padding_side = side
    fresh.text_encoder.requires_grad_(True)
    text = fresh.encode_text(prompts)
    with torch.no_grad():
        expected, positions = pipeline.encode_prompt(prompts)
    torch.testing.assert_close(text.features, expected, atol=EPSILON, rtol=EPSILON)
    assert text.lengths == (TOKENS,) * 4 == (positions.shape[1],) * 4
    assert not text.features.requires_grad
    early, middle, late = text.features[0].chunk(3, dim=1)
    assert (early - middle).abs().mean() > 0.1 < (middle - late).abs().mean()


# --- independence of samples, and the padding ---------------------------------------------------------------------


@with_and_without_reference
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_batch_is_its_samples(klein: Flux2KleinBackbone, size: tuple[int, int], referenced: bool) -> None:
    noisy, t, reference = _inputs(3, size)
    with torch.no_grad():
        given = reference if referenced else None
        together = klein.velocity(noisy, t, klein.encode_text(PROMPTS), given)
        for i in range(3):
            part = slice(i, i + 1)
            alone = klein.velocity(
                noisy[part], t[part], klein.encode_text(PROMPTS[part]), reference[part] if referenced else None
            )
            torch.testing.assert_close(together[part], alone, atol=EPSILON, rtol=0)
    assert together.shape == noisy.shape


@with_and_without_reference
@pytest.mark.parametrize("token", [0, TOKENS - 1])
def test_padding_counts_like_a_word(klein: Flux2KleinBackbone, token: int, referenced: bool) -> None:
    noisy, t, reference = _inputs(1)
    text = klein.encode_text(PROMPTS[:1])
    changed = text.features.clone()
    changed[0, token] = changed[0, token].roll(1)
    with torch.no_grad():
        given = reference if referenced else None
        difference = klein.velocity(noisy, t, text, given) - klein.velocity(
            noisy, t, Text(changed, text.lengths), given
        )
    assert difference.abs().max() > 1e-4


def test_text_with_padding_to_ignore_is_refused(klein: Flux2KleinBackbone) -> None:
    noisy, t, _ = _inputs(2)
    text = klein.encode_text(PROMPTS[:2])
    for lengths in ((TOKENS, TOKENS - 1), (TOKENS - 1, TOKENS - 1)):
        with pytest.raises(ValueError, match="all of 512 tokens"):
            klein.velocity(noisy, t, Text(text.features, lengths))


# --- the reference and gradients ----------------------------------------------------------------------------------


def test_the_reference_changes_the_prediction_and_gets_gradient(klein: Flux2KleinBackbone) -> None:
    noisy, t, reference = _inputs(2, (8, 12))
    text = klein.encode_text(PROMPTS[:2])
    noisy.requires_grad_(True)
    reference.requires_grad_(True)
    v = klein.velocity(noisy, t, text, reference)
    with torch.no_grad():
        assert (v - klein.velocity(noisy, t, text)).abs().max() > 1e-3
        assert (v - klein.velocity(noisy, t, text, reference.flip(-1))).abs().max() > 1e-3
    for gradient in torch.autograd.grad(v[0].square().sum(), [noisy, reference]):
        assert gradient[0].abs().min() > 0
        assert torch.count_nonzero(gradient[1]) == 0  # of the other sample


def test_reference_and_target_share_rows_and_columns_but_not_the_time_position(fresh: Flux2KleinBackbone) -> None:
    noisy, t, reference = _inputs(1, (8, 12))
    seen: list[Tensor] = []
    fresh.transformer.pos_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        fresh.velocity(noisy, t, fresh.encode_text(PROMPTS[:1]), reference)
    image, words = (ids.tolist() for ids in seen)
    places = list(itertools.product(range(8), range(12)))
    assert image == [[time, row, column, 0] for time in (0, 10) for row, column in places]
    assert words == [[0, 0, 0, place] for place in range(TOKENS)]


@with_and_without_reference
def test_checkpointing_does_not_change_gradients(fresh: Flux2KleinBackbone, referenced: bool) -> None:
    noisy, t, reference = _inputs(2)
    text = fresh.encode_text(PROMPTS[1:])
    inputs = [noisy.requires_grad_(True), *([reference.requires_grad_(True)] if referenced else [])]

    def gradients() -> list[Tensor]:
        v = fresh.velocity(noisy, t, text, reference if referenced else None)
        return list(torch.autograd.grad(v.square().mean(), [*inputs, *fresh.transformer.parameters()]))

    plain = gradients()
    calls = []
    fresh.transformer.enable_gradient_checkpointing()
    fresh.transformer.single_transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2  # forward, and again in backward
    assert all(gradient.abs().max() > 0 for gradient in plain)  # of every parameter
    torch.testing.assert_close(checkpointed, plain, atol=0, rtol=0)


# --- roles --------------------------------------------------------------------------------------------------------


def _asked(backbone: Backbone) -> Tensor:
    """A loss at fixed inputs, with a reference."""
    torch.manual_seed(1)
    noisy, t, reference = _inputs(2, (8, 12))
    return backbone.velocity(noisy, t, backbone.encode_text(PROMPTS[1:]), reference).square().mean()


@pytest.mark.parametrize("role", TRAINED)
def test_adapters_get_the_gradients_of_their_weights_under_checkpointing(fresh: Flux2KleinBackbone, role: Role) -> None:
    """For W + s B A, with G the gradient of the merged weight: that of B is s G A', that of A is s B' G."""
    with torch.no_grad():
        teacher = _asked(fresh)
    rank, alpha = 2, 4.0
    roles = LoraRoles.of(fresh, rank=rank, alpha=alpha, targets=["to_q", "to_k", "to_v"], seed=0)
    with torch.no_grad():
        for trained in TRAINED:
            for parameter in roles.trainable(trained).values():
                parameter += 0.1 * torch.randn_like(parameter)
    weights = roles.trainable(role)
    merged = roles.export(role, weights).requires_grad_(True)
    _asked(fresh.with_transformer(merged)).backward()

    fresh.transformer.enable_gradient_checkpointing()
    loss = _asked({"student": roles.student, "fake": roles.fake}[role])
    with torch.no_grad():
        others = [_asked(view) for view in (roles.student, roles.fake, roles.teacher)]
    torch.testing.assert_close(others[2], teacher, atol=0, rtol=0)
    assert len({float(other) for other in others}) == 3
    roles.backward(loss, role)
    layers = [name for name, module in fresh.transformer.named_modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 2 * 3
    for name in layers:
        down, up = weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]
        whole = merged.get_parameter(f"{name}.weight").grad
        assert whole is not None
        assert whole.abs().max() > 1e-6
        torch.testing.assert_close(up.grad, alpha / rank * whole @ down.T, atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(down.grad, alpha / rank * up.T @ whole, atol=1e-6, rtol=1e-3)
    other = roles.trainable("fake" if role == "student" else "student")
    assert all(parameter.grad is None for parameter in other.values())


def test_adapters_of_every_kind_of_layer_train_on_a_half_precision_base(fresh: Flux2KleinBackbone) -> None:
    fresh.transformer.bfloat16()
    targets = ["to_q", "to_out.0", "add_k_proj", "to_qkv_mlp_proj", "linear_in", "x_embedder", "proj_out"]
    roles = LoraRoles.of(fresh, rank=2, alpha=2.0, targets=targets, seed=0)
    roles.backward(_asked(roles.student), "student")
    for name, parameter in roles.trainable("student").items():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad.abs().max() > 0) == name.endswith("lora_B.weight")  # B is zero, so A has none yet


# --- pixels and latents -------------------------------------------------------------------------------------------


def test_latents_are_the_mode_folded_and_normalised(klein: Flux2KleinBackbone) -> None:
    pixels = torch.rand(2, 3, 32, 24)
    bn = klein.vae.bn
    with torch.no_grad():
        mode = klein.vae.encode(pixels * 2 - 1).latent_dist.mode()
        latents = klein.encode_image(pixels)
        blocks = mode.unfold(2, 2, 2).unfold(3, 2, 2)  # b c h w 2 2
        folded = torch.stack([blocks[:, c, :, :, i, j] for c in range(4) for i in range(2) for j in range(2)], dim=1)
        torch.testing.assert_close(latents, bn(folded))
        torch.testing.assert_close(klein.decode_latents(latents), klein.vae.decode(mode).sample / 2 + 0.5)
    assert not bn.training
    assert torch.equal(latents, klein.encode_image(pixels))


def test_decoding_is_differentiable_and_not_clamped(klein: Flux2KleinBackbone) -> None:
    latents = torch.randn(1, 16, 4, 6).mul(50).requires_grad_(True)
    pixels = klein.decode_latents(latents)
    assert pixels.min() < 0 or pixels.max() > 1
    pixels.square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().min() > 0


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (64, 24)])
def test_latent_shape_is_the_shape_of_latents(klein: Flux2KleinBackbone, size: tuple[int, int]) -> None:
    assert klein.pixel_multiple == 8
    assert klein.latent_shape(*size) == tuple(klein.encode_image(torch.rand(1, 3, *size)).shape[1:])


@pytest.mark.parametrize("size", [(0, 8), (12, 16), (16, 12), (-8, 8)])
def test_sizes_that_do_not_divide_are_refused(klein: Flux2KleinBackbone, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        klein.latent_shape(*size)


# --- the published model ------------------------------------------------------------------------------------------

# `klein-4b` in scripts/convert_flux2_to_diffusers.py of huggingface/diffusers; its VAE is AutoencoderKLFlux2().
KLEIN_4B = {
    "patch_size": 1,
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "rope_theta": 2000,
    "eps": 1e-6,
    "guidance_embeds": False,
}
# config.json of Qwen/Qwen3-4B
QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}


def test_the_published_size_builds_and_runs_without_memory(klein: Flux2KleinBackbone) -> None:
    with torch.device("meta"):
        full = dataclasses.replace(
            klein,
            vae=AutoencoderKLFlux2(),
            text_encoder=Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B)),
            transformer=Flux2Transformer2DModel(**KLEIN_4B),
        )
        for part in (full.transformer, full.text_encoder):  # both are called 4B
            assert sum(parameter.numel() for parameter in part.parameters()) == pytest.approx(4.0e9, rel=0.05)
        shape = full.latent_shape(1024, 768)
        latents = torch.empty(2, *shape)
        text = Text(torch.empty(2, TOKENS, 3 * full.text_encoder.config.hidden_size), (TOKENS, TOKENS))
        assert full.velocity(latents, torch.empty(2), text, latents).shape == latents.shape
        assert full.encode_image(torch.empty(2, 3, 1024, 768)).shape == latents.shape
    assert full.pixel_multiple == 16
    assert shape == (128, 64, 48)


def test_half_precision_weights_take_and_give_float32(folder: Path, klein: Flux2KleinBackbone) -> None:
    half = Flux2KleinBackbone.load(folder, torch.bfloat16)
    noisy, t, reference = _inputs(2)
    with torch.no_grad():
        exact = klein.velocity(noisy, t, klein.encode_text(PROMPTS[:2]), reference)
        rounded = half.velocity(noisy, t, half.encode_text(PROMPTS[:2]), reference)
        pixels = half.decode_latents(half.encode_image(torch.rand(1, 3, 16, 16)))
    assert rounded.dtype == pixels.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_all_models_move_together(fresh: Flux2KleinBackbone) -> None:
    assert fresh.to("meta") is fresh
    for part in (fresh.vae, fresh.text_encoder, fresh.transformer):
        assert all(tensor.is_meta for tensor in (*part.parameters(), *part.buffers()))


def test_with_transformer_wants_its_own_family(klein: Flux2KleinBackbone) -> None:
    assert isinstance(klein, Backbone)
    with pytest.raises(TypeError, match="Flux2Transformer2DModel"):
        klein.with_transformer(torch.nn.Linear(1, 1))
