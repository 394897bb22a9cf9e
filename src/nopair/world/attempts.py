"""Attempts at edits, good and bad, with what is true of them: what an editor might hand in, from right to ruined.

To teach a judge what a bad edit looks like, and to find out whether it knows. Labels follow from how an attempt was
made; where they would be debatable (a blend that is nearly done) there is none.
"""

import random
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.world.damage import blend_mask, blur, corrupt, fill, warp
from nopair.world.edits import FREE_FORM, Edit, any_edit, random_background, random_edit, random_scene, random_thing
from nopair.world.oracle import DESCRIBED, IDENTITY, achieved, edited_things, subject_identity
from nopair.world.render import backgrounds, render, thing_region
from nopair.world.scenes import (
    BACKGROUND_COLOURS,
    CELLS,
    OBJECT_COLOURS,
    OFFSETS,
    PATTERNS,
    PHASES,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
)

KINDS: Final = {
    "right": 0.26,
    "unchanged": 0.06,
    "wrong": 0.18,
    "misshapen": 0.11,
    "half": 0.07,
    "over": 0.08,
    "nudged": 0.1,
    "smeared": 0.07,
    "corrupted": 0.04,
    "unrelated": 0.03,
}
"""Kinds of attempt and their shares."""
MELTING: Final = ("recolour", "add", "replace", "resize", "move", "texture")
"""Categories after which a thing stands where the edit was; of the others, a misshapen attempt is a smeared one."""


def other_than(rng: random.Random, options: tuple, current: object) -> object:
    """One of the options that `current` is not."""
    return rng.choice([option for option in options if option != current])


OPEN: Final = {
    "recolour": ("colour",),
    "remove": (),
    "add": ("shape", "colour", "texture", "size", "dx", "dy"),
    "replace": ("shape", "colour"),
    "resize": ("size",),
    "move": ("cell", "dx", "dy"),
    "texture": ("texture",),
}
"""What may differ in the edited thing without anything else having changed."""


def is_kept(edit: Edit, scene: Scene) -> bool:
    """Whether everything the edit does not ask for is as in the reference, whether or not the edit was done.

    Of `free-form`, whether the subject is the same.
    """
    if edit.category == FREE_FORM:
        return subject_identity(edit, scene) == 1.0
    if edit.category != "background" and scene.background != edit.source.background:
        return False
    old_cell = next((thing.cell for thing in edit.source.things if thing.noun == edit.subject), None)
    edited = {edit.cell, old_cell} - {None}
    for cell in range(4):
        before, after = edit.source.at(cell), scene.at(cell)
        if before == after:
            continue
        if cell not in edited:
            return False
        if edit.category == "add" or (edit.category in ("move", "remove") and after is None):
            continue
        old = edit.source.at(old_cell) if old_cell is not None else None
        if after is None or old is None or edit.category == "remove":
            return False
        if _with(after, old, OPEN[edit.category]) != after:
            return False
    return True


def _with(after: Thing, old: Thing, free: tuple[str, ...]) -> Thing:
    """`old` with its free attributes taken from `after`."""
    return replace(old, **{name: getattr(after, name) for name in free})


def _change(rng: random.Random, thing: Thing) -> Thing:
    """One visible attribute of a thing changed."""
    name = rng.choice(("shape", "colour", "texture", "size", "place"))
    if name == "place":
        places = [(dx, dy) for dx in OFFSETS for dy in OFFSETS if (dx, dy) != (thing.dx, thing.dy)]
        dx, dy = rng.choice(places)
        return replace(thing, dx=dx, dy=dy)
    options = {"shape": SHAPES, "colour": OBJECT_COLOURS, "texture": TEXTURES, "size": SIZES}[name]
    return replace(thing, **{name: other_than(rng, options, getattr(thing, name))})


def disturb(rng: random.Random, scene: Scene) -> Scene:
    """The scene with one thing more, fewer or different, or another background (often only its phase)."""
    roll = rng.random()
    if roll < 0.4 or (roll < 0.8 and not scene.things):
        ground = scene.background
        if rng.random() < 0.5:
            moves = [(x, y) for x in PHASES for y in PHASES if not _same_phase(ground.pattern, ground, x, y)]
            x, y = rng.choice(moves)
            return replace(scene, background=replace(ground, phase_x=x, phase_y=y))
        name, options = rng.choice((("colour", BACKGROUND_COLOURS), ("pattern", PATTERNS)))
        return replace(scene, background=replace(ground, **{name: other_than(rng, options, getattr(ground, name))}))
    if roll < 0.8:
        thing = rng.choice(scene.things)
        return scene.without(thing.cell) if rng.random() < 0.3 else scene.with_thing(_change(rng, thing))
    free = [cell for cell in range(4) if scene.at(cell) is None]
    return scene.with_thing(random_thing(rng, rng.choice(free), rng.choice(SHAPES))) if free else disturb(rng, scene)


