"""The resampling matrices against Pillow itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from nopair.judges.resample import Kernel, resize, weights

SIZES = st.integers(1, 90)


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Half of the values at the ends of the range, where Pillow clips."""
    values = np.random.default_rng(seed).integers(-128, 384, (height, width, 3))
    return values.clip(0, 255).astype(np.uint8)


@settings(max_examples=100)
@given(height=SIZES, width=SIZES, rows=SIZES, columns=SIZES, kernel=st.sampled_from(list(Kernel)))
def test_with_rounding_put_in_it_is_pillow(height: int, width: int, rows: int, columns: int, kernel: Kernel) -> None:
    """Rounded where Pillow rounds, nearly every value is the same: its fixed-point weights only break ties.

    The order of the axes matters, because half of the values are at the ends of the range and clipped on the way.
    """
    image = _noise(height, width)
    theirs = torch.from_numpy(np.array(Image.fromarray(image).resize((columns, rows), int(kernel)))).double()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tensor, "clamp", lambda values, *_range: (255 * values + 0.5).floor().clip(0, 255) / 255)
        ours = resize(torch.from_numpy(image).double().permute(2, 0, 1)[None] / 255, rows, columns, kernel)
    difference = (255 * ours[0].permute(1, 2, 0) - theirs).abs().round()
    assert difference.max() <= 2
    assert (difference > 0).double().mean() <= 0.03


@settings(max_examples=60)
@given(source=st.integers(1, 300), target=st.integers(1, 300), kernel=st.sampled_from(list(Kernel)))
def test_shares_add_up_to_one_and_an_image_of_the_right_size_stays(source: int, target: int, kernel: Kernel) -> None:
    shares = weights(source, target, kernel)
    assert shares.shape == (target, source)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(target))
    torch.testing.assert_close(weights(source, source, kernel), torch.eye(source), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", list(Kernel))
@pytest.mark.parametrize(("height", "width"), [(64, 64), (21, 90), (7, 300)])
def test_the_gradient_is_the_transpose(kernel: Kernel, height: int, width: int) -> None:
    """In mid tones nothing is clipped and resizing is linear: <g, R d> = <Rᵀ g, d>, to fp32 rounding."""
    pixels = (0.4 + 0.2 * torch.rand(2, 3, height, width)).requires_grad_()
    change, weight = 0.05 * torch.randn(2, 3, height, width).clamp(-1, 1), torch.randn(2, 3, 32, 40)
    (gradient,) = torch.autograd.grad((resize(pixels, 32, 40, kernel) * weight).sum(), pixels)
    with torch.no_grad():
        moved = ((resize(pixels + change, 32, 40, kernel) - resize(pixels, 32, 40, kernel)) * weight).sum()
    torch.testing.assert_close((gradient * change).sum(), moved, rtol=1e-3, atol=1e-3)


def test_weights_first_needed_in_inference_mode_serve_training_too() -> None:
    weights.cache_clear()
    with torch.inference_mode():
        resize(torch.rand(1, 3, 30, 30), 20, 20, Kernel.BICUBIC)
    pixels = torch.rand(1, 3, 30, 30, requires_grad=True)
    resize(pixels, 20, 20, Kernel.BICUBIC).sum().backward()
    assert pixels.grad is not None
