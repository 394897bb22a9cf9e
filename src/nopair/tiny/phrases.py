"""Prompts as people write them: things in any order, in several wordings, as statements or as commands, not always with
their place or every attribute.

A base that has only ever read one pattern of caption cannot read an instruction. And where a prompt does not say at
which place a thing stands, the base has to look, which is what an editor does first with "the red circle".
"""

import random
from collections.abc import Sequence
from typing import Final

from nopair.world.edits import PHRASINGS, any_edit
from nopair.world.scenes import (
    CELLS,
    OBJECT_COLOURS,
    Background,
    Scene,
    Thing,
    caption,
    describe_background,
    describe_thing,
)

_CANONICAL: Final = 0.25
"""Share of prompts in the world's own complete form, in which edited captions are written."""
_PLACED: Final = 0.7
"""Share of the others that say where things stand."""
_TWICE: Final = 0.35
"""Share of things that are told in two parts, such as "a small circle, make the circle red"."""


def describe(rng: random.Random, scene: Scene) -> str:
    """A true prompt for `scene`, though perhaps not a complete one."""
    if rng.random() < _CANONICAL:
        return caption(scene)
    placed = rng.random() < _PLACED
    things = [
        _in_two_parts(rng, t, placed) if rng.random() < _TWICE else _at_once(rng, t, placed) for t in scene.things
    ]
    rng.shuffle(things)
    return ", ".join(_with_background(rng, things, scene.background))


def described_edit(rng: random.Random) -> tuple[str, Scene]:
    """A scene told by what it was before and what was then asked for, and the scene itself.

    "small red circle top left, on teal checks, make the red circle blue" is a blue circle: language, which a base with
    a language model for a text encoder understands. There is no image of the scene before.
    """
    edit = any_edit(rng)
    before = caption(edit.source) if rng.random() < 0.5 else describe(rng, edit.source)
    return f"{before}, {edit.instruction}", edit.target


def command(rng: random.Random, thing: Thing, lost: str, absent: Sequence[str]) -> str:
    """What to draw where a photo of `thing` has lost its "colour" or its "detail", or has a "hole", as a command.

    The command may name a thing that is not there, of one of the shapes in `absent`, as the one that is changed: what
    comes last is what is to be seen.
    """
    colour = rng.choice(OBJECT_COLOURS)
    if lost == "colour":
        noun = f"{colour} {thing.shape}" if rng.random() < 0.7 else thing.shape
        return rng.choice(PHRASINGS["recolour"]).format(noun=noun, colour=thing.colour)
    if lost == "detail":
        told = rng.choice(("texture", "resize"))
        return rng.choice(PHRASINGS[told]).format(noun=thing.noun, texture=thing.texture, size=thing.size)
    roll = rng.random()
    if roll < 0.5:
        return rng.choice(PHRASINGS["add"]).format(thing=describe_thing(thing), cell=CELLS[thing.cell])
    if roll < 0.7:
        return rng.choice(PHRASINGS["move"]).format(noun=thing.noun, cell=CELLS[thing.cell])
    return rng.choice(PHRASINGS["replace"]).format(noun=f"{colour} {rng.choice(absent)}", new=thing.noun)


def _at_once(rng: random.Random, thing: Thing, placed: bool) -> str:
    full = describe_thing(thing)
    texture = [] if thing.texture == "plain" else [thing.texture]
    brief = " ".join((rng.choice(("", thing.size)), *texture, thing.noun)).strip()
    facts = [thing.colour, thing.size, *texture]
    rng.shuffle(facts)
    if not placed:
        return rng.choice((full, f"a {full}", f"a {brief}", f"the {thing.shape} is {' '.join(facts)}"))
    place = CELLS[thing.cell]
    return rng.choice(
        (
            f"{full} {place}",
            f"a {brief} at the {place}",
            f"add a {full} at the {place}",
            f"put a {full} in the {place}",
            f"draw a {full} at the {place}",
            f"the {thing.shape} at the {place} is {' '.join(facts)}",
        )
    )


def _in_two_parts(rng: random.Random, thing: Thing, placed: bool) -> str:
    place = f" at the {CELLS[thing.cell]}" if placed else ""
    texture = "" if thing.texture == "plain" else f"{thing.texture} "
    told = rng.choice(("colour", "size", "texture", "place"))
    if told == "colour":
        then = rng.choice(PHRASINGS["recolour"]).format(noun=thing.shape, colour=thing.colour)
        return f"a {thing.size} {texture}{thing.shape}{place}, {then}"
    if told == "size":
        then = rng.choice(PHRASINGS["resize"]).format(noun=thing.noun, size=thing.size)
        return f"a {texture}{thing.noun}{place}, {then}"
    if told == "texture":
        then = rng.choice(PHRASINGS["texture"]).format(noun=thing.noun, texture=thing.texture)
        return f"a {thing.size} {thing.noun}{place}, {then}"
    then = rng.choice(PHRASINGS["move"]).format(noun=thing.noun, cell=CELLS[thing.cell])
    return f"a {describe_thing(thing)}, {then}"


def _with_background(rng: random.Random, things: list[str], background: Background) -> list[str]:
    ground = describe_background(background)
    told = (f"on {ground}", f"{ground} behind it", f"make the background {ground}", f"put {ground} behind it")
    place = rng.choice((0, len(things)))
    return [*things[:place], rng.choice((*told, f"change the background to {ground}")), *things[place:]]
