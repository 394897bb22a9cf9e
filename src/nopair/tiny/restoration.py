"""Damaged photos and what was there, in words: how the tiny base learns to look at a reference before it is an editor.

Part of the base's pretraining is in the family's omni form, with a reference image. The reference is a photo, whole or
damaged (a hole, colours lost, detail lost). Words that describe the photo ask for all of it back; commands ask for what
they name, and the rest is to stay as the reference has it, damage included. One unlabelled photo with its caption makes
such a task: there is no second image of the scene and no edit. What the base learns is to copy what a reference shows,
to find the thing that is named, and to take from the words what the reference does not show.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nopair.tiny.phrases import command, describe
from nopair.world.edits import PHRASINGS, random_scene
from nopair.world.render import cell_slices, render, thing_layers
from nopair.world.scenes import CELLS, OBJECT_COLOURS, SHAPES, SIZE, Scene, Thing, caption, describe_background

DAMAGES: Final = ("hole", "colour", "colour", "detail", "detail")
"""What a reference may have lost where it is damaged, with equal chances."""
GROUND: Final = len(CELLS)
"""Stands for the background where parts of a photo are numbered; other parts are the cells."""
_WHOLE: Final = 0.25
"""Share of references without damage."""
_COMMANDED: Final = 0.75
"""Share of damages to parts that come with commands instead of a description."""
_LUMA: Final = (0.3, 0.59, 0.11)
_SPREAD: Final = 4
"""How far around a thing its detail is lost, in pixels."""

Mask = Float[Tensor, "1 height width"]
"""Which pixels belong to a part, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Restoration:
    """A photo of `scene`, what is left of it, words, and what is to come out: the photo, or what they name of it."""

    scene: Scene
    reference: Float[Tensor, "3 height width"]
    prompt: str
    target: Float[Tensor, "3 height width"]


def restoration(rng: random.Random, fits: Callable[[str], bool]) -> Restoration:
    """A random task whose prompt `fits`; the caption, which must, stands in for one that does not.

    A whole reference comes with a true caption, a request to change nothing, or no words.
    """
    scene = random_scene(rng)
    photo = render(scene)
    if rng.random() < _WHOLE:
        prompt = _words_for_whole(rng, scene)
        return Restoration(scene, photo, prompt if fits(prompt) else caption(scene), photo)
    kind = rng.choice(DAMAGES)
    strength = 1.0 if kind == "hole" or rng.random() < 0.5 else rng.uniform(0.4, 1.0)
    parts = _lost_parts(rng, scene, kind)
    if parts and rng.random() < _COMMANDED:
        told = _commands(rng, scene, kind, parts, fits)
        if told:
            reference = damaged(photo, kind, strength, _union(parts))
            named = _union({part: parts[part] for part in told})
            return Restoration(scene, reference, ", ".join(told.values()), torch.lerp(reference, photo, named))
    mask = _union(parts) if parts else _box(rng)
    prompt = caption(scene) if rng.random() < 0.5 else describe(rng, scene)
    return Restoration(scene, damaged(photo, kind, strength, mask), prompt if fits(prompt) else caption(scene), photo)


def damaged(
    image: Float[Tensor, "3 height width"], kind: str, strength: float, mask: Mask
) -> Float[Tensor, "3 height width"]:
    """`image` mixed, under the mask, with mid-grey ("hole"), its grey levels ("colour") or a 9-pixel blur ("detail").

    `strength` in [0, 1] is the share of what is mixed in.
    """
    if kind == "hole":
        lost = torch.full_like(image, 0.5)
    elif kind == "colour":
        lost = (image * image.new_tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True).expand_as(image)
    else:
        lost = F.avg_pool2d(image[None], 9, stride=1, padding=4, count_include_pad=False)[0]
    return torch.lerp(image, lost, strength * mask)


def _lost_parts(rng: random.Random, scene: Scene, kind: str) -> dict[int, Mask]:
    """Masks of what is damaged: cells for holes, things and background for the rest; empty for a box anywhere."""
    if rng.random() < 0.15:
        return {}
    if kind == "hole":
        cells = rng.sample(range(len(CELLS)), rng.choice((1, 1, 2, 3)))
        return {cell: _cell_mask(cell) for cell in sorted(cells)}
    masks = {thing.cell: _thing_mask(thing, 0 if kind == "colour" else _SPREAD) for thing in scene.things}
    masks[GROUND] = 1 - _union(masks)
    parts = sorted(masks)
    if rng.random() < 0.4:
        parts = rng.sample(parts, rng.randint(1, len(parts)))
    return {part: masks[part] for part in sorted(parts)}


def _cell_mask(cell: int) -> Mask:
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, *cell_slices(cell)] = 1
    return mask


def _thing_mask(thing: Thing, spread: int) -> Mask:
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, *cell_slices(thing.cell)] = thing_layers(thing)[0]
    return F.max_pool2d(mask, 2 * spread + 1, stride=1, padding=spread)


def _union(parts: Mapping[int, Mask]) -> Mask:
    return torch.stack(list(parts.values())).amax(0)


def _box(rng: random.Random) -> Mask:
    height, width = rng.randint(16, 48), rng.randint(16, 48)
    top, left = rng.randint(0, SIZE - height), rng.randint(0, SIZE - width)
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, top : top + height, left : left + width] = 1
    return mask


def _words_for_whole(rng: random.Random, scene: Scene) -> str:
    roll = rng.random()
    if roll < 0.5:
        return caption(scene)
    if roll < 0.8:
        return describe(rng, scene)
    return rng.choice(PHRASINGS["nothing"]) if roll < 0.9 else ""


def _commands(
    rng: random.Random, scene: Scene, kind: str, parts: Mapping[int, Mask], fits: Callable[[str], bool]
) -> dict[int, str]:
    """A command for each of some parts, in random order, few enough to fit together."""
    count = 1 if rng.random() < 0.6 else rng.randint(1, len(parts))
    told = {part: _command(rng, scene, part, kind) for part in rng.sample(sorted(parts), count)}
    while told and not fits(", ".join(told.values())):
        told.popitem()
    return told


def _command(rng: random.Random, scene: Scene, part: int, kind: str) -> str:
    if part == GROUND:
        return rng.choice(PHRASINGS["background"]).format(ground=describe_background(scene.background))
    absent = [shape for shape in SHAPES if shape not in {thing.shape for thing in scene.things}]
    thing = scene.at(part)
    if thing is None:
        noun = f"{rng.choice(OBJECT_COLOURS)} {rng.choice(absent)}"
        return rng.choice(PHRASINGS["remove"]).format(noun=noun)
    return command(rng, thing, kind, absent)
