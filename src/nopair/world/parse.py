"""Images to scenes by analysis through synthesis: the nearest renderable scene, found by search, with no learned model.

The error of an explanation is the plain squared difference between the image and its exact render. Given the things,
the best background is an exact minimum over all backgrounds; given the background, the best content of a cell is an
exact minimum over all 1,297 contents. Both are a few matrix products, because a render is linear in its tables.
Starting from the background nearest to the whole image, the two are alternated until nothing changes.
"""

from dataclasses import replace
from functools import cache
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopair.world.render import JITTERS, TONES, backgrounds, colours, masks, shades
from nopair.world.scenes import (
    BACKGROUND_COLOURS,
    CELL,
    CELLS,
    OBJECT_COLOURS,
    PATTERNS,
    PHASES,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURES,
    Background,
    Scene,
    Thing,
)

MAX_ROUNDS: Final = 8
"""No round raises the error, and two or three reach the fixed point in practice."""
CHUNK: Final = 32
"""Images explained at once; bounds the memory."""

_CONTENTS: Final = tuple(
    (shape, size, dx, dy, texture) for shape in SHAPES for size in SIZES for dx, dy in JITTERS for texture in TEXTURES
)


@cache
def _lights() -> tuple[tuple[Background, ...], Float[Tensor, "ground pixel"]]:
    """Every distinct pattern and phase in the first colour, and where it is light (1) or dark (0)."""
    dark, light = (TONES[BACKGROUND_COLOURS[0]][i][0] / 255 for i in (0, 1))
    table = backgrounds()[:, 0, :, :, 0] > (dark + light) / 2
    distinct: dict[bytes, tuple[Background, Tensor]] = {}
    for i, pattern in enumerate(PATTERNS):
        for j, phase_y in enumerate(PHASES):
            for k, phase_x in enumerate(PHASES):
                row = table[i, j, k].flatten()
                key = bytes(row.to(torch.uint8).tolist())
                distinct.setdefault(key, (Background(pattern, BACKGROUND_COLOURS[0], phase_x, phase_y), row.float()))
    return tuple(ground for ground, _ in distinct.values()), torch.stack([row for _, row in distinct.values()])


@cache
def _canonical_phases() -> dict[tuple[str, int, int], tuple[int, int]]:
    """The first phases (x, y) that look the same, for every (pattern, phase x, phase y)."""
    first: dict[bytes, tuple[int, int]] = {}
    answer: dict[tuple[str, int, int], tuple[int, int]] = {}
    table = backgrounds()[:, 0, :, :, 0]
    for i, pattern in enumerate(PATTERNS):
        for j, phase_y in enumerate(PHASES):
            for k, phase_x in enumerate(PHASES):
                key = bytes((table[i, j, k] * 255).to(torch.uint8).flatten().tolist())
                answer[pattern, phase_x, phase_y] = first.setdefault(key, (phase_x, phase_y))
    return answer


def canonical(scene: Scene) -> Scene:
    """The same picture with the first of the phases that look alike.

    Horizontal stripes do not change when shifted sideways, checks when shifted by half a period both ways, and so on;
    two scenes render to the same image exactly when their canonical forms are equal.
    """
    ground = scene.background
    phase_x, phase_y = _canonical_phases()[ground.pattern, ground.phase_x, ground.phase_y]
    return replace(scene, background=replace(ground, phase_x=phase_x, phase_y=phase_y))


@cache
def _tones() -> Float[Tensor, "colour tone 3"]:
    """Dark and light tone of every background colour, RGB in [0, 1]."""
    return torch.tensor([TONES[colour] for colour in BACKGROUND_COLOURS]) / 255


@cache
def _coverage() -> Float[Tensor, "content pixel"]:
    """Mask of every content (shape, size, jitter, texture) of a cell; the same for all textures."""
    mask = masks().flatten(3).unsqueeze(3)
    return mask.expand(-1, -1, -1, len(TEXTURES), -1).flatten(0, 3).contiguous()


@cache
def _brightness() -> Float[Tensor, "content pixel"]:
    """Texture's brightness factor of every content of a cell."""
    shade = shades().transpose(0, 1).flatten(2)
    return shade.expand(len(SHAPES), len(SIZES), -1, -1, -1).flatten(0, 3).contiguous()


def _to_cells(images: Float[Tensor, "b c height width"]) -> Float[Tensor, "b cell c pixel"]:
    b, c, _, _ = images.shape
    split = images.reshape(b, c, 2, CELL, 2, CELL).permute(0, 2, 4, 1, 3, 5)
    return split.reshape(b, len(CELLS), c, CELL * CELL)


def _from_cells(cells: Float[Tensor, "b cell c pixel"]) -> Float[Tensor, "b c pixels"]:
    b, _, c, _ = cells.shape
    return cells.reshape(b, 2, 2, c, CELL, CELL).permute(0, 3, 1, 4, 2, 5).reshape(b, c, SIZE * SIZE)


