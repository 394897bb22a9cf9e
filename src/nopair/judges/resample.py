"""Pillow's image resampling, differentiable: two matrix products with Pillow's own weights.

`PIL.Image.resize` shrinks with a kernel that widens with the scale (antialiasing), along one axis and then the other,
and clips to the 8-bit range after each. Here the same weights stand in matrices, applied in the same order; only the
rounding to 8 bits is left out.
"""

from enum import IntEnum
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


class Kernel(IntEnum):
    """Kernels by the numbers `PIL.Image.Resampling` and image processors give them."""

    LANCZOS = 1
    BICUBIC = 3

    @property
    def reach(self) -> float:
        """Half the kernel's width, in source pixels at scale 1."""
        return 3.0 if self is Kernel.LANCZOS else 2.0

    def __call__(self, distance: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Weight at a distance in source pixels, before weights are made to add up to 1."""
        far = distance.abs()
        if self is Kernel.LANCZOS:
            value = torch.sinc(far) * torch.sinc(far / 3)
        else:  # Keys' cubic with a = -1/2
            value = torch.where(far < 1, (1.5 * far - 2.5) * far**2 + 1, ((-0.5 * far + 2.5) * far - 4) * far + 2)
        return torch.where(far < self.reach, value, torch.zeros_like(value))


def resize(
    pixels: Float[Tensor, "batch 3 height width"], rows: int, columns: int, kernel: Kernel
) -> Float[Tensor, "batch 3 rows columns"]:
    """What `Image.resize((columns, rows), kernel)` makes of pixels in [0, 1], without its rounding to 8 bits."""
    height, width = pixels.shape[-2:]
    rows_first = rows < height and height - rows > 2 * (width - columns)  # Pillow 13's rule, found by trying
    for along_rows in (rows_first, not rows_first):
        if along_rows and height != rows:
            pixels = (weights(height, rows, kernel).to(pixels) @ pixels).clamp(0, 1)
        elif not along_rows and width != columns:
            pixels = (pixels @ weights(width, columns, kernel).to(pixels).T).clamp(0, 1)
    return pixels


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # else weights first asked for in inference mode would fail in training
def weights(source: int, target: int, kernel: Kernel) -> Float[Tensor, "target source"]:
    """The share of each source pixel in each target pixel along one axis; rows add up to 1, some shares are negative.

    Cached, so not to be changed in place.
    """
    scale = source / target
    widening = max(scale, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(source, dtype=torch.float64)
    shares = kernel((places + 0.5 - centres[:, None]) / widening)
    return (shares / shares.sum(dim=1, keepdim=True)).float()
