"""Damage to pictures of the world, of the kinds that editors do: corruption, smears, blur, warps.

Pictures are RGB in [0, 1], 3 x 64 x 64; randomness is the caller's.
"""

import math
import random

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.world.edits import any_edit, random_edit
from nopair.world.render import render
from nopair.world.scenes import SIZE


def blend_mask(before: Tensor, after: Tensor) -> Float[Tensor, "1 height width"]:
    """1 where two pictures differ, else 0."""
    return ((before - after).abs().amax(0, keepdim=True) > 0.02).float()


def corrupt(rng: random.Random, image: Tensor, source: torch.Generator) -> Tensor:
    """Damage strong enough that nobody would call the picture unchanged."""
    kind = rng.randrange(5)
    if kind == 0:
        return (image + torch.randn(image.shape, generator=source) * rng.uniform(0.15, 0.5)).clamp(0, 1)
    if kind == 1:
        side = rng.choice((5, 7, 9, 13))
        padded = torch.nn.functional.pad(image[None], (side // 2,) * 4, mode="reflect")
        return torch.nn.functional.avg_pool2d(padded, side, stride=1)[0]
    if kind == 2:
        coarse = torch.rand(1, 3, 8, 8, generator=source)
        smooth = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")[0]
        return torch.lerp(image, smooth, rng.uniform(0.4, 1.0)).clamp(0, 1)
    if kind == 3:
        mean = image.mean((1, 2), keepdim=True)
        return torch.lerp(image, mean, rng.uniform(0.5, 1.0))
    other = render(any_edit(rng).source)
    return torch.lerp(image, other, rng.uniform(0.3, 0.8))


def fill(rng: random.Random, image: Tensor, source: torch.Generator) -> Tensor:
    """What a smear leaves: a flat colour, noise, a blur, or parts of some other picture."""
    kind = rng.randrange(4)
    if kind == 0:
        return torch.rand(3, 1, 1, generator=source).expand_as(image)
    if kind == 1:
        return torch.rand(image.shape, generator=source)
    if kind == 2:
        return torch.nn.functional.avg_pool2d(image[None], 11, stride=1, padding=5, count_include_pad=False)[0]
    return render(random_edit(rng, "background", any_edit(rng).source).target)


def blur(image: Float[Tensor, "3 height width"], sigma: float) -> Float[Tensor, "3 height width"]:
    """Gaussian blur; sigma in pixels."""
    reach = math.ceil(2.5 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = torch.nn.functional.pad(image[None], (reach,) * 4, mode="reflect")
    rows = torch.nn.functional.conv2d(padded, weights, groups=3)
    return torch.nn.functional.conv2d(rows, weights.transpose(2, 3), groups=3)[0]


def warp(
    image: Float[Tensor, "3 height width"], amplitude: float, source: torch.Generator
) -> Float[Tensor, "3 height width"]:
    """Every pixel fetched from elsewhere, by a smooth field with a root mean square of `amplitude` pixels."""
    coarse = torch.randn(1, 2, 12, 12, generator=source)
    field = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic")[0].permute(1, 2, 0)
    ticks = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1) + field * amplitude * 2 / SIZE
    return torch.nn.functional.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0]