def _same_phase(pattern: str, ground: object, x: int, y: int) -> bool:
    """Whether a phase paints the same picture (stripes do not change when shifted along themselves)."""
    table = backgrounds()[PATTERNS.index(pattern), 0]
    index = PHASES.index
    old = table[index(ground.phase_y), index(ground.phase_x)]  # type: ignore[attr-defined]
    return torch.equal(old, table[index(y), index(x)])


def _near_miss(rng: random.Random, edit: Edit) -> Scene:
    """A wrong attempt: another edit of the same scene, or the right one with an asked attribute wrong or a part
    left out."""
    roll = rng.random()
    if roll < 0.35:
        category = edit.category if rng.random() < 0.6 and edit.category != "nothing" else any_edit(rng).category
        if category == "add" and len(edit.source.things) > 2:
            category = "recolour"
        return random_edit(rng, category, edit.source).target
    if edit.category in ("nothing", "remove"):
        return disturb(rng, edit.source)
    if edit.category == FREE_FORM:
        return _near_scene(rng, edit)
    if edit.category == "background":
        wanted = edit.target.background
        other = random_background(rng)
        name = rng.choice(("pattern", "colour"))
        return replace(edit.target, background=replace(wanted, **{name: getattr(other, name)}))
    assert edit.cell is not None
    if edit.category == "move" and rng.random() < 0.5:
        old = next(thing for thing in edit.source.things if thing.noun == edit.subject)
        return edit.source.without(old.cell) if rng.random() < 0.4 else edit.target.with_thing(old)
    wanted_thing = edit.target.at(edit.cell)
    assert wanted_thing is not None
    return edit.target.with_thing(_change(rng, wanted_thing))


def _cast(edit: Edit) -> tuple[Thing, Thing]:
    """The two things of the scene that a `free-form` edit asks for: its subject, and the other one."""
    subject, other = sorted(edit.target.things, key=lambda thing: thing.shape != edit.subject)
    return subject, other


def _near_scene(rng: random.Random, edit: Edit) -> Scene:
    """Not quite the new scene: a part of it, or another background, other thing or shape of the subject."""
    subject, other = _cast(edit)
    roll = rng.random()
    if roll < 0.15:
        return edit.target.without(subject.cell)
    if roll < 0.3:
        return edit.target.without(other.cell)
    if roll < 0.6:
        ground = edit.source.background if rng.random() < 0.4 else random_background(rng)
        return replace(edit.target, background=ground)
    if roll < 0.75:
        taken = (subject.shape, other.shape)
        return edit.target.with_thing(replace(subject, shape=rng.choice([s for s in SHAPES if s not in taken])))
    return edit.target.with_thing(_change(rng, other))


@dataclass(frozen=True, slots=True)
class Attempt:
    """An image with its labels, None where debatable.

    `done` says whether the edit was carried out, `kept` whether all else is as it was; of `nothing`, both. `shown` is
    the scene to look for a subject in.
    """

    image: Float[Tensor, "3 height width"]
    done: bool | None
    kept: bool | None
    shown: Scene | None


def _of_scene(edit: Edit, scene: Scene) -> Attempt:
    return Attempt(render(scene), achieved(edit, scene), is_kept(edit, scene), scene)


def _smeared(rng: random.Random, edit: Edit, source: torch.Generator) -> Attempt:
    """The right result with damage to the edited region, or to a box anywhere."""
    before, after = render(edit.source), render(edit.target)
    asked = blend_mask(before, after)
    at_edit = rng.random() < 0.5 and bool(asked.any()) and edit.category != "background"
    if at_edit:
        region = torch.nn.functional.max_pool2d(asked, 3, stride=1, padding=1)
    else:
        side, top, left = rng.randint(14, 30), rng.randint(0, SIZE - 14), rng.randint(0, SIZE - 14)
        region = torch.zeros(1, SIZE, SIZE)
        region[:, top : top + side, left : left + side] = 1
    image = after + region * (fill(rng, after, source) - after)
    touched = bool((region * asked).any())
    hides = edit.category == "remove"
    return Attempt(image, False if at_edit else (None if touched else True), False, edit.target if hides else None)


