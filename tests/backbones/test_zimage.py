import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor

from nopair.backbones.zimage import MAX_TOKENS, ZImageBackbone
from nopair.errors import ConfigError, ModelError, OutputError
from nopair.types import Text

PROMPTS = ["a red circle", "", "a much longer prompt, long enough to need more than one block of thirty-two tokens"]
SIZES = [(16, 16), (12, 20), (20, 12)]  # 12x20 latents make 60 tokens, which the library pads to 64
EPSILON = 2e-5

with_and_without_reference = pytest.mark.parametrize("referenced", [False, True], ids=["plain", "reference"])


def _inputs(batch: int, size: tuple[int, int] = (16, 16)) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, times, reference latents."""
    return torch.randn(batch, 4, *size), torch.rand(batch), torch.randn(batch, 4, *size)


def _other_transformer(backbone: ZImageBackbone, **changes: object) -> ZImageTransformer2DModel:
    config = {key: value for key, value in backbone.transformer.config.items() if not key.startswith("_")}
    return ZImageTransformer2DModel(**{**config, **changes}).eval()


@pytest.fixture(scope="module")
def folder(shared_backbone: ZImageBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zimage") / "model"
    shared_backbone.save(path)
    return path


# --- the base's own generation ------------------------------------------------------------------------------------


def test_sampling_through_velocity_is_the_stock_pipeline(shared_backbone: ZImageBackbone, folder: Path) -> None:
    prompts, steps, scale, shift = ["a red circle", "two blue squares on a striped ground, seen from far"], 3, 4.0, 3.0
    latents = torch.randn(2, 4, 16, 16)
    pipeline = ZImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        list(prompts), height=64, width=64, latents=latents.clone(), num_inference_steps=steps, guidance_scale=scale,
        output_type="pt",
    ).images  # fmt: skip

    text, empty = shared_backbone.encode_text(prompts), shared_backbone.encode_text(["", ""])
    uniform = torch.linspace(1, 1 / steps, steps)
    levels = [*(shift * uniform / (1 + (shift - 1) * uniform)).tolist(), 0.0]
    x = latents
    with torch.no_grad():
        for level, following in itertools.pairwise(levels):
            t = torch.full((2,), level)
            conditional = shared_backbone.velocity(x, t, text)
            v = conditional + scale * (conditional - shared_backbone.velocity(x, t, empty))
            x = x + (following - level) * v
        images = shared_backbone.decode_latents(x).clamp(0, 1)

    assert expected.std() > 0.01
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


def test_a_saved_model_loads_as_it_was(shared_backbone: ZImageBackbone, folder: Path) -> None:
    noisy, t, reference = _inputs(3)
    loaded = ZImageBackbone.load(folder)
    assert loaded.shift == shared_backbone.shift
    with torch.no_grad():
        expected = shared_backbone.velocity(noisy, t, shared_backbone.encode_text(PROMPTS), reference)
        assert torch.equal(loaded.velocity(noisy, t, loaded.encode_text(PROMPTS), reference), expected)
    assert not any(p.requires_grad for module in (loaded.vae, loaded.text_encoder) for p in module.parameters())


# --- independence of samples and of padding -----------------------------------------------------------------------


@with_and_without_reference
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_batch_is_its_samples(shared_backbone: ZImageBackbone, size: tuple[int, int], referenced: bool) -> None:
    noisy, t, reference = _inputs(3, size)
    with torch.no_grad():
        together = shared_backbone.velocity(
            noisy, t, shared_backbone.encode_text(PROMPTS), reference if referenced else None
        )
        alone = [
            shared_backbone.velocity(
                noisy[i : i + 1],
                t[i : i + 1],
                shared_backbone.encode_text([PROMPTS[i]]),
                reference[i : i + 1] if referenced else None,
            )
            for i in range(3)
        ]
    assert together.shape == noisy.shape
    torch.testing.assert_close(together, torch.cat(alone), atol=EPSILON, rtol=0)


@with_and_without_reference
def test_padding_of_the_text_moves_nothing(shared_backbone: ZImageBackbone, referenced: bool) -> None:
    noisy, t, reference = _inputs(3)
    text = shared_backbone.encode_text(PROMPTS)
    garbage = text.features.clone()
    for row, length in zip(garbage, text.lengths, strict=True):
        row[length:] = 100.0
    assert not torch.equal(garbage, text.features)
    with torch.no_grad():
        given = reference if referenced else None
        expected = shared_backbone.velocity(noisy, t, text, given)
        assert torch.equal(shared_backbone.velocity(noisy, t, Text(garbage, text.lengths), given), expected)


@with_and_without_reference
def test_every_valid_token_counts(shared_backbone: ZImageBackbone, referenced: bool) -> None:
    noisy, t, reference = _inputs(1)
    text = shared_backbone.encode_text(PROMPTS[:1])
    changed = text.features.clone()
    changed[0, -1] = changed[0, -1].roll(1)
    with torch.no_grad():
        given = reference if referenced else None
        difference = shared_backbone.velocity(noisy, t, text, given) - shared_backbone.velocity(
            noisy, t, Text(changed, text.lengths), given
        )
    assert difference.abs().max() > 1e-4


# --- text ---------------------------------------------------------------------------------------------------------


def test_text_is_left_aligned_whichever_side_the_tokenizer_pads(backbone: ZImageBackbone) -> None:
    right = backbone.encode_text(PROMPTS)
    backbone.tokenizer.padding_side = "left"
    left = backbone.encode_text(PROMPTS)
    assert left.lengths == right.lengths
    assert len(set(right.lengths)) == 3
    torch.testing.assert_close(left.features, right.features, atol=EPSILON, rtol=0)
    for row, length in zip(right.features, right.lengths, strict=True):
        assert torch.count_nonzero(row[length:]) == 0
        assert (row[:length].abs().sum(dim=1) > 0).all()


def test_long_prompts_are_cut_and_text_has_no_gradient(backbone: ZImageBackbone) -> None:
    backbone.text_encoder.requires_grad_(True)
    text = backbone.encode_text(["x" * 2 * MAX_TOKENS])
    assert text.lengths == (MAX_TOKENS,)
    assert not text.features.requires_grad


@pytest.mark.parametrize(("frames", "tokens"), [(100, 96), (99, 64), (1024, MAX_TOKENS)])
def test_the_longest_prompt_fits_the_rotary_table(shared_backbone: ZImageBackbone, frames: int, tokens: int) -> None:
    backbone = shared_backbone.with_transformer(_other_transformer(shared_backbone, axes_lens=[frames, 64, 64]))
    noisy, t, reference = _inputs(1)
    text = backbone.encode_text(["x" * 1000])
    assert text.lengths == (tokens,)
    with torch.no_grad():
        for given in (None, reference):
            assert backbone.velocity(noisy, t, text, given).isfinite().all()


# --- the reference ------------------------------------------------------------------------------------------------


def test_the_reference_changes_the_prediction_and_gets_gradient(shared_backbone: ZImageBackbone) -> None:
    noisy, t, reference = _inputs(2)
    text = shared_backbone.encode_text(PROMPTS[:2])
    noisy.requires_grad_(True)
    reference.requires_grad_(True)
    v = shared_backbone.velocity(noisy, t, text, reference)
    with torch.no_grad():
        assert (v - shared_backbone.velocity(noisy, t, text)).abs().max() > 1e-3
        assert (v - shared_backbone.velocity(noisy, t, text, reference.flip(-1))).abs().max() > 1e-3
    gradients = torch.autograd.grad(v[0].square().sum(), [noisy, reference])
    for gradient in gradients:
        assert gradient[0].abs().min() > 0
        assert torch.count_nonzero(gradient[1]) == 0  # of the other sample


def test_reference_and_target_share_rows_and_columns_but_not_the_frame(
    backbone: ZImageBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy, t, reference = _inputs(1, (12, 20))
    text = backbone.encode_text(PROMPTS[:1])
    rope, seen = backbone.transformer.rope_embedder, []

    def record(ids: Tensor) -> Tensor:
        seen.append(ids)
        return rope(ids)

    monkeypatch.setattr(backbone.transformer, "rope_embedder", record)
    with torch.no_grad():
        backbone.velocity(noisy, t, text, reference)
    images, prompt = seen
    count, padded = 6 * 10, 64
    first, second = images[:count], images[padded : padded + count]
    length = text.lengths[0]
    assert torch.equal(first[:, 1:], second[:, 1:])
    assert first[:, 1:].tolist() == [[row, column] for row in range(6) for column in range(10)]
    assert set(first[:, 0].tolist()) == {1}
    assert set(second[:, 0].tolist()) == {length + 3}
    assert prompt[:length].tolist() == [[place + 3, 0, 0] for place in range(length)]


def test_only_the_reference_is_told_the_clean_time(backbone: ZImageBackbone) -> None:
    noisy, t, reference = _inputs(2)
    seen, patches = [], []
    backbone.transformer.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    backbone.transformer.all_x_embedder["2-1"].register_forward_pre_hook(lambda _, inputs: patches.append(inputs[0]))
    with torch.no_grad():
        backbone.velocity(noisy, t, backbone.encode_text([PROMPTS[0], PROMPTS[0]]), reference)
        tell = backbone.transformer.t_embedder
        *_, is_noisy, time, clean_time = seen[0]
        torch.testing.assert_close(time, tell((1 - t) * 1000))
        torch.testing.assert_close(clean_time, tell(torch.full((2,), 1000.0)))
    tokens, image = is_noisy.shape[1], 64
    assert is_noisy.tolist() == [[1] * (tokens - 2 * image) + [0] * image + [1] * image] * 2
    first, last = patches[0].view(2, 2, image, -1).sum(dim=(2, 3)).unbind(1)
    torch.testing.assert_close(first, reference.sum(dim=(1, 2, 3)))
    torch.testing.assert_close(last, noisy.sum(dim=(1, 2, 3)))


# --- gradients ----------------------------------------------------------------------------------------------------


@with_and_without_reference
def test_checkpointing_does_not_change_gradients(backbone: ZImageBackbone, referenced: bool) -> None:
    noisy, t, reference = _inputs(2)
    text = backbone.encode_text(PROMPTS[1:])

    def gradients() -> list[Tensor]:
        v = backbone.velocity(noisy, t, text, reference if referenced else None)
        return list(torch.autograd.grad(v.square().mean(), list(backbone.transformer.parameters()), allow_unused=True))

    plain = gradients()
    calls = []
    backbone.transformer.enable_gradient_checkpointing()
    backbone.transformer.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2  # forward, and again in backward
    assert sum(gradient is not None for gradient in plain) > 50
    torch.testing.assert_close(checkpointed, plain, atol=0, rtol=0)


# --- pixels and latents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.3, None])
def test_latents_are_the_scaled_and_shifted_mode(backbone: ZImageBackbone, offset: float | None) -> None:
    backbone.vae.register_to_config(shift_factor=offset)
    pixels = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        mode = backbone.vae.encode(pixels * 2 - 1).latent_dist.mode()
        latents = backbone.encode_image(pixels)
        torch.testing.assert_close(latents, (mode - (offset or 0.0)) * 0.7)
        torch.testing.assert_close(backbone.decode_latents(latents), backbone.vae.decode(mode).sample / 2 + 0.5)
    assert torch.equal(latents, backbone.encode_image(pixels))


def test_decoding_is_differentiable_and_not_clamped(shared_backbone: ZImageBackbone) -> None:
    latents = torch.randn(1, 4, 8, 8).mul(50).requires_grad_(True)
    pixels = shared_backbone.decode_latents(latents)
    assert pixels.min() < 0 or pixels.max() > 1
    pixels.square().sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().min() > 0


@pytest.mark.parametrize("size", [(8, 8), (16, 40), (64, 24)])
def test_latent_shape_is_the_shape_of_latents(shared_backbone: ZImageBackbone, size: tuple[int, int]) -> None:
    assert shared_backbone.latent_shape(*size) == tuple(shared_backbone.encode_image(torch.rand(1, 3, *size)).shape[1:])


@pytest.mark.parametrize("size", [(0, 8), (12, 16), (16, 12), (-8, 8)])
def test_sizes_that_do_not_divide_are_refused(shared_backbone: ZImageBackbone, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="multiples of 8"):
        shared_backbone.latent_shape(*size)


def test_the_largest_image_fits_the_rotary_table(shared_backbone: ZImageBackbone) -> None:
    backbone = shared_backbone.with_transformer(_other_transformer(shared_backbone, axes_lens=[64, 2, 3]))
    assert backbone.latent_shape(16, 24) == (4, 4, 6)
    with torch.no_grad():
        noisy, t, reference = _inputs(1, (4, 6))
        backbone.velocity(noisy, t, backbone.encode_text([""]), reference)
    for size in ((24, 24), (16, 32)):
        with pytest.raises(ConfigError, match="at most 16x24"):
            backbone.latent_shape(*size)


# --- other configurations -----------------------------------------------------------------------------------------


def test_the_patch_size_comes_from_the_config(shared_backbone: ZImageBackbone) -> None:
    backbone = shared_backbone.with_transformer(_other_transformer(shared_backbone, all_patch_size=[1]))
    noisy, t, reference = _inputs(2, (5, 7))
    with torch.no_grad():
        assert backbone.velocity(noisy, t, backbone.encode_text(PROMPTS[:2]), reference).shape == noisy.shape
    assert backbone.latent_shape(20, 28) == (4, 5, 7)


def test_half_precision_weights_take_and_give_float32(folder: Path, shared_backbone: ZImageBackbone) -> None:
    half = ZImageBackbone.load(folder, torch.bfloat16)
    noisy, t, reference = _inputs(2)
    with torch.no_grad():
        exact = shared_backbone.velocity(noisy, t, shared_backbone.encode_text(PROMPTS[:2]), reference)
        rounded = half.velocity(noisy, t, half.encode_text(PROMPTS[:2]), reference)
        pixels = half.decode_latents(half.encode_image(torch.rand(1, 3, 16, 16)))
    assert rounded.dtype == pixels.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_with_transformer_wants_its_own_family(shared_backbone: ZImageBackbone) -> None:
    with pytest.raises(TypeError, match="ZImageTransformer2DModel"):
        shared_backbone.with_transformer(torch.nn.Linear(1, 1))


# --- broken folders -----------------------------------------------------------------------------------------------


def _without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _edit(name: str, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def _truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:1000])


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _drop_a_tensor(name: str) -> Callable[[Path], None]:
    from safetensors.torch import load_file, save_file

    def drop(folder: Path) -> None:
        weights = load_file(folder / name)
        weights.pop(sorted(weights)[0])
        save_file(weights, folder / name, metadata={"format": "pt"})

    return drop


def _add_a_tensor(name: str, key: str) -> Callable[[Path], None]:
    from safetensors.torch import load_file, save_file

    def add(folder: Path) -> None:
        save_file(load_file(folder / name) | {key: torch.zeros(2)}, folder / name, metadata={"format": "pt"})

    return add


VAE, TRANSFORMER = "vae/diffusion_pytorch_model.safetensors", "transformer/diffusion_pytorch_model.safetensors"
BROKEN = {
    "gone": (_without("."), "no such model folder"),
    "no index": (_without("model_index.json"), "no model_index.json"),
    "bad index": (_write("model_index.json", "{"), "cannot be read"),
    "index is a list": (_write("model_index.json", "[]"), "names no pipeline class"),
    "other family": (_edit("model_index.json", _class_name="FluxPipeline"), "a ZImagePipeline is needed"),
    "no part": (_without("vae"), "vae: no config.json"),
    "no weights": (_without(TRANSFORMER), "transformer: cannot load"),
    "cut weights": (_truncate(TRANSFORMER), "transformer: cannot load"),
    "cut text encoder": (_truncate("text_encoder/model.safetensors"), "text_encoder: cannot load"),
    "a tensor less": (_drop_a_tensor(TRANSFORMER), "transformer: .*all_final_layer"),
    "a tensor less in the VAE": (_drop_a_tensor(VAE), "vae: .*decoder"),
    "a tensor less in the text encoder": (_drop_a_tensor("text_encoder/model.safetensors"), "1 weights are missing"),
    "weights of another size": (_edit("transformer/config.json", dim=128, n_heads=4), "transformer: cannot load"),
    "a text encoder of another size": (
        _edit("text_encoder/config.json", intermediate_size=40),
        "text_encoder: cannot load",
    ),
    "fewer layers": (_edit("transformer/config.json", n_layers=1), "transformer: .* no place .*layers.1"),
    "fewer layers in the VAE": (_edit("vae/config.json", layers_per_block=0), "vae: .* no place .*resnets"),
    "fewer layers in the text encoder": (
        _edit("text_encoder/config.json", num_hidden_layers=1, layer_types=None),
        "text_encoder: .* no place .*layers.1",
    ),
    "a tensor more": (_add_a_tensor(TRANSFORMER, "extra.weight"), "transformer: 1 weights have no place .*extra"),
    "no tokenizer": (_without("tokenizer/tokenizer_config.json"), "tokenizer: no tokenizer_config.json"),
    "no vocabulary": (_without("tokenizer/tokenizer.json"), "tokenizer: no vocab.json"),
    "bad vocabulary": (_truncate("tokenizer/tokenizer.json"), "tokenizer: cannot load"),
    "a vocabulary of another kind": (_write("tokenizer/tokenizer.json", "3"), "tokenizer: cannot load"),
    "a vocabulary of another version": (
        _edit("tokenizer/tokenizer.json", version="9"),
        "tokenizer: cannot load .*version",
    ),
    "tokenizer settings of another kind": (_write("tokenizer/tokenizer_config.json", "[]"), "tokenizer: cannot load"),
    "no chat template": (_without("tokenizer/chat_template.jinja"), "no chat template"),
    "no scheduler": (_without("scheduler"), "no scheduler_config.json"),
    "dynamic shift": (_edit("scheduler/scheduler_config.json", use_dynamic_shifting=True), "dynamic shifting"),
}


def test_a_text_encoder_may_come_with_what_is_not_needed(folder: Path, tmp_path: Path) -> None:
    """As in folders that hold the whole language model, or one that also sees."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    for key in (
        "lm_head.weight",
        "visual.blocks.3.weight",
        "visual.blocks.0.weight",
        "mtp.layers.0.weight",
        "visual.mlp.2.weight",
    ):
        _add_a_tensor("text_encoder/model.safetensors", key)(copy)
    found, plain = ZImageBackbone.load(copy), ZImageBackbone.load(folder)
    assert torch.equal(found.encode_text(["a cat"]).features, plain.encode_text(["a cat"]).features)


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_one_clear_line(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(ModelError, match=message) as error:
        ZImageBackbone.load(copy)
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


def test_saving_onto_a_file_is_refused(shared_backbone: ZImageBackbone, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("")
    with pytest.raises(OutputError, match="is a file"):
        shared_backbone.save(path)
    with pytest.raises(OutputError, match="cannot write"):
        shared_backbone.save(path / "below")


def test_a_backbone_cannot_be_changed(shared_backbone: ZImageBackbone) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        shared_backbone.shift = 1.0  # pyright: ignore


@pytest.mark.parametrize("limit", [0, 2000, 1_000_000], ids=["no byte", "no tensor", "not all tensors"])
def test_a_full_disk_while_a_model_is_written_is_told(
    shared_backbone: ZImageBackbone, tmp_path: Path, limit: int
) -> None:
    """The kernel refuses the write."""
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    former, former_handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, former[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write the model \(.*File too large.*\); check space") as caught:
            shared_backbone.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, former_handler)
    assert "\n" not in str(caught.value)
