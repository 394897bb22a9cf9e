"""Edits as values: what was asked, in words, and the scene that would be the right answer.

`Edit` knows the answer and so never enters the editor's training data; `nopair.world.records` strips it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nopair.errors import DataError
from nopair.world.scenes import (
    BACKGROUND_COLOURS,
    CELLS,
    OBJECT_COLOURS,
    OFFSETS,
    PATTERNS,
    PHASES,
    SHAPES,
    SIZES,
    TEXTURES,
    Background,
    Scene,
    Thing,
    describe_background,
    describe_thing,
    is_held_out,
)

CATEGORIES: Final = ("recolour", "remove", "add", "replace", "resize", "move", "background", "texture", "nothing")
"""Every kind of local edit. `nothing` asks for the reference itself."""
FREE_FORM: Final = "free-form"
"""The reference's subject in a wholly new scene, as in subject-driven generation. Asked for by name only."""
ALL_CATEGORIES: Final = (*CATEGORIES, FREE_FORM)

PHRASINGS: Final = {
    "recolour": (
        "make the {noun} {colour}",
        "change the colour of the {noun} to {colour}",
        "paint the {noun} {colour}",
    ),
    "remove": ("remove the {noun}", "erase the {noun}", "take the {noun} away"),
    "add": ("add a {thing} at the {cell}", "put a {thing} in the {cell}", "draw a {thing} at the {cell}"),
    "replace": ("replace the {noun} with a {new}", "turn the {noun} into a {new}", "swap the {noun} for a {new}"),
    "resize": ("make the {noun} {size}", "change the size of the {noun} to {size}", "turn the {noun} {size}"),
    "move": ("move the {noun} to the {cell}", "put the {noun} at the {cell}", "shift the {noun} to the {cell}"),
    "background": ("change the background to {ground}", "make the background {ground}", "put {ground} behind it"),
    "texture": ("make the {noun} {texture}", "give the {noun} a {texture} look", "turn the {noun} {texture}"),
    "nothing": ("do nothing", "leave it as it is", "keep everything the same"),
    FREE_FORM: (
        "put the {shape} on {ground} with a {thing}",
        "draw the {shape} on {ground} with a {thing}",
        "put the {shape} with a {thing} on {ground}",
        "draw a {thing} with the {shape}, on {ground}",
    ),
}


@dataclass(frozen=True, slots=True)
class Edit:
    """One edit with its right answer.

    `subject` is the noun of the object the edit is about (empty for `background` and `nothing`; for `free-form` only
    its shape, as the rest is for the reference to tell); `cell` is where the asked change shows (for `move`, the
    destination), or None. What the instruction leaves open in the target (jitter of a thing that is added or moved,
    phase of a new background, all places of `free-form`) is arbitrary.
    """

    category: str
    instruction: str
    source: Scene
    target: Scene
    subject: str
    cell: int | None


def random_thing(rng: random.Random, cell: int, shape: str) -> Thing:
    """A thing of the given shape in the given cell, the rest uniform."""
    return Thing(
        shape,
        rng.choice(OBJECT_COLOURS),
        rng.choice(TEXTURES),
        rng.choice(SIZES),
        cell,
        rng.choice(OFFSETS),
        rng.choice(OFFSETS),
    )


def random_background(rng: random.Random) -> Background:
    """Uniform."""
    return Background(rng.choice(PATTERNS), rng.choice(BACKGROUND_COLOURS), rng.choice(PHASES), rng.choice(PHASES))


def random_scene(rng: random.Random, least: int = 1, most: int = 3) -> Scene:
    """A scene of `least` to `most` things in distinct cells and of distinct shapes, all else uniform."""
    count = rng.randint(least, most)
    cells = sorted(rng.sample(range(len(CELLS)), count))
    shapes = rng.sample(SHAPES, count)
    return Scene(random_background(rng), tuple(random_thing(rng, c, s) for c, s in zip(cells, shapes, strict=True)))


def _other(rng: random.Random, options: tuple[str, ...], current: str) -> str:
    return rng.choice([option for option in options if option != current])


def _subject(rng: random.Random, source: Scene) -> Thing:
    return rng.choice(source.things)


def _free_cell(rng: random.Random, source: Scene) -> int:
    return rng.choice([cell for cell in range(len(CELLS)) if source.at(cell) is None])


def _free_shape(rng: random.Random, source: Scene) -> str:
    taken = {thing.shape for thing in source.things}
    return rng.choice([shape for shape in SHAPES if shape not in taken])


_Draft = tuple[Scene, dict[str, str], str, int | None]
"""Target scene, words to fill a phrasing with, subject, cell."""


def _recolour(rng: random.Random, source: Scene) -> _Draft:
    old = _subject(rng, source)
    new = replace(old, colour=_other(rng, OBJECT_COLOURS, old.colour))
    return source.with_thing(new), {"noun": old.noun, "colour": new.colour}, old.noun, old.cell


def _remove(rng: random.Random, source: Scene) -> _Draft:
    old = _subject(rng, source)
    return source.without(old.cell), {"noun": old.noun}, old.noun, old.cell