def _misshapen(rng: random.Random, edit: Edit, source: torch.Generator) -> Attempt:
    """The right result, but the edited thing has melted: mixed with other shapes, blurred, or warped.

    This is what an editor paints before it can draw: the colour is right and the place too.
    """
    assert edit.cell is not None
    thing = edit.target.at(edit.cell)
    assert thing is not None
    after = render(edit.target)
    # Where any thing could stand in the cell, so that its new outline has room.
    bare = render(edit.target.without(edit.cell))
    kind = rng.randrange(3)
    if kind == 0:
        others = [replace(thing, shape=shape) for shape in SHAPES if shape != thing.shape]
        drawn = [render(edit.target.with_thing(other)) for other in rng.sample(others, rng.choice((1, 2)))]
        own = rng.uniform(0.1, 0.5)
        image = own * after + (1 - own) * torch.stack(drawn).mean(0)
    else:
        melted = blur(after, rng.uniform(2.0, 4.0)) if kind == 1 else warp(after, rng.uniform(2.5, 5.0), source)
        region = torch.nn.functional.max_pool2d(blend_mask(bare, after), 7, stride=1, padding=3)
        image = torch.lerp(after, melted, region)
    kept = {"add": True, "recolour": False, "resize": False, "texture": False}.get(edit.category)
    return Attempt(image, False, kept, None)


def _half(rng: random.Random, edit: Edit, source: torch.Generator) -> Attempt:
    """A blend of before and after, everywhere or only where they differ; never nearly done."""
    before, after = render(edit.source), render(edit.target)
    share = rng.uniform(0.1, 0.55)
    if rng.random() < 0.5:
        return Attempt(torch.lerp(before, after, share), False, True, edit.source)
    region = blend_mask(before, after)
    top = rng.uniform(0, 1)
    ramp = (
        torch.linspace(0, 1, SIZE).view(1, -1, 1) if rng.random() < 0.5 else torch.linspace(0, 1, SIZE).view(1, 1, -1)
    )
    part = (ramp < top).float()
    image = before + region * part * (after - before)
    done_share = float((region * part).sum() / region.sum().clamp(min=1))
    far = done_share < 0.7
    return Attempt(image, False if far else None, True, edit.source if far else None)


def _slightly(rng: random.Random, thing: Thing, names: tuple[str, ...]) -> Thing:
    """One of these attributes of a thing changed; its place, "dx" or "dy", by one step."""
    name = rng.choice(names)
    if name in ("dx", "dy"):
        near = [offset for offset in OFFSETS if abs(offset - getattr(thing, name)) == OFFSETS[1] - OFFSETS[0]]
        return replace(thing, **{name: rng.choice(near)})
    options = {"shape": SHAPES, "colour": OBJECT_COLOURS, "texture": TEXTURES, "size": SIZES}[name]
    return replace(thing, **{name: other_than(rng, options, getattr(thing, name))})


def _keepable(edit: Edit) -> list[tuple[Thing, tuple[str, ...]]]:
    """Things of the right result that were there before, each with what must not have changed in it."""
    if edit.category == FREE_FORM:
        return [(_cast(edit)[0], IDENTITY)]
    _, after = edited_things(edit)
    open_ = {after: OPEN[edit.category]} if after is not None else {}
    whole = [
        (thing, tuple(name for name in (*DESCRIBED, "dx", "dy") if name not in open_.get(thing, ())))
        for thing in edit.target.things
    ]
    return [(thing, names) for thing, names in whole if names]


def _nudged(rng: random.Random, edit: Edit) -> Attempt | None:
    """The right result, but one thing that was to stay is slightly another: the least that the oracle minds.

    Another shape, texture or size, one step aside, or a blend with such a thing in which its own share is less than
    half. None if nothing was to stay.
    """
    keepable = _keepable(edit)
    if not keepable:
        return None
    thing, names = rng.choice(keepable)
    # A judge sees another colour well; the rest is what it has been blind to.
    subtle = tuple(name for name in names if name != "colour" or rng.random() < 0.3)
    scene = edit.target.with_thing(_slightly(rng, thing, subtle))
    whole = _of_scene(edit, scene)
    if rng.random() < 0.65:
        return whole
    image = torch.lerp(whole.image, render(edit.target), rng.uniform(0.0, 0.45))
    sure = whole.done == achieved(edit, edit.target)
    return Attempt(image, whole.done if sure else None, whole.kept, None)


