"""Ways for an edited image to be bad, to prove the oracle on and to teach a judge what a bad edit looks like.

Pixel corruptions take a batch of images in [0, 1] and a `torch.Generator`, and return images in [0, 1]. Scene
corruptions take a `random.Random` and an edit, and return the scene a bad editor might have made of it.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.world.edits import CATEGORIES, FREE_FORM, Edit, random_background, random_edit
from nopair.world.oracle import ASKED, DESCRIBED, IDENTITY, achieved, edited_cells, edited_things
from nopair.world.parse import canonical
from nopair.world.render import TONES, cell_slices, thing_layers
from nopair.world.scenes import (
    BACKGROUND_COLOURS,
    CELLS,
    OBJECT_COLOURS,
    PATTERNS,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURES,
    Scene,
    caption,
)

Pixels = Float[Tensor, "batch 3 height width"]

_CHOICES: Final = {
    "shape": SHAPES,
    "colour": OBJECT_COLOURS,
    "texture": TEXTURES,
    "size": SIZES,
    "cell": tuple(range(len(CELLS))),
}


def gaussian_noise(images: Pixels, sigma: float, generator: torch.Generator) -> Pixels:
    """White noise of standard deviation `sigma`, then clamped."""
    return (images + sigma * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blur(images: Pixels, sigma: float) -> Pixels:
    """Gaussian blur of `sigma` pixels, edges mirrored."""
    radius = int(3 * sigma + 0.5)
    weights = torch.exp(-(torch.arange(-radius, radius + 1).float() ** 2) / (2 * sigma**2))
    row = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = torch.nn.functional.pad(images, (radius, radius, radius, radius), mode="reflect")
    return torch.nn.functional.conv2d(torch.nn.functional.conv2d(padded, row, groups=3), row.mT, groups=3)


def ghost(images: Pixels, others: Pixels, strength: float) -> Pixels:
    """Half-done: `strength` of the way from `images` to `others`."""
    return torch.lerp(images, others, strength)


def paste(images: Pixels, others: Pixels, side: int, generator: torch.Generator) -> Pixels:
    """A square of `side` pixels from the same place of `others`, at a random place of each image."""
    corners = torch.randint(0, SIZE - side + 1, (len(images), 2), generator=generator)
    pasted = images.clone()
    for image, other, (top, left) in zip(pasted, others, corners.tolist(), strict=True):
        image[:, top : top + side, left : left + side] = other[:, top : top + side, left : left + side]
    return pasted


def flatten_patterns(scenes: Sequence[Scene]) -> Pixels:
    """The scenes with each pattern erased: its two tones replaced by the colour half-way between them."""
    images = []
    for scene in scenes:
        dark, light = (torch.tensor(tone) / 255 for tone in TONES[scene.background.colour])
        image = ((dark + light) / 2).view(3, 1, 1).repeat(1, SIZE, SIZE)
        for thing in scene.things:
            rows, columns = cell_slices(thing.cell)
            mask, colour = thing_layers(thing)
            image[:, rows, columns] += mask * (colour - image[:, rows, columns])
        images.append(image)
    return torch.stack(images)


def shift_pattern(rng: random.Random, scene: Scene) -> Scene:
    """The same pattern in another phase that looks different."""
    while True:
        ground = random_background(rng)
        shifted = replace(scene, background=replace(scene.background, phase_x=ground.phase_x, phase_y=ground.phase_y))
        if canonical(shifted) != canonical(scene):
            return shifted


def _near_miss(rng: random.Random, edit: Edit) -> Scene:
    """The right answer with one of the asked attributes set to something else, or the thing to be moved copied."""
    if edit.category == FREE_FORM and rng.random() < 0.5:
        (other,) = (thing for thing in edit.target.things if thing.shape != edit.subject)
        name = rng.choice(DESCRIBED)
        return edit.target.with_thing(replace(other, **{name: rng.choice(_CHOICES[name])}))
    if edit.category in ("background", FREE_FORM):
        ground = edit.target.background
        if rng.random() < 0.5:
            return replace(edit.target, background=replace(ground, pattern=rng.choice(PATTERNS)))
        return replace(edit.target, background=replace(ground, colour=rng.choice(BACKGROUND_COLOURS)))
    assert edit.cell is not None
    right = edit.target.at(edit.cell)
    assert right is not None
    before, _ = edited_things(edit)
    if edit.category == "move" and before is not None and rng.random() < 0.5:
        return edit.target.with_thing(before)
    names = (*ASKED[edit.category], "cell") if edit.category in ("add", "move") else ASKED[edit.category]
    name = rng.choice(names)
    wrong = replace(right, **{name: rng.choice(_CHOICES[name])})
    return edit.target.without(edit.cell).with_thing(wrong)


def wrong_edit(rng: random.Random, edit: Edit) -> Scene:
    """What is left when something else was done than what was asked: never achieved, never the source.

    A near miss (one asked attribute wrong), another edit of the same category (often of another thing), or an edit of
    another category, a third each where they exist. Shapes stay distinct, so that nouns stay clear, except that a thing
    to be moved may be copied.
    """
    changes = [category for category in CATEGORIES if category != "nothing"]
    ways = ["other category"] if edit.category == "nothing" else ["other category", "same category"]
    if edit.category in ASKED or edit.category in ("background", FREE_FORM):
        ways.append("near miss")
    while True:
        way = rng.choice(ways)
        if way == "near miss":
            scene = _near_miss(rng, edit)
        else:
            category = edit.category if way == "same category" else rng.choice(changes)
            scene = random_edit(rng, category, edit.source).target
        shapes = [thing.shape for thing in scene.things]
        clear = edit.category == "move" or len(set(shapes)) == len(shapes)
        if clear and caption(scene) != caption(edit.source) and not achieved(edit, scene):
            return scene


def over_edit(rng: random.Random, edit: Edit) -> Scene:
    """What was asked, and something that was not: another thing or the background is described differently.

    For `nothing`, any change at all. For `free-form`, where nothing else is to stay: the scene that was asked for with
    another subject, alike in its shape only.
    """
    if edit.category == FREE_FORM:
        return _with_another_subject(rng, edit)
    changes = [category for category in CATEGORIES if category != "nothing"]
    cells = edited_cells(edit)
    while True:
        category = rng.choice(changes)
        if not edit.target.things and category not in ("add", "background"):
            continue
        if len(edit.target.things) == len(CELLS) and category in ("add", "move", "replace"):
            continue
        scene = random_edit(rng, category, edit.target).target
        elsewhere = all(scene.at(cell) == edit.target.at(cell) for cell in cells) and (
            edit.category != "background" or scene.background == edit.target.background
        )
        if elsewhere and caption(scene) != caption(edit.target):
            return scene


def _with_another_subject(rng: random.Random, edit: Edit) -> Scene:
    (subject,) = (thing for thing in edit.target.things if thing.shape == edit.subject)
    changes = {
        name: rng.choice([option for option in _CHOICES[name] if option != getattr(subject, name)]) for name in IDENTITY
    }
    return edit.target.with_thing(replace(subject, **changes))
