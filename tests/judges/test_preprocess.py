"""The differentiable preparation against the family's own image processor."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import LlavaOnevisionImageProcessorPil

from nopair.errors import ModelError
from nopair.judges.preprocess import Preprocess

MEAN, STD, SIDE = [0.45, 0.5, 0.55], [0.5, 0.4, 0.6], 64
# The processor rounds to 8 bits after the columns and after the rows; bicubic weights add up to at most 1.3 in size.
ROUNDING = (0.5 * 1.3 + 0.5 + 0.1) / 255


def _processor(**changes) -> LlavaOnevisionImageProcessorPil:
    settings = {"size": {"height": SIDE, "width": SIDE}, "image_mean": MEAN, "image_std": STD} | changes
    return LlavaOnevisionImageProcessorPil(**settings)


def _image(kind: str, height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "black":
        return np.zeros((height, width, 3), dtype=np.uint8)
    if kind == "white":
        return np.full((height, width, 3), 255, dtype=np.uint8)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "edges":
        return 255 * rng.integers(0, 2, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + c) + y / (11 - c) + rng.uniform(0, 6)) for c in range(3)]
    return np.round(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


def _pixels(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


def _theirs(image: np.ndarray, processor: LlavaOnevisionImageProcessorPil) -> Tensor:
    """Undoes the normalisation, so that errors are in pixel values; two images, so that there are no tiles."""
    pair = [Image.fromarray(image)] * 2
    values = processor([pair], return_tensors="pt")["pixel_values"]
    assert values.shape == (2, 1, 3, SIDE, SIDE)
    return _unnormalised(values[0])


def _unnormalised(values: Tensor) -> Tensor:
    return values * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["black", "white", "noise", "edges", "smooth"]),
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_equals_the_familys_processor_up_to_its_rounding(kind: str, height: int, width: int, seed: int) -> None:
    processor = _processor()
    image = _image(kind, height, width, seed)
    ours = _unnormalised(Preprocess.of(processor, SIDE)(_pixels(image)))
    assert (ours - _theirs(image, processor)).abs().max() <= ROUNDING


@pytest.mark.parametrize(("height", "width"), [(3, 640), (640, 3), (1, 1), (501, 333), (63, 65)])
@pytest.mark.parametrize("kind", ["noise", "edges", "smooth"])
def test_extreme_shapes_equal_the_familys_processor(kind: str, height: int, width: int) -> None:
    processor = _processor()
    image = _image(kind, height, width, seed=1)
    error = (_unnormalised(Preprocess.of(processor, SIDE)(_pixels(image))) - _theirs(image, processor)).abs()
    assert error.max() <= ROUNDING
    assert error.mean() <= 0.5 / 255


def test_an_image_of_the_towers_size_is_only_normalised() -> None:
    image = _image("noise", SIDE, SIDE, seed=2)
    processor = _processor()
    ours = _unnormalised(Preprocess.of(processor, SIDE)(_pixels(image)))
    torch.testing.assert_close(ours, _theirs(image, processor), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(SIDE, 15), (21, SIDE), (SIDE, 62)])
def test_the_padding_is_exact(height: int, width: int) -> None:
    """Here nothing is resized, so nothing is rounded: colour and place of the padding are the processor's."""
    image = _image("noise", height, width, seed=3)
    processor = _processor()
    ours = _unnormalised(Preprocess.of(processor, SIDE)(_pixels(image)))
    torch.testing.assert_close(ours, _theirs(image, processor), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 91), (120, 30), (16, 16)])
def test_the_gradient_is_the_derivative(height: int, width: int) -> None:
    """Without clipping (mid tones) the preparation is linear, so one difference gives the derivative exactly."""
    prepare = Preprocess.of(_processor(), SIDE)
    pixels = (0.4 + 0.2 * torch.rand(2, 3, height, width)).requires_grad_()
    weights = torch.randn(2, 3, SIDE, SIDE)
    (gradient,) = torch.autograd.grad((prepare(pixels) * weights).sum(), pixels)
    assert (gradient != 0).all()
    step = 0.1 * (torch.rand_like(pixels) - 0.5)
    with torch.no_grad():
        difference = ((prepare(pixels + step) - prepare(pixels)) * weights).sum()
    torch.testing.assert_close((gradient * step).sum(), difference, rtol=1e-3, atol=1e-3)


def test_values_outside_the_range_are_seen_as_a_file_would_hold_them() -> None:
    prepare = Preprocess.of(_processor(), SIDE)
    pixels = 3 * torch.randn(1, 3, 40, 70)
    torch.testing.assert_close(prepare(pixels), prepare(pixels.clamp(0, 1)))


def test_images_of_a_batch_do_not_mix() -> None:
    prepare = Preprocess.of(_processor(), SIDE)
    pixels = torch.rand(3, 3, 30, 70)
    torch.testing.assert_close(prepare(pixels)[1:2], prepare(pixels[1:2]))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("size", {"height": 32, "width": 64}),
        ("resample", 2),
        ("do_resize", False),
        ("do_center_crop", True),
        ("do_rescale", False),
        ("rescale_factor", 1 / 127.5),
        ("do_normalize", False),
    ],
)
def test_a_processor_that_does_something_else_is_refused(setting: str, value: object) -> None:
    with pytest.raises(ModelError, match=setting) as caught:
        Preprocess.of(_processor(**{setting: value}), SIDE)
    assert "\n" not in str(caught.value)
