"""Damaged photos and what was there, in words: how the tiny base learns to look at a reference before it is an editor.

Part of the base's pretraining is in the family's omni form, with a reference image. The reference is the photo itself,
whole or damaged (a hole, colours lost, detail lost), the prompt tells what the photo shows, and the photo is what must
come out. One unlabelled photo with its caption makes such a task: there is no second image of the scene and no edit.
What the base learns is to copy what a reference shows and to take from the words what it does not show.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nopair.tiny.phrases import command, describe
from nopair.world.edits import PHRASINGS, random_scene
from nopair.world.render import cell_slices, render
from nopair.world.scenes import CELLS, OBJECT_COLOURS, SHAPES, SIZE, Scene, caption, describe_background

DAMAGES: Final = ("hole", "colour", "colour", "detail", "detail")
"""What a reference may have lost where it is damaged, with equal chances."""
_WHOLE: Final = 0.25
"""Share of references without damage."""
_SOME: Final = 0.7
"""Share of photos damaged everywhere of which only some things are named: their words must not colour the others."""
_LUMA: Final = (0.3, 0.59, 0.11)
_EVERYWHERE: Final = frozenset(range(len(CELLS)))

Box = tuple[slice, slice]
"""Rows and columns."""


@dataclass(frozen=True, slots=True)
class Restoration:
    """A photo (`scene`), what is left of it, and words about it."""

    scene: Scene
    reference: Float[Tensor, "3 height width"]
    prompt: str


def restoration(rng: random.Random, fits: Callable[[str], bool]) -> Restoration:
    """A random task whose prompt `fits`; the caption, which must, stands in for one that does not.

    A whole reference comes with a true caption, a request to change nothing, or no words. The words about a damaged one
    are a caption, or commands for what was lost, from which what they do not name must be told apart by looking.
    """
    scene = random_scene(rng)
    photo = render(scene)
    if rng.random() < _WHOLE:
        reference, prompt = photo, _words_for_whole(rng, scene)
    else:
        kind = rng.choice(DAMAGES)
        strength = 1.0 if kind == "hole" or rng.random() < 0.5 else rng.uniform(0.4, 1.0)
        cells, boxes = _where(rng, kind)
        reference = damaged(photo, kind, strength, boxes)
        prompt = _words_for_damaged(rng, scene, kind, cells, fits)
    return Restoration(scene, reference, prompt if fits(prompt) else caption(scene))


def damaged(
    image: Float[Tensor, "3 height width"], kind: str, strength: float, boxes: Sequence[Box]
) -> Float[Tensor, "3 height width"]:
    """`image` mixed, in the boxes, with mid-grey ("hole"), its grey levels ("colour") or a blur of 9 pixels ("detail").

    `strength` in [0, 1] is the share of what is mixed in.
    """
    if kind == "hole":
        lost = torch.full_like(image, 0.5)
    elif kind == "colour":
        lost = (image * image.new_tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True).expand_as(image)
    else:
        lost = F.avg_pool2d(image[None], 9, stride=1, padding=4, count_include_pad=False)[0]
    mixed = torch.lerp(image, lost, strength)
    result = image.clone()
    for rows, columns in boxes:
        result[:, rows, columns] = mixed[:, rows, columns]
    return result


def _where(rng: random.Random, kind: str) -> tuple[frozenset[int], list[Box]]:
    """Which cells are damaged, and the boxes: one per cell, or a box anywhere, which stands for no cell."""
    roll = rng.random()
    if roll < 0.6 and kind != "hole":
        return _EVERYWHERE, [(slice(0, SIZE), slice(0, SIZE))]
    if roll < 0.85:
        cells = frozenset(rng.sample(range(len(CELLS)), rng.choice((1, 1, 2))))
        return cells, [cell_slices(cell) for cell in cells]
    height, width = rng.randint(16, 48), rng.randint(16, 48)
    top, left = rng.randint(0, SIZE - height), rng.randint(0, SIZE - width)
    return frozenset(), [(slice(top, top + height), slice(left, left + width))]


def _words_for_whole(rng: random.Random, scene: Scene) -> str:
    roll = rng.random()
    if roll < 0.5:
        return caption(scene)
    if roll < 0.8:
        return describe(rng, scene)
    return rng.choice(PHRASINGS["nothing"]) if roll < 0.9 else ""


def _words_for_damaged(
    rng: random.Random, scene: Scene, kind: str, cells: frozenset[int], fits: Callable[[str], bool]
) -> str:
    if cells and rng.random() < 0.75:
        words = _commands(rng, scene, kind, cells)
        rng.shuffle(words)
        if cells == _EVERYWHERE and len(words) > 1 and rng.random() < _SOME:
            words = words[: rng.randint(1, len(words) - 1)]
        while words and not fits(", ".join(words)):
            words.pop()
        if words:
            return ", ".join(words)
    return caption(scene) if rng.random() < 0.5 else describe(rng, scene)


def _commands(rng: random.Random, scene: Scene, kind: str, cells: frozenset[int]) -> list[str]:
    """One for each thing that was lost, perhaps one for nothing that was there, perhaps one for the background."""
    words = []
    for cell in sorted(cells):
        thing = scene.at(cell)
        if thing is not None:
            words.append(command(rng, thing, kind))
        elif kind == "hole" and rng.random() < 0.5:
            noun = f"{rng.choice(OBJECT_COLOURS)} {rng.choice(SHAPES)}"
            words.append(rng.choice(PHRASINGS["remove"]).format(noun=noun))
    if cells == _EVERYWHERE and ((kind == "colour" and rng.random() < 0.6) or not words):
        ground = describe_background(scene.background)
        words.append(rng.choice(PHRASINGS["background"]).format(ground=ground))
    return words
