import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from nopair.backbones.base import Backbone
from nopair.backbones.roles import TRAINED, FullRoles, LoraRoles, Roles
from nopair.backbones.sd3 import StableDiffusion3Backbone
from nopair.backbones.sd3_reference import REFERENCE_MODULE, accept_reference
from nopair.backbones.sd3_texts import T5_TOKENS
from nopair.errors import ConfigError
from nopair.types import Text

PROMPTS = ["a red circle", "", "a much longer prompt, longer than what both of the small tokenizers take at once"]
TOKENS = 24 + T5_TOKENS
SIZES = [(16, 16), (12, 20), (20, 12)]
EPSILON = 2e-5
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", REFERENCE_MODULE)
Wake = Callable[[StableDiffusion3Backbone], StableDiffusion3Backbone]
MakeTransformer = Callable[..., SD3Transformer2DModel]

with_and_without_reference = pytest.mark.parametrize("referenced", [False, True], ids=["plain", "reference"])


def _inputs(batch: int, size: tuple[int, int] = (16, 16)) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, times, reference latents."""
    return torch.randn(batch, 4, *size), torch.rand(batch), torch.randn(batch, 4, *size)


# --- the base's own generation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("t5", [True, False], ids=["t5", "no t5"])
def test_sampling_through_velocity_is_the_stock_pipeline(
    make_pipeline: Callable[[bool], StableDiffusion3Pipeline],
    publish: Callable[[StableDiffusion3Pipeline, Path], None],
    t5: bool,
    size: tuple[int, int],
    tmp_path: Path,
) -> None:
    pipeline = make_pipeline(t5)
    publish(pipeline, tmp_path)
    backbone = StableDiffusion3Backbone.load(tmp_path)
    assert (backbone.text_encoder_3 is None, backbone.shift) == (not t5, 2.5)
    prompts, steps, scale = ["a red circle", "two blue squares on a striped ground, seen from far"], 3, 4.0
    latents = torch.randn(2, 4, *size)
    expected = pipeline(
        list(prompts), height=4 * size[0], width=4 * size[1], latents=latents.clone(), num_inference_steps=steps,
        guidance_scale=scale, output_type="pt",
    ).images  # fmt: skip

    text, empty = backbone.encode_text(prompts), backbone.encode_text(["", ""])
    # Stock sampling shifts twice: equal steps lead to the shifted time of the last of 1,000, and are shifted again.
    uniform = torch.linspace(1, 2.5 * 0.001 / (1 + 1.5 * 0.001), steps)
    levels = [*(2.5 * uniform / (1 + 1.5 * uniform)).tolist(), 0.0]
    x = latents
    with torch.no_grad():
        for level, following in itertools.pairwise(levels):
            t = torch.full((2,), level)
            unconditional = backbone.velocity(x, t, empty)
            v = unconditional + scale * (backbone.velocity(x, t, text) - unconditional)
            x = x + (following - level) * v
        images = backbone.decode_latents(x).clamp(0, 1)

    assert expected.std() > 0.01
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_without_a_reference_it_is_the_stock_transformer(
    stock: StableDiffusion3Pipeline, awake: StableDiffusion3Backbone, size: tuple[int, int]
) -> None:
    noisy, t, _ = _inputs(3, size)
    text = awake.encode_text(PROMPTS)
    with torch.no_grad():
        expected = stock.transformer(noisy, text.features, text.pooled, 1000 * t).sample
        torch.testing.assert_close(awake.velocity(noisy, t, text), expected, atol=1e-6, rtol=1e-6)


# --- the reference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_at_the_start_a_reference_changes_no_bit(fresh: StableDiffusion3Backbone, size: tuple[int, int]) -> None:
    noisy, t, reference = _inputs(3, size)
    text = fresh.encode_text(PROMPTS)
    with torch.no_grad():
        assert torch.equal(fresh.velocity(noisy, t, text, 100 * reference), fresh.velocity(noisy, t, text))


def test_at_the_start_the_reference_already_teaches(backbone: StableDiffusion3Backbone) -> None:
    noisy, t, reference = _inputs(2)
    text = backbone.encode_text(PROMPTS[:2])
    weight = backbone.transformer.get_submodule(REFERENCE_MODULE).get_parameter("weight")
    assert torch.count_nonzero(weight[:, 4:]) == 0
    loss = (backbone.velocity(noisy, t, text, reference) - reference).square().mean()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert (gradient[:, 4:] != 0).all()
    with torch.no_grad():
        weight -= 0.5 * gradient
        assert (backbone.velocity(noisy, t, text, reference) - reference).square().mean() < loss


def test_the_reference_changes_the_prediction_and_gets_gradient(awake: StableDiffusion3Backbone) -> None:
    noisy, t, reference = _inputs(2)
    text = awake.encode_text(PROMPTS[:2])
    noisy.requires_grad_(True)
    reference.requires_grad_(True)
    v = awake.velocity(noisy, t, text, reference)
    with torch.no_grad():
        assert (v - awake.velocity(noisy, t, text)).abs().max() > 1e-3
        assert (v - awake.velocity(noisy, t, text, reference.flip(-1))).abs().max() > 1e-3
    parameters = dict(awake.transformer.named_parameters())
    inputs = [noisy, reference]
    of_noisy, of_reference, *others = torch.autograd.grad(v[0].square().sum(), [*inputs, *parameters.values()])
    for gradient in (of_noisy, of_reference):
        assert gradient[0].abs().min() > 0
        assert torch.count_nonzero(gradient[1]) == 0  # of the other sample
    silent = {name for name, gradient in zip(parameters, others, strict=True) if not gradient.abs().max() > 0}
    # Nothing comes after the last block's text.
    last = "transformer_blocks.2.attn."
    assert silent == {f"{last}{name}" for name in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")}


def test_each_place_is_handed_its_own_piece_of_the_reference_and_all_of_it(awake: StableDiffusion3Backbone) -> None:
    noisy, _, reference = _inputs(1, (12, 20))
    embed = awake.transformer.pos_embed
    with torch.no_grad():
        plain = embed(torch.cat([noisy, reference], dim=1))
        for row, column in itertools.product((0, 7, 11), (0, 9, 19)):
            moved = reference.clone()
            moved[0, 1, row, column] += 1
            changed = (embed(torch.cat([noisy, moved], dim=1)) - plain).abs().amax(dim=2)[0]
            assert changed.nonzero().flatten().tolist() == [row // 2 * 10 + column // 2]
    assert awake.reference_rank == 16
    assert torch.linalg.matrix_rank(embed.proj.weight[:, 4:].flatten(1)) == 16


def test_only_a_text_to_image_transformer_is_widened_and_only_once(make_transformer: MakeTransformer) -> None:
    narrow = make_transformer().requires_grad_(False)
    old = narrow.pos_embed.proj.weight.clone()
    wide = accept_reference(narrow)
    assert wide is narrow
    assert (wide.config["in_channels"], wide.config["out_channels"]) == (8, 4)
    weight = wide.pos_embed.proj.weight
    assert torch.equal(weight, torch.cat([old, torch.zeros_like(old)], dim=1))
    assert not weight.requires_grad
    assert accept_reference(wide).pos_embed.proj.weight is weight
    implied = accept_reference(make_transformer(out_channels=None))
    assert (implied.config["in_channels"], implied.config["out_channels"]) == (8, 4)
    with pytest.raises(ValueError, match="9 input channels"):
        accept_reference(make_transformer(in_channels=9))


# --- independence of samples --------------------------------------------------------------------------------------


@with_and_without_reference
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_batch_is_its_samples(awake: StableDiffusion3Backbone, size: tuple[int, int], referenced: bool) -> None:
    noisy, t, reference = _inputs(3, size)
    with torch.no_grad():
        together = awake.velocity(noisy, t, awake.encode_text(PROMPTS), reference if referenced else None)
        alone = [
            awake.velocity(
                noisy[i : i + 1],
                t[i : i + 1],
                awake.encode_text([PROMPTS[i]]),
                reference[i : i + 1] if referenced else None,
            )
            for i in range(3)
        ]
    assert together.shape == noisy.shape
    torch.testing.assert_close(together, torch.cat(alone), atol=EPSILON, rtol=0)


# --- text ---------------------------------------------------------------------------------------------------------


def test_text_is_the_pipelines(stock: StableDiffusion3Pipeline, fresh: StableDiffusion3Backbone) -> None:
    with torch.no_grad():
        features, _, pooled, _ = stock.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    text = fresh.encode_text(PROMPTS)
    assert torch.equal(text.features, features)
    assert text.pooled is not None
    assert torch.equal(text.pooled, pooled)
    assert text.lengths == (TOKENS,) * 3
    assert text.pooled.shape == (3, 20)


def test_long_prompts_are_cut_and_text_has_no_gradient(backbone: StableDiffusion3Backbone) -> None:
    for encoder in (backbone.text_encoder, backbone.text_encoder_2, backbone.text_encoder_3):
        assert encoder is not None
        encoder.requires_grad_(True)
    text, longer = (backbone.encode_text(["x" * length]) for length in (T5_TOKENS + 10, T5_TOKENS + 20))
    assert text.lengths == (TOKENS,)
    assert torch.equal(text.features, longer.features)
    assert text.pooled is not None
    assert not text.features.requires_grad
    assert not text.pooled.requires_grad


def test_padding_counts_as_in_the_base_and_so_does_the_pooled_prompt(awake: StableDiffusion3Backbone) -> None:
    noisy, t, reference = _inputs(1)
    text = awake.encode_text([""])
    assert text.pooled is not None
    changed = text.features.clone()
    changed[0, -1] += 1
    others = Text(changed, text.lengths, text.pooled), Text(text.features, text.lengths, text.pooled.flip(1))
    with torch.no_grad():
        v = awake.velocity(noisy, t, text, reference)
        for other in others:
            assert (awake.velocity(noisy, t, other, reference) - v).abs().max() > 1e-4


def test_other_text_is_refused(fresh: StableDiffusion3Backbone) -> None:
    noisy, t, _ = _inputs(2)
    text = fresh.encode_text(PROMPTS[:2])
    for wrong in (Text(text.features, text.lengths), Text(text.features, (TOKENS, TOKENS - 1), text.pooled)):
        with pytest.raises(ValueError, match="pooled prompts, and cannot mask"):
            fresh.velocity(noisy, t, wrong)


# --- gradients ----------------------------------------------------------------------------------------------------


@with_and_without_reference
def test_checkpointing_does_not_change_gradients(
    backbone: StableDiffusion3Backbone, wake: Wake, referenced: bool
) -> None:
    noisy, t, reference = _inputs(2)
    text = wake(backbone).encode_text(PROMPTS[1:])

    def gradients() -> list[Tensor]:
        v = backbone.velocity(noisy, t, text, reference if referenced else None)
        return list(torch.autograd.grad(v.square().mean(), list(backbone.transformer.parameters())))

    plain = gradients()
    calls = []
    backbone.transformer.enable_gradient_checkpointing()
    backbone.transformer.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2  # forward, and again in backward
    torch.testing.assert_close(checkpointed, plain, atol=0, rtol=0)


# --- roles --------------------------------------------------------------------------------------------------------


def _lora(backbone: Backbone) -> LoraRoles:
    return LoraRoles.of(backbone, rank=16, alpha=16.0, targets=TARGETS, seed=0)


def _predict(backbone: Backbone, referenced: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noisy, reference = torch.randn(2, 2, 4, 12, 16, generator=generator)
    text = backbone.encode_text(PROMPTS[:2])
    return backbone.velocity(noisy, torch.tensor([0.3, 0.9]), text, reference if referenced else None)


@pytest.mark.parametrize("make", [FullRoles.of, _lora], ids=["full", "lora"])
def test_roles_start_alike_learn_the_reference_apart_and_export_it(
    make: Callable[[Backbone], Roles], backbone: StableDiffusion3Backbone, tmp_path: Path
) -> None:
    with torch.no_grad():
        expected = _predict(backbone, referenced=False)
    names = list(backbone.transformer.state_dict())
    roles = make(backbone)
    views = {"student": roles.student, "fake": roles.fake}
    with torch.no_grad():
        for view in (*views.values(), roles.teacher):
            assert torch.equal(_predict(view), expected)

    for role in TRAINED:
        optimizer = torch.optim.SGD(list(roles.trainable(role).values()), lr=0.02)
        for _ in range(2):  # an adapter's first step only moves B
            optimizer.zero_grad()
            roles.backward(_predict(views[role]).square().mean() * (1 if role == "student" else -1), role)
            optimizer.step()
    with torch.no_grad():
        assert torch.equal(_predict(roles.teacher), expected)
        trained = {role: _predict(view) for role, view in views.items()}
        for role, view in views.items():
            assert (trained[role] - _predict(view, referenced=False)).abs().max() > 1e-4
        assert (trained["student"] - trained["fake"]).abs().max() > 1e-4
        for role in TRAINED:
            exported = roles.export(role, roles.trainable(role))
            assert list(exported.state_dict()) == names
            backbone.with_transformer(exported).save(tmp_path / role)
            loaded = _predict(StableDiffusion3Backbone.load(tmp_path / role))
            torch.testing.assert_close(loaded, trained[role], atol=1e-5, rtol=1e-5)


def test_an_adapter_passes_on_all_of_the_reference_or_is_refused(backbone: StableDiffusion3Backbone) -> None:
    for rank in (3, 15):
        with pytest.raises(ConfigError, match=r"base\.lora\.ranks=\{pos_embed\.proj: 16\}"):
            LoraRoles.of(backbone, rank=rank, alpha=1.0, targets=[REFERENCE_MODULE], seed=0)
    roles = LoraRoles.of(backbone, rank=16, alpha=1.0, targets=[REFERENCE_MODULE], seed=0)
    weights = {name: torch.randn_like(parameter) for name, parameter in roles.trainable("student").items()}
    assert {name.rpartition(".lora_")[0] for name in weights} == {REFERENCE_MODULE}
    exported = roles.export("student", weights).get_submodule(REFERENCE_MODULE).get_parameter("weight")
    assert torch.linalg.matrix_rank(exported[:, 4:].flatten(1)) == backbone.reference_rank == 16


def test_adapters_are_float32_on_a_half_precision_base(backbone: StableDiffusion3Backbone) -> None:
    backbone.transformer.bfloat16()
    targets = [REFERENCE_MODULE, "proj_out", "to_q"]
    roles = LoraRoles.of(backbone, rank=2, alpha=2.0, targets=targets, seed=0, ranks=backbone.adapter_ranks)
    roles.backward(_predict(roles.student).square().mean(), "student")
    parameters = roles.trainable("student")
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    gradient = parameters[f"{REFERENCE_MODULE}.lora_B.weight"].grad
    assert gradient is not None
    assert gradient.abs().max() > 0


# --- pixels and latents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.3, None])
def test_latents_are_the_scaled_and_shifted_mode(backbone: StableDiffusion3Backbone, offset: float | None) -> None:
    backbone.vae.register_to_config(shift_factor=offset)
    pixels = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        mode = backbone.vae.encode(pixels * 2 - 1).latent_dist.mode()
        latents = backbone.encode_image(pixels)
        torch.testing.assert_close(latents, (mode - (offset or 0.0)) * 0.7)
        torch.testing.assert_close(backbone.decode_latents(latents), backbone.vae.decode(mode).sample / 2 + 0.5)
    assert torch.equal(latents, backbone.encode_image(pixels))


def test_decoding_is_differentiable_and_not_clamped(fresh: StableDiffusion3Backbone) -> None:
    latents = torch.randn(1, 4, 8, 8).mul(50).requires_grad_(True)
    pixels = fresh.decode_latents(latents)
    assert pixels.min() < 0 or pixels.max() > 1
    pixels.square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().min() > 0


def test_latent_shape_is_the_shape_of_latents_up_to_the_last_position(fresh: StableDiffusion3Backbone) -> None:
    assert fresh.pixel_multiple == 8
    text = fresh.encode_text([""])
    for size in ((8, 8), (16, 40), (88, 24), (88, 88)):
        shape = fresh.latent_shape(*size)
        assert shape == tuple(fresh.encode_image(torch.rand(1, 3, *size)).shape[1:])
        with torch.no_grad():
            assert fresh.velocity(torch.randn(1, *shape), torch.rand(1), text).shape[1:] == shape


@pytest.mark.parametrize("size", [(0, 8), (12, 16), (16, 12), (-8, 8), (96, 8), (8, 96)])
def test_sizes_that_do_not_fit_are_refused(fresh: StableDiffusion3Backbone, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="at most 88x88" if 96 in size else "multiples of 8"):
        fresh.latent_shape(*size)


# --- other configurations -----------------------------------------------------------------------------------------


def test_full_size_has_the_published_number_of_parameters() -> None:
    """transformer/config.json and the "2.5 billion" of huggingface.co/stabilityai/stable-diffusion-3.5-medium.

    They count what is in the file, the table of positions (384 x 384 x 1536) with it.
    """
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24, num_attention_heads=24,
            attention_head_dim=64, joint_attention_dim=4096, caption_projection_dim=1536, pooled_projection_dim=2048,
            pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm",
        )  # fmt: skip
    before = sum(tensor.numel() for tensor in transformer.state_dict().values())
    after = sum(tensor.numel() for tensor in accept_reference(transformer).state_dict().values())
    assert before == pytest.approx(2.5e9, rel=0.05)
    assert after - before == 1536 * 64


@pytest.mark.parametrize(
    "changes", [{"patch_size": 1}, {"qk_norm": None, "dual_attention_layers": ()}], ids=["patch", "3.0"]
)
def test_the_architecture_comes_from_the_config(
    fresh: StableDiffusion3Backbone, make_transformer: MakeTransformer, changes: dict[str, object]
) -> None:
    transformer = accept_reference(make_transformer(**changes))
    backbone = fresh.with_transformer(transformer)
    noisy, t, reference = _inputs(2, (6, 10))
    with torch.no_grad():
        assert backbone.velocity(noisy, t, backbone.encode_text(PROMPTS[:2]), reference).shape == noisy.shape
    assert backbone.pixel_multiple == 4 * transformer.config["patch_size"]
    assert backbone.reference_rank == 4 * transformer.config["patch_size"] ** 2


def test_half_precision_weights_take_and_give_float32(folder: Path, awake: StableDiffusion3Backbone) -> None:
    half = StableDiffusion3Backbone.load(folder, torch.bfloat16)
    noisy, t, reference = _inputs(2)
    with torch.no_grad():
        exact = awake.velocity(noisy, t, awake.encode_text(PROMPTS[:2]), reference)
        rounded = half.velocity(noisy, t, half.encode_text(PROMPTS[:2]), reference)
        pixels = half.decode_latents(half.encode_image(torch.rand(1, 3, 16, 16)))
    assert rounded.dtype == pixels.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_parts_that_do_not_belong_are_refused(fresh: StableDiffusion3Backbone, stock: StableDiffusion3Pipeline) -> None:
    with pytest.raises(TypeError, match="SD3Transformer2DModel"):
        fresh.with_transformer(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="accept_reference"):
        fresh.with_transformer(stock.transformer)
    with pytest.raises(ValueError, match="both None or neither"):
        dataclasses.replace(fresh, text_encoder_3=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fresh.shift = 1.0  # pyright: ignore