def _melted(rng: random.Random, edit: Edit, thing: Thing, source: torch.Generator) -> Tensor:
    """The right result, but a thing of it is smeared, blurred or warped, with as much room as its cell has."""
    after = render(edit.target)
    kind = rng.randrange(3)
    if kind == 0:
        bad = fill(rng, after, source)
    else:
        bad = blur(after, rng.uniform(2.0, 4.0)) if kind == 1 else warp(after, rng.uniform(2.5, 5.0), source)
    return torch.lerp(after, bad, thing_region(thing, grow=3))


def _part_of_scene(rng: random.Random, edit: Edit) -> Attempt:
    """A new scene that lacks something: the other thing or most of it, the new background, or the subject.

    The subject stands where it was or where it was to go, which is open.
    """
    subject, other = _cast(edit)
    roll = rng.random()
    if roll < 0.1:
        return _of_scene(edit, edit.target.without(subject.cell))
    (old,) = (thing for thing in edit.source.things if thing.shape == edit.subject)
    kept = rng.choice((old, subject))
    free = rng.choice([cell for cell in range(len(CELLS)) if cell != kept.cell])
    whole = Scene(edit.target.background, (kept,)).with_thing(replace(other, cell=free))
    if roll < 0.3:
        return _of_scene(edit, replace(whole, background=edit.source.background))
    lacking = _of_scene(edit, whole.without(free))
    if rng.random() < 0.5:
        return lacking
    image = torch.lerp(lacking.image, render(whole), rng.uniform(0.05, 0.45))
    return Attempt(image, False, lacking.kept, None)


def _new_scene(rng: random.Random, kind: str, edit: Edit, source: torch.Generator) -> Attempt | None:
    """An attempt at `free-form` where it differs from those at other edits; None where it does not."""
    subject, other = _cast(edit)
    if kind == "over":
        if rng.random() < 0.3:
            free = [cell for cell in range(len(CELLS)) if edit.target.at(cell) is None]
            return _of_scene(edit, edit.target.with_thing(random_thing(rng, rng.choice(free), rng.choice(SHAPES))))
        changed = replace(random_thing(rng, subject.cell, subject.shape), dx=subject.dx, dy=subject.dy)
        return _of_scene(edit, edit.target.with_thing(changed))
    if kind == "half":
        if rng.random() < 0.7:
            return _part_of_scene(rng, edit)
        share = rng.uniform(0.1, 0.55)
        return Attempt(torch.lerp(render(edit.source), render(edit.target), share), False, None, None)
    if kind in ("misshapen", "smeared"):
        spoilt = rng.random() < 0.6
        image = _melted(rng, edit, subject if spoilt else other, source)
        return Attempt(image, False, not spoilt, None)
    return None


def make_attempt(rng: random.Random, kind: str, edit: Edit, source: torch.Generator) -> Attempt:
    """An attempt of a kind in `KINDS`; of the kinds that an edit cannot have, the one most like it."""
    own = _new_scene(rng, kind, edit, source) if edit.category == FREE_FORM else None
    if own is not None:
        return own
    if kind == "nudged":
        return _nudged(rng, edit) or _of_scene(edit, disturb(rng, edit.target))
    if kind == "right":
        return _of_scene(edit, edit.target)
    if kind == "unchanged":
        return _of_scene(edit, edit.source)
    if kind == "wrong":
        return _of_scene(edit, _near_miss(rng, edit))
    if kind == "unrelated":
        return _of_scene(edit, random_scene(rng))
    if kind == "over":
        return _of_scene(edit, disturb(rng, edit.target))
    if kind == "half" and edit.category != "nothing":
        return _half(rng, edit, source)
    if kind == "misshapen" and edit.category in MELTING:
        return _misshapen(rng, edit, source)
    if kind in ("smeared", "misshapen"):
        return _smeared(rng, edit, source)
    base = edit.target if rng.random() < 0.7 else edit.source
    return Attempt(corrupt(rng, render(base), source), False, False, None)


def seen_in(scene: Scene, noun: str) -> Thing | None:
    """The thing that a noun such as "red circle" means in a scene, if it is there."""
    return next((thing for thing in scene.things if thing.noun == noun), None)