def _add(rng: random.Random, source: Scene) -> _Draft:
    new = random_thing(rng, _free_cell(rng, source), _free_shape(rng, source))
    return source.with_thing(new), {"thing": describe_thing(new), "cell": CELLS[new.cell]}, new.noun, new.cell


def _replace(rng: random.Random, source: Scene) -> _Draft:
    old = _subject(rng, source)
    new = replace(old, shape=_free_shape(rng, source), colour=rng.choice(OBJECT_COLOURS))
    return source.with_thing(new), {"noun": old.noun, "new": new.noun}, old.noun, old.cell


def _resize(rng: random.Random, source: Scene) -> _Draft:
    old = _subject(rng, source)
    new = replace(old, size=_other(rng, SIZES, old.size))
    return source.with_thing(new), {"noun": old.noun, "size": new.size}, old.noun, old.cell


def _move(rng: random.Random, source: Scene) -> _Draft:
    old = _subject(rng, source)
    new = replace(old, cell=_free_cell(rng, source), dx=rng.choice(OFFSETS), dy=rng.choice(OFFSETS))
    return source.without(old.cell).with_thing(new), {"noun": old.noun, "cell": CELLS[new.cell]}, old.noun, new.cell


def _background(rng: random.Random, source: Scene) -> _Draft:
    old = source.background
    options = [(c, p) for c in BACKGROUND_COLOURS for p in PATTERNS if (c, p) != (old.colour, old.pattern)]
    colour, pattern = rng.choice(options)
    new = Background(pattern, colour, rng.choice(PHASES), rng.choice(PHASES))
    return replace(source, background=new), {"ground": describe_background(new)}, "", None


def _texture(rng: random.Random, source: Scene) -> _Draft:
    old = _subject(rng, source)
    new = replace(old, texture=_other(rng, TEXTURES, old.texture))
    return source.with_thing(new), {"noun": old.noun, "texture": new.texture}, old.noun, old.cell


def _nothing(rng: random.Random, source: Scene) -> _Draft:
    return source, {}, "", None


def _free_form(rng: random.Random, source: Scene) -> _Draft:
    old = _subject(rng, source)
    cells = rng.sample(range(len(CELLS)), 2)
    subject = replace(old, cell=cells[0], dx=rng.choice(OFFSETS), dy=rng.choice(OFFSETS))
    other = random_thing(rng, cells[1], _other(rng, SHAPES, old.shape))
    ground = _background(rng, source)[0].background
    target = Scene(ground, (subject,)).with_thing(other)
    words = {"shape": old.shape, "thing": describe_thing(other), "ground": describe_background(ground)}
    return target, words, old.shape, None


_DRAFTS: Final[dict[str, Callable[[random.Random, Scene], _Draft]]] = {
    "recolour": _recolour,
    "remove": _remove,
    "add": _add,
    "replace": _replace,
    "resize": _resize,
    "move": _move,
    "background": _background,
    "texture": _texture,
    "nothing": _nothing,
    FREE_FORM: _free_form,
}


def random_edit(rng: random.Random, category: str, source: Scene) -> Edit:
    """An edit of the given category applied to `source`, with a random phrasing."""
    target, words, subject, cell = _DRAFTS[category](rng, source)
    instruction = rng.choice(PHRASINGS[category]).format(**words)
    return Edit(category, instruction, source, target, subject, cell)


def sample_edit(rng: random.Random, category: str, *, held_out: bool) -> Edit:
    """An edit from the training split, or from the held-out split.

    Training: neither the source nor the target holds a reserved combination. Held out: at least one of them does.
    The two splits are disjoint by construction whatever the seeds. Neither scene has more than three things; the
    source of `free-form` has one, its subject.
    """
    most = {"add": 2, FREE_FORM: 1}.get(category, 3)
    while True:
        edit = random_edit(rng, category, random_scene(rng, most=most))
        if held_out == (is_held_out(edit.source) or is_held_out(edit.target)):
            return edit


def draw_category(rng: random.Random, categories: Sequence[str], nothing_share: float) -> str:
    """One of `categories` with equal chance, but `nothing`, if it is among them, with a chance of `nothing_share`."""
    others = [category for category in categories if category != "nothing"]
    draw = rng.random()
    if not others or ("nothing" in categories and draw < nothing_share):
        return "nothing"
    return rng.choice(others)


def require_mixture(categories: Sequence[str], nothing_share: float) -> None:
    """Raises DataError for what `draw_category` cannot draw from: no or unknown categories, a share outside [0, 1]."""
    unknown = [category for category in categories if category not in ALL_CATEGORIES]
    if unknown or not categories:
        raise DataError(f"unknown edit categories {unknown}; choose at least one of: {', '.join(ALL_CATEGORIES)}")
    if not 0.0 <= nothing_share <= 1.0:
        raise DataError(f"nothing_share must be between 0 and 1, not {nothing_share}")


def any_edit(rng: random.Random) -> Edit:
    """An edit of a random category from either split: what the base and the judge, stand-ins for pretrained models,
    know."""
    return sample_edit(rng, rng.choice(CATEGORIES), held_out=rng.random() < 0.3)
