import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImagePipeline,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage, pipeline_qwenimage_edit
from peft.tuners.lora import LoraLayer
from PIL import Image
from torch import Tensor
from torch.nn import functional

from nopair.backbones.base import Backbone
from nopair.backbones.qwen_image import QwenImageBackbone
from nopair.backbones.roles import TRAINED, LoraRoles, Role
from nopair.errors import ConfigError
from nopair.method.flow import guided, levels
from nopair.method.rollout import rollout, sampler_levels
from nopair.types import Text

Make = Callable[..., QwenImageBackbone]

PROMPTS = ["a red circle", "", "a much longer prompt, with more words than the others have, seen from far away"]
SIZES = [(8, 8), (6, 10), (10, 6)]  # of latents; the others make odd numbers of tokens
EPSILON = 2e-5

three_ways = pytest.mark.parametrize(
    ("referenced", "zero_cond_t"),
    [(False, False), (False, True), (True, False), (True, True)],
    ids=["plain", "plain-zero", "reference", "reference-zero"],
)


def _inputs(batch: int, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, times, reference latents."""
    return torch.randn(batch, 4, *size), torch.rand(batch), torch.randn(batch, 4, *size)


def _photo(size: tuple[int, int]) -> tuple[Image.Image, Tensor]:
    """Noise of so many latents as the stock pipeline takes it, and as nopair does."""
    rows, columns = size
    pixels = torch.randint(0, 256, (rows * 4, columns * 4, 3), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()), (pixels.permute(2, 0, 1)[None] / 255)


def _pack(latents: Tensor) -> Tensor:
    """Latents as the library's own pipelines cut them into tokens."""
    return QwenImagePipeline._pack_latents(latents, *latents.shape)


def _unpack(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = size
    return QwenImagePipeline._unpack_latents(tokens, rows * 4, columns * 4, 4).squeeze(2)


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Run the stock text-to-image pipeline, or the stock edit pipeline on a reference, around a backbone's modules.

    The edit pipeline gets our embedding of the prompts, where its own would look at the reference (see the docstring of
    `nopair.backbones.qwen_image`), and keeps the size of the reference, which it would bring to 1024 x 1024 pixels.
    """

    def run(
        backbone: QwenImageBackbone, image: Image.Image | None, scheduler: Any, noise: Tensor, **call: Any
    ) -> Tensor:
        parts = {name: getattr(backbone, name) for name in ("vae", "text_encoder", "tokenizer", "transformer")}
        height, width = (side * 4 for side in noise.shape[2:])
        call |= {"height": height, "width": width, "latents": _pack(noise), "output_type": "pt"}
        if image is None:
            pipeline = QwenImagePipeline(scheduler=scheduler, **parts)
        else:
            monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda *_: (width, height, None))
            pipeline = QwenImageEditPipeline(scheduler=scheduler, processor=None, **parts)
            call["image"] = image
            for name in [name for name in ("prompt", "negative_prompt") if name in call]:
                text = backbone.encode_text(call.pop(name))
                call[f"{name}_embeds"] = text.features
                call[f"{name}_embeds_mask"] = torch.arange(text.features.shape[1]) < torch.tensor(text.lengths)[:, None]
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(**call).images

    return run


# --- the base's own generation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [None, 0.02])
@pytest.mark.parametrize("size", SIZES, ids=str)
@three_ways
def test_sampling_through_velocity_is_the_stock_pipeline(
    make: Make, stock: Callable[..., Tensor], size: tuple[int, int], referenced: bool, zero_cond_t: bool,
    terminal: float | None,
) -> None:  # fmt: skip
    """With true guidance, and the stock pipeline's rescaling of every token to its conditional length."""
    backbone = make(zero_cond_t=zero_cond_t)
    prompts, negative, steps, scale = ["a red circle", "two blue squares, seen from far"], ["bad", "blurred"], 3, 4.0
    noise, (image, pixels) = torch.randn(2, 4, *size), _photo(size)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(backbone.scheduler.config, shift_terminal=terminal)
    expected = stock(
        backbone, image if referenced else None, scheduler, noise.clone(), prompt=list(prompts),
        negative_prompt=list(negative), num_inference_steps=steps, true_cfg_scale=scale,
    )  # fmt: skip

    text, without = backbone.encode_text(prompts), backbone.encode_text(negative)
    times = levels(steps, backbone.shift_for(size[0] * 4, size[1] * 4, steps))
    if terminal is not None:
        times = 1 - (1 - times) * (1 - terminal) / (1 - times[-1])
    x = noise
    with torch.no_grad():
        reference = backbone.encode_image(pixels).expand(2, -1, -1, -1) if referenced else None
        for level, following in itertools.pairwise([*times.tolist(), 0.0]):
            t = torch.full((2,), level)
            conditional, unconditional = (backbone.velocity(x, t, words, reference) for words in (text, without))
            v = guided(conditional, unconditional, torch.full((2,), scale))
            ratio = functional.pixel_unshuffle(conditional, 2).norm(dim=1) / functional.pixel_unshuffle(v, 2).norm(
                dim=1
            )
            x = x + (following - level) * v * ratio[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)
        images = backbone.decode_latents(x).clamp(0, 1)

    assert expected.std() > 0.01
    assert (expected[0] - expected[1]).abs().mean() > 0.01
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


@three_ways
def test_the_stock_pipeline_with_a_stochastic_scheduler_is_the_rollout(
    make: Make, stock: Callable[..., Tensor], referenced: bool, zero_cond_t: bool
) -> None:
    backbone, size, steps = make(zero_cond_t=zero_cond_t), (6, 10), 4
    first, (image, pixels) = torch.randn(2, 4, *size), _photo(size)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        backbone.scheduler.config, shift_terminal=None, stochastic_sampling=True
    )
    torch.manual_seed(7)
    expected = stock(
        backbone, image if referenced else None, scheduler, first.clone(), prompt=PROMPTS[:2],
        num_inference_steps=steps, true_cfg_scale=1.0,
    )  # fmt: skip

    torch.manual_seed(7)
    drawn = [_unpack(torch.randn(2, 3 * 5, 16), size) for _ in range(steps - 1)]
    text = backbone.encode_text(PROMPTS[:2])
    with torch.no_grad():
        reference = backbone.encode_image(pixels).expand(2, -1, -1, -1) if referenced else None
        x0 = rollout(
            lambda x, t: backbone.velocity(x, t, text, reference),
            torch.stack([first, *drawn]),
            sampler_levels(levels(steps, backbone.shift_for(24, 40, steps)), 2),
        )
        images = backbone.decode_latents(x0).clamp(0, 1)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert (images[0] - images[1]).abs().mean() > 0.01


@pytest.mark.parametrize("size", [(32, 32), (512, 512), (512, 768), (1024, 1024)], ids=str)
@pytest.mark.parametrize("steps", [2, 4, 50])
def test_levels_of_the_constant_shift_are_the_scheduler_s_but_for_the_terminal_stretch(
    qwen: QwenImageBackbone, size: tuple[int, int], steps: int
) -> None:
    ours = levels(steps, qwen.shift_for(*size, steps))
    mu = pipeline_qwenimage.calculate_shift(size[0] * size[1] // 8**2, 256, 8192, 0.5, 0.9)
    sigmas = {}
    for terminal in (None, 0.02):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(qwen.scheduler.config, shift_terminal=terminal)
        scheduler.set_timesteps(sigmas=[(steps - i) / steps for i in range(steps)], mu=mu)
        sigmas[terminal] = scheduler.sigmas[:-1]
    torch.testing.assert_close(ours, sigmas[None], atol=1e-6, rtol=0)
    stretched = 1 - (1 - ours) * 0.98 / (1 - ours[-1])
    torch.testing.assert_close(stretched, sigmas[0.02], atol=1e-6, rtol=0)
    # A constant shift has s = level (1 - u) / (u (1 - level)), the same at every u; the stretched schedule has not.
    u = torch.arange(steps - 1, 0, -1) / steps
    shifts = stretched[1:] * (1 - u) / (u * (1 - stretched[1:]))
    assert steps == 2 or shifts.max() > 1.05 * shifts.min()


def test_the_shift_depends_on_the_number_of_tokens(qwen: QwenImageBackbone) -> None:
    assert qwen.shift_for(32, 32, 4) < qwen.shift_for(512, 512, 4)
    assert qwen.shift_for(64, 512, 4) == qwen.shift_for(512, 64, 50) == qwen.shift_for(256, 128, 1)
    with pytest.raises(ConfigError, match="multiples of 8"):
        qwen.shift_for(60, 64, 4)


# --- text ---------------------------------------------------------------------------------------------------------


@three_ways
def test_padding_of_the_text_moves_nothing(make: Make, referenced: bool, zero_cond_t: bool) -> None:
    backbone = make(zero_cond_t=zero_cond_t)
    noisy, t, reference = _inputs(3)
    text, given = backbone.encode_text(PROMPTS), reference if referenced else None
    garbage = text.features.clone()
    for row, length in zip(garbage, text.lengths, strict=True):
        row[length:] = 100.0
    assert not torch.equal(garbage, text.features)
    longer = functional.pad(garbage, (0, 0, 0, 9), value=50.0)
    with torch.no_grad():
        expected = backbone.velocity(noisy, t, text, given)
        for features in (garbage, longer):
            assert torch.equal(backbone.velocity(noisy, t, Text(features, text.lengths), given), expected)


@three_ways
def test_every_valid_token_counts(make: Make, referenced: bool, zero_cond_t: bool) -> None:
    backbone = make(zero_cond_t=zero_cond_t)
    noisy, t, reference = _inputs(2)
    text, given = backbone.encode_text(PROMPTS[:2]), reference if referenced else None
    changed = text.features.clone()
    for row, length in zip(changed, text.lengths, strict=True):
        row[length - 1] = row[length - 1].roll(1)
    with torch.no_grad():
        difference = backbone.velocity(noisy, t, text, given) - backbone.velocity(
            noisy, t, Text(changed, text.lengths), given
        )
    assert (difference.abs().amax(dim=(1, 2, 3)) > 1e-4).all()


# --- independence of samples --------------------------------------------------------------------------------------


@three_ways
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_batch_is_its_samples(make: Make, size: tuple[int, int], referenced: bool, zero_cond_t: bool) -> None:
    backbone = make(zero_cond_t=zero_cond_t)
    noisy, t, reference = _inputs(3, size)
    with torch.no_grad():
        together = backbone.velocity(noisy, t, backbone.encode_text(PROMPTS), reference if referenced else None)
        for i in range(3):
            part = slice(i, i + 1)
            alone = backbone.velocity(
                noisy[part], t[part], backbone.encode_text(PROMPTS[part]), reference[part] if referenced else None
            )
            torch.testing.assert_close(together[part], alone, atol=EPSILON, rtol=0)
    assert together.shape == noisy.shape
    assert together.std() > 0.1


# --- the reference and gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_the_reference_changes_the_prediction_and_gets_gradient(make: Make, zero_cond_t: bool) -> None:
    backbone = make(zero_cond_t=zero_cond_t)
    noisy, t, reference = _inputs(2, (6, 10))
    text = backbone.encode_text(PROMPTS[:2])
    noisy.requires_grad_(True)
    reference.requires_grad_(True)
    v = backbone.velocity(noisy, t, text, reference)
    with torch.no_grad():
        assert (v - backbone.velocity(noisy, t, text)).abs().max() > 1e-3
        assert (v - backbone.velocity(noisy, t, text, reference.flip(-1))).abs().max() > 1e-3
    for gradient in torch.autograd.grad(v[0].square().sum(), [noisy, reference]):
        assert gradient[0].abs().min() > 0
        assert torch.count_nonzero(gradient[1]) == 0  # of the other sample


def test_reference_and_target_share_rows_and_columns_but_not_the_frame(make: Make) -> None:
    backbone = make()
    noisy, t, reference = _inputs(1, (6, 10))
    text = backbone.encode_text(PROMPTS[:1])
    seen: list[tuple[Tensor, Tensor]] = []
    backbone.transformer.pos_embed.register_forward_hook(
        lambda _, __, turns: seen.append(tuple(torch.view_as_real(turn).flatten(1) for turn in turns))
    )
    with torch.no_grad():
        backbone.velocity(noisy, t, text)
        backbone.velocity(noisy, t, text, reference)
    (alone, words), (both, words_again) = seen
    target, second = both.chunk(2)
    assert torch.equal(target, alone)
    assert torch.equal(words, words_again)
    assert torch.equal(second[:, 4:], target[:, 4:])  # cosine and sine of 2 frequencies are the frame's
    (first_frame,), (second_frame,) = (part[:, :4].unique(dim=0) for part in (target, second))
    assert first_frame.tolist() == [1, 0, 1, 0]  # not turned at all
    assert (second_frame - first_frame).abs().max() > 0.5
    assert len(target.unique(dim=0)) == 3 * 5  # every token its own place


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_the_reference_is_told_the_clean_time_if_the_config_says_so(make: Make, zero_cond_t: bool) -> None:
    backbone = make(zero_cond_t=zero_cond_t)
    noisy, t, reference = _inputs(2, (6, 10))
    seen: list[dict[str, Any]] = []
    backbone.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True
    )
    tell = backbone.transformer.time_text_embed
    with torch.no_grad():
        backbone.velocity(noisy, t, backbone.encode_text(PROMPTS[:2]), reference)
        expected = tell(torch.cat([t, torch.zeros(2)]), noisy)
    (told,) = seen
    if zero_cond_t:
        torch.testing.assert_close(told["temb"], expected)
        assert told["modulate_index"].tolist() == [[0] * 15 + [1] * 15] * 2
    else:
        torch.testing.assert_close(told["temb"], expected[:2])
        assert told["modulate_index"] is None
    embed = backbone.transformer.img_in
    torch.testing.assert_close(told["hidden_states"], embed(torch.cat([_pack(noisy), _pack(reference)], dim=1)))


@three_ways
def test_checkpointing_does_not_change_gradients(make: Make, referenced: bool, zero_cond_t: bool) -> None:
    backbone = make(zero_cond_t=zero_cond_t)
    noisy, t, reference = _inputs(2)
    text = backbone.encode_text(PROMPTS[1:])
    inputs = [noisy.requires_grad_(True), *([reference.requires_grad_(True)] if referenced else [])]
    named = dict(backbone.transformer.named_parameters())
    unread = ("txt_mlp", "to_add_out", "add_q", "added_q")  # nothing asks what the last block makes of the text
    dead = {name for name in named if name.startswith("transformer_blocks.1.") and any(part in name for part in unread)}

    def gradients() -> list[Tensor]:
        v = backbone.velocity(noisy, t, text, reference if referenced else None)
        living = [parameter for name, parameter in named.items() if name not in dead]
        return list(torch.autograd.grad(v.square().mean(), [*inputs, *living]))

    plain = gradients()
    calls = []
    backbone.transformer.enable_gradient_checkpointing()
    backbone.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2  # forward, and again in backward
    assert all(gradient.abs().max() > 0 for gradient in plain)  # of every parameter
    torch.testing.assert_close(checkpointed, plain, atol=0, rtol=0)


# --- roles --------------------------------------------------------------------------------------------------------


def _asked(backbone: Backbone) -> Tensor:
    """A loss at fixed inputs, with a reference."""
    torch.manual_seed(1)
    noisy, t, reference = _inputs(2, (6, 10))
    return backbone.velocity(noisy, t, backbone.encode_text(PROMPTS[1:]), reference).square().mean()


@pytest.mark.parametrize("role", TRAINED)
def test_adapters_get_the_gradients_of_their_weights_under_checkpointing(make: Make, role: Role) -> None:
    """For W + s B A, with G the gradient of the merged weight: that of B is s G A', that of A is s B' G."""
    backbone = make(zero_cond_t=True)
    with torch.no_grad():
        teacher = _asked(backbone)
    rank, alpha = 2, 4.0
    roles = LoraRoles.of(backbone, rank=rank, alpha=alpha, targets=["to_q", "to_k", "to_v"], seed=0)
    with torch.no_grad():
        for trained in TRAINED:
            for parameter in roles.trainable(trained).values():
                parameter += 0.1 * torch.randn_like(parameter)
    weights = roles.trainable(role)
    merged = roles.export(role, weights).requires_grad_(True)
    _asked(backbone.with_transformer(merged)).backward()

    backbone.transformer.enable_gradient_checkpointing()
    loss = _asked({"student": roles.student, "fake": roles.fake}[role])
    with torch.no_grad():
        others = [_asked(view) for view in (roles.student, roles.fake, roles.teacher)]
    torch.testing.assert_close(others[2], teacher, atol=0, rtol=0)
    assert len({float(other) for other in others}) == 3
    roles.backward(loss, role)
    layers = [name for name, module in backbone.transformer.named_modules() if isinstance(module, LoraLayer)]
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


def test_adapters_of_every_kind_of_layer_train_on_a_half_precision_base(make: Make) -> None:
    backbone = make()
    backbone.transformer.bfloat16()
    targets = ["to_q", "to_out.0", "add_k_proj", "img_mod.1", "img_in", "txt_in", "linear_1", "proj_out"]
    roles = LoraRoles.of(backbone, rank=2, alpha=2.0, targets=targets, seed=0)
    roles.backward(_asked(roles.student), "student")
    for name, parameter in roles.trainable("student").items():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad.abs().max() > 0) == name.endswith("lora_B.weight")  # B is zero, so A has none yet
