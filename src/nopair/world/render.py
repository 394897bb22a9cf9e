"""Scenes to pixels. Everything an image can be made of is tabulated once, so a batch renders by look-up."""

from collections.abc import Sequence
from functools import cache
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.world.scenes import (
    BACKGROUND_COLOURS,
    CELL,
    OBJECT_COLOURS,
    OFFSETS,
    PATTERNS,
    PERIOD,
    PHASES,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
)

RGB: Final = {
    "red": (222, 38, 38),
    "green": (38, 176, 62),
    "blue": (40, 72, 226),
    "yellow": (246, 214, 38),
    "purple": (160, 48, 196),
    "white": (250, 250, 250),
}
TONES: Final = {
    "grey": ((84, 84, 84), (166, 166, 166)),
    "brown": ((92, 52, 24), (178, 134, 96)),
    "teal": ((14, 86, 92), (86, 176, 176)),
    "pink": ((176, 88, 120), (250, 178, 200)),
}
RADIUS: Final = {"small": 8.0, "large": 13.0}
SHADE: Final = 0.4
"""A texture's dark parts are the thing's colour times this."""
JITTERS: Final = tuple((dx, dy) for dy in OFFSETS for dx in OFFSETS)
_SUBPIXELS: Final = 4


def jitter_index(dx: int, dy: int) -> int:
    """Position of (dx, dy) in `JITTERS`."""
    return OFFSETS.index(dy) * len(OFFSETS) + OFFSETS.index(dx)


def _inside(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """Membership of points (pixels from the centre, y down) in a shape of about the same area each."""
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) <= 0.86 * radius
    if shape == "triangle":
        return (y <= 0.8 * radius) & (2.0 * x.abs() <= 1.1 * (y + radius))
    arm = 0.36 * radius
    return ((x.abs() <= arm) | (y.abs() <= arm)) & (torch.maximum(x.abs(), y.abs()) <= radius)


def _grid(side: int) -> tuple[Tensor, Tensor]:
    centre = torch.arange(side, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    return x, y


@cache
def masks() -> Float[Tensor, "shape size jitter cell cell"]:
    """Antialiased coverage in [0, 1] of every shape, size and jitter within a cell."""
    fine = (torch.arange(CELL * _SUBPIXELS, dtype=torch.float32) + 0.5) / _SUBPIXELS - CELL / 2
    y, x = torch.meshgrid(fine, fine, indexing="ij")
    rows = [
        torch.stack([_inside(shape, x - dx, y - dy, RADIUS[size]).float() for dx, dy in JITTERS])
        for shape in SHAPES
        for size in SIZES
    ]
    pooled = torch.nn.functional.avg_pool2d(torch.stack(rows), _SUBPIXELS)
    return pooled.unflatten(0, (len(SHAPES), len(SIZES)))


@cache
def shades() -> Float[Tensor, "texture jitter cell cell"]:
    """Brightness factor of every texture; it moves with the thing."""
    x, y = _grid(CELL)
    rows = []
    for texture in TEXTURES:
        for dx, dy in JITTERS:
            u, v = x - CELL / 2 - dx, y - CELL / 2 - dy
            if texture == "plain":
                dark = torch.zeros_like(u, dtype=torch.bool)
            elif texture == "striped":
                dark = (v + 1.5) % 6 < 3
            else:
                dark = ((u + 1.5) % 6 < 3) & ((v + 1.5) % 6 < 3)
            rows.append(torch.where(dark, SHADE, 1.0))
    return torch.stack(rows).unflatten(0, (len(TEXTURES), len(JITTERS)))


@cache
def backgrounds() -> Float[Tensor, "pattern colour phase_y phase_x 3 height width"]:
    """Every background, RGB in [0, 1]."""
    x, y = _grid(SIZE)
    tones = torch.tensor([TONES[colour] for colour in BACKGROUND_COLOURS]) / 255
    rows = []
    for pattern in PATTERNS:
        for phase_y in PHASES:
            for phase_x in PHASES:
                u, v = (x - phase_x) % PERIOD, (y - phase_y) % PERIOD
                rows.append(_light(pattern, u, v).float())
    light = torch.stack(rows).unflatten(0, (len(PATTERNS), len(PHASES), len(PHASES)))[:, None, :, :, None]
    dark_tone, light_tone = (tones[:, i, :].view(1, -1, 1, 1, 3, 1, 1) for i in (0, 1))
    return dark_tone + (light_tone - dark_tone) * light


def _light(pattern: str, u: Tensor, v: Tensor) -> Tensor:
    """Where a pattern shows its light tone; u, v in [0, PERIOD) run right and down."""
    half = PERIOD // 2
    if pattern == "stripes":
        return v < half
    if pattern == "bars":
        return u < half
    if pattern == "checks":
        return (u < half) ^ (v < half)
    if pattern == "dots":
        return (u - half) ** 2 + (v - half) ** 2 <= 2.6**2
    return (u + v) % PERIOD < half


@cache
def colours() -> Float[Tensor, "colour 3"]:
    """The palette of things, RGB in [0, 1], in the order of `OBJECT_COLOURS`."""
    return torch.tensor([RGB[colour] for colour in OBJECT_COLOURS]) / 255


def cell_slices(cell: int) -> tuple[slice, slice]:
    """Rows and columns of a cell."""
    top, left = CELL * (cell // 2), CELL * (cell % 2)
    return slice(top, top + CELL), slice(left, left + CELL)


def thing_layers(thing: Thing) -> tuple[Float[Tensor, "cell cell"], Float[Tensor, "3 cell cell"]]:
    """Coverage and colour of a thing within its cell."""
    jitter = jitter_index(thing.dx, thing.dy)
    mask = masks()[SHAPES.index(thing.shape), SIZES.index(thing.size), jitter]
    shade = shades()[TEXTURES.index(thing.texture), jitter]
    return mask, colours()[OBJECT_COLOURS.index(thing.colour)].view(3, 1, 1) * shade


def thing_region(thing: Thing, *, grow: int) -> Float[Tensor, "1 height width"]:
    """1 where a thing's mask is not 0 on the whole image, grown by `grow` pixels, else 0."""
    canvas = torch.zeros(1, SIZE, SIZE)
    rows, columns = cell_slices(thing.cell)
    canvas[0, rows, columns] = (thing_layers(thing)[0] > 0).float()
    return torch.nn.functional.max_pool2d(canvas, 2 * grow + 1, stride=1, padding=grow)


def render(scene: Scene) -> Float[Tensor, "3 height width"]:
    """RGB in [0, 1]."""
    ground = scene.background
    image = backgrounds()[
        PATTERNS.index(ground.pattern),
        BACKGROUND_COLOURS.index(ground.colour),
        PHASES.index(ground.phase_y),
        PHASES.index(ground.phase_x),
    ].clone()
    for thing in scene.things:
        rows, columns = cell_slices(thing.cell)
        mask, colour = thing_layers(thing)
        image[:, rows, columns] += mask * (colour - image[:, rows, columns])
    return image


def render_batch(scenes: Sequence[Scene]) -> Float[Tensor, "batch 3 height width"]:
    """RGB in [0, 1]."""
    return torch.stack([render(scene) for scene in scenes])