def _ground_errors(layer: Float[Tensor, "b 3 pixels"], seen: Float[Tensor, "b 1 pixels"]) -> Float[Tensor, "b grounds"]:
    """Squared error of every background (colour-major), if `layer + seen · background` is the render.

    `layer` is the image minus what the things add to it, `seen` the share of the background that shows through.
    """
    _, lights = _lights()
    tones = _tones().flatten(0, 1)
    squared = (layer[:, None] - seen[:, None] * tones.view(1, -1, 3, 1)).square().sum(2)
    dark, light = squared.unflatten(1, (len(BACKGROUND_COLOURS), 2)).unbind(2)
    return (dark.sum(-1, keepdim=True) + (light - dark) @ lights.T).flatten(1)


def _thing_errors(
    images: Float[Tensor, "b cell 3 pixel"], ground: Float[Tensor, "b cell 3 pixel"]
) -> Float[Tensor, "b cell contents"]:
    """Squared error of every content of a cell minus that of the empty cell: [empty, then colour-major contents].

    With mask m, shade s, colour c, background B and D = image - B, a render is B + m (c s - B), so the difference is
    -2 c·Σ(m s D + m² s B) + Σ(2 m D·B + m² |B|²) + |c|² Σ m² s².
    """
    mask, shade = _coverage(), _brightness()
    difference = images - ground
    linear = torch.cat([difference, ground], dim=-1) @ torch.cat([mask * shade, mask.square() * shade], dim=-1).T
    plain = torch.cat([2 * (difference * ground).sum(2), ground.square().sum(2)], dim=-1)
    constant = plain @ torch.cat([mask, mask.square()], dim=-1).T
    palette = colours()
    squares = palette.square().sum(1)[:, None] * (mask * shade).square().sum(1)
    errors = -2 * torch.einsum("kc,bncj->bnkj", palette, linear) + constant[:, :, None] + squares
    return torch.cat([errors.new_zeros(*errors.shape[:2], 1), errors.flatten(2)], dim=-1)


def _draw_ground(index: Int[Tensor, " b"]) -> Float[Tensor, "b 3 pixels"]:
    _, lights = _lights()
    tones = _tones()[index // len(lights)]
    light = lights[index % len(lights)][:, None]
    return tones[:, 0, :, None] + (tones[:, 1, :, None] - tones[:, 0, :, None]) * light


def _draw_things(index: Int[Tensor, "b cell"]) -> tuple[Float[Tensor, "b 3 pixels"], Float[Tensor, "b 1 pixels"]]:
    """What the chosen contents add to the image, and the share of the background that shows through."""
    present = (index > 0)[..., None]
    content = (index - 1).clamp(min=0)
    which = content % len(_CONTENTS)
    mask = _coverage()[which] * present
    paint = colours()[content // len(_CONTENTS)][..., None] * (mask * _brightness()[which])[:, :, None]
    return _from_cells(paint), _from_cells(1 - mask[:, :, None])


def _explain(images: Float[Tensor, "b 3 height width"]) -> tuple[Int[Tensor, " b"], Int[Tensor, "b cell"]]:
    """Background and contents of the cells at the fixed point reached from the background nearest to the image."""
    flat, cells = images.flatten(2), _to_cells(images)
    everything_seen = torch.ones(len(images), 1, SIZE * SIZE)
    ground = _ground_errors(flat, everything_seen).argmin(1)
    things = torch.full((len(images), len(CELLS)), -1)
    for _ in range(MAX_ROUNDS):
        drawn = _draw_ground(ground).unflatten(-1, (SIZE, SIZE))
        found = _thing_errors(cells, _to_cells(drawn)).argmin(-1)
        if torch.equal(found, things):
            break
        things = found
        paint, seen = _draw_things(things)
        ground = _ground_errors(flat - paint, seen).argmin(1)
    return ground, things


def _scene(ground: int, things: list[int]) -> Scene:
    grounds, _ = _lights()
    found = []
    for cell, index in enumerate(things):
        if index > 0:
            shape, size, dx, dy, texture = _CONTENTS[(index - 1) % len(_CONTENTS)]
            colour = OBJECT_COLOURS[(index - 1) // len(_CONTENTS)]
            found.append(Thing(shape, colour, texture, size, cell, dx, dy))
    colour = BACKGROUND_COLOURS[ground // len(grounds)]
    return Scene(replace(grounds[ground % len(grounds)], colour=colour), tuple(found))


@torch.no_grad()
def parse(images: Float[Tensor, "batch 3 height width"]) -> list[Scene]:
    """The renderable scene nearest to each image in squared error, in canonical form (see `canonical`).

    Images are 64 x 64 RGB and are clamped to [0, 1] first. Up to four things are found, of any shapes. The search is
    exact in the background given the things and in each thing given the background; `parse(render(scene))` is
    `canonical(scene)`. Each image's answer is its own: it does not depend on what else is in the batch.

    Raises:
        ValueError: the images have another size or hold a value that is not finite.
    """
    if images.shape[-2:] != (SIZE, SIZE):
        raise ValueError(f"scenes are {SIZE} x {SIZE} pixels, the images are {tuple(images.shape[-2:])}")
    if not bool(images.isfinite().all()):
        raise ValueError("an image holds a value that is not finite; nothing renderable is near it")
    clean = images.detach().float().cpu().clamp(0, 1)
    scenes: list[Scene] = []
    for chunk in clean.split(CHUNK):
        grounds, things = _explain(chunk)
        scenes += [_scene(ground, row) for ground, row in zip(grounds.tolist(), things.tolist(), strict=True)]
    return scenes
