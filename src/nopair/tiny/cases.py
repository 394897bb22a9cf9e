"""Labelled cases for pretraining the tiny judge: a reference, an attempt at an edit, a question, and the right answer.

A judge follows only where it has been: attempts are right, unchanged, wrong, half-done, over-done, misshapen and
corrupted, and most are seen through the autoencoder the editor will paint with. Labels follow from how an attempt was
made; where they would be debatable (a blend that is nearly done) the case is not made.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nopair.judges.questions import questions_for
from nopair.tiny.words import any_edit
from nopair.types import Question
from nopair.world.edits import Edit, random_background, random_edit, random_scene, random_thing
from nopair.world.oracle import achieved
from nopair.world.render import backgrounds, render, thing_layers
from nopair.world.scenes import (
    BACKGROUND_COLOURS,
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

PATCH: Final = 8
"""Side in pixels of the patches that evidence is marked on."""
KINDS: Final = {
    "right": 0.27,
    "unchanged": 0.07,
    "wrong": 0.21,
    "misshapen": 0.12,
    "half": 0.07,
    "over": 0.1,
    "smeared": 0.08,
    "corrupted": 0.05,
    "unrelated": 0.03,
}
"""Kinds of attempt and their shares."""
MELTING: Final = ("recolour", "add", "replace", "resize", "move", "texture")
"""Categories after which a thing stands where the edit was; of the others, a misshapen attempt is a smeared one."""

_PRESENCE: Final = 0.35
"""Share of attempts about which it is asked, besides, whether some thing can be seen: removal has too few such
questions."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question about one attempt.

    `evidence` marks, on a grid of patches of the attempt, where what the question turns on can be seen: unfinished
    parts of the edit, unwanted changes, or the object asked for. It and `target`, the right result, are training
    aids for
    the judge alone, and so is `scene`, what the reference shows.
    """

    kind: str
    category: str
    reference: Float[Tensor, "3 height width"]
    attempt: Float[Tensor, "3 height width"]
    target: Float[Tensor, "3 height width"]
    scene: Scene
    question: Question
    answer_yes: bool
    evidence: Bool[Tensor, "row column"]


def _other(rng: random.Random, options: tuple, current: object) -> object:
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
    """Whether everything the edit does not ask for is as in the reference, whether or not the edit was done."""
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
    return replace(thing, **{name: _other(rng, options, getattr(thing, name))})


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
        return replace(scene, background=replace(ground, **{name: _other(rng, options, getattr(ground, name))}))
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


def _blend_mask(before: Tensor, after: Tensor) -> Float[Tensor, "1 height width"]:
    return ((before - after).abs().amax(0, keepdim=True) > 0.02).float()


def _corrupt(rng: random.Random, image: Tensor, source: torch.Generator) -> Tensor:
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


def _patches(different: Bool[Tensor, "height width"]) -> Bool[Tensor, "row column"]:
    share = torch.nn.functional.avg_pool2d(different.float()[None], PATCH)[0]
    return share > 0.05


def _differs(one: Tensor, other: Tensor) -> Bool[Tensor, "height width"]:
    return (one - other).abs().amax(0) > 0.1


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An image with its labels, None where debatable. `shown` is the scene to look for a subject in."""

    image: Tensor
    done: bool | None
    kept: bool | None
    shown: Scene | None


def _of_scene(edit: Edit, scene: Scene) -> _Attempt:
    return _Attempt(render(scene), achieved(edit, scene), is_kept(edit, scene), scene)


def _smeared(rng: random.Random, edit: Edit, source: torch.Generator) -> _Attempt:
    """The right result with damage to the edited region, or to a box anywhere."""
    before, after = render(edit.source), render(edit.target)
    asked = _blend_mask(before, after)
    at_edit = rng.random() < 0.5 and bool(asked.any()) and edit.category != "background"
    if at_edit:
        region = torch.nn.functional.max_pool2d(asked, 3, stride=1, padding=1)
    else:
        side, top, left = rng.randint(14, 30), rng.randint(0, SIZE - 14), rng.randint(0, SIZE - 14)
        region = torch.zeros(1, SIZE, SIZE)
        region[:, top : top + side, left : left + side] = 1
    image = after + region * (_fill(rng, after, source) - after)
    touched = bool((region * asked).any())
    hides = edit.category == "remove"
    return _Attempt(image, False if at_edit else (None if touched else True), False, edit.target if hides else None)


def _fill(rng: random.Random, image: Tensor, source: torch.Generator) -> Tensor:
    """What a smear leaves: a flat colour, noise, a blur, or parts of some other picture."""
    kind = rng.randrange(4)
    if kind == 0:
        return torch.rand(3, 1, 1, generator=source).expand_as(image)
    if kind == 1:
        return torch.rand(image.shape, generator=source)
    if kind == 2:
        return torch.nn.functional.avg_pool2d(image[None], 11, stride=1, padding=5, count_include_pad=False)[0]
    return render(random_edit(rng, "background", any_edit(rng).source).target)


def _misshapen(rng: random.Random, edit: Edit, source: torch.Generator) -> _Attempt:
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
        melted = _blur(after, rng.uniform(2.0, 4.0)) if kind == 1 else _warp(after, rng.uniform(2.5, 5.0), source)
        region = torch.nn.functional.max_pool2d(_blend_mask(bare, after), 7, stride=1, padding=3)
        image = torch.lerp(after, melted, region)
    kept = {"add": True, "recolour": False, "resize": False, "texture": False}.get(edit.category)
    return _Attempt(image, False, kept, None)


def _blur(image: Float[Tensor, "3 height width"], sigma: float) -> Float[Tensor, "3 height width"]:
    """Gaussian blur; sigma in pixels."""
    reach = math.ceil(2.5 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).expand(3, 1, 1, -1)
    padded = torch.nn.functional.pad(image[None], (reach,) * 4, mode="reflect")
    rows = torch.nn.functional.conv2d(padded, weights, groups=3)
    return torch.nn.functional.conv2d(rows, weights.transpose(2, 3), groups=3)[0]


def _warp(
    image: Float[Tensor, "3 height width"], amplitude: float, source: torch.Generator
) -> Float[Tensor, "3 height width"]:
    """Every pixel fetched from elsewhere, by a smooth field with a root mean square of `amplitude` pixels."""
    coarse = torch.randn(1, 2, 12, 12, generator=source)
    field = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic")[0].permute(1, 2, 0)
    ticks = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    grid = torch.stack(torch.meshgrid(ticks, ticks, indexing="xy"), dim=-1) + field * amplitude * 2 / SIZE
    return torch.nn.functional.grid_sample(image[None], grid[None], padding_mode="border", align_corners=False)[0]


def _half(rng: random.Random, edit: Edit, source: torch.Generator) -> _Attempt:
    """A blend of before and after, everywhere or only where they differ; never nearly done."""
    before, after = render(edit.source), render(edit.target)
    share = rng.uniform(0.1, 0.55)
    if rng.random() < 0.5:
        return _Attempt(torch.lerp(before, after, share), False, True, edit.source)
    region = _blend_mask(before, after)
    top = rng.uniform(0, 1)
    ramp = (
        torch.linspace(0, 1, SIZE).view(1, -1, 1) if rng.random() < 0.5 else torch.linspace(0, 1, SIZE).view(1, 1, -1)
    )
    part = (ramp < top).float()
    image = before + region * part * (after - before)
    done_share = float((region * part).sum() / region.sum().clamp(min=1))
    far = done_share < 0.7
    return _Attempt(image, False if far else None, True, edit.source if far else None)


def _attempt(rng: random.Random, kind: str, edit: Edit, source: torch.Generator) -> _Attempt:
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
    return _Attempt(_corrupt(rng, render(base), source), False, False, None)


def _seen(scene: Scene, noun: str) -> Thing | None:
    return next((thing for thing in scene.things if thing.noun == noun), None)


def _presence(noun: str, attempt: _Attempt) -> tuple[bool, Tensor] | None:
    """Answer and evidence for whether a `noun` can be seen; None when damage makes it debatable."""
    evidence = torch.zeros(SIZE // PATCH, SIZE // PATCH, dtype=torch.bool)
    if attempt.shown is None:
        return None
    thing = _seen(attempt.shown, noun)
    if thing is None:
        return False, evidence
    mask, _ = thing_layers(thing)
    full = torch.zeros(SIZE, SIZE)
    top, left = 32 * (thing.cell // 2), 32 * (thing.cell % 2)
    full[top : top + 32, left : left + 32] = mask
    return True, _patches(full > 0.5)


def _some_noun(rng: random.Random, scene: Scene) -> str:
    """A thing of the scene, as it is or with another colour or shape; or any thing."""
    thing = rng.choice(scene.things) if scene.things else random_thing(rng, 0, rng.choice(SHAPES))
    roll = rng.random()
    if roll < 0.25:
        thing = replace(thing, colour=_other(rng, OBJECT_COLOURS, thing.colour))
    elif roll < 0.5:
        thing = replace(thing, shape=_other(rng, SHAPES, thing.shape))
    return thing.noun


def is_presence(question: Question) -> bool:
    """Whether a question asks if something can be seen in the attempt, without the reference."""
    return "{reference}" not in question.prompt


def draw_kind(rng: random.Random, unrelated: float = KINDS["unrelated"]) -> str:
    """A kind of attempt, by its share; `unrelated` stands in for that kind's own share."""
    shares = KINDS | {"unrelated": unrelated}
    return rng.choices(list(shares), list(shares.values()))[0]


def make_case(rng: random.Random, source: torch.Generator, kind: str, edit: Edit) -> tuple[Case, ...]:
    """The questions about one attempt, each with its answer; debatable ones are left out, so there may be none."""
    attempt = _attempt(rng, kind, edit, source)
    before, after = render(edit.source), render(edit.target)
    asked = [(edit.subject, question) for question in questions_for(edit.category, edit.instruction, edit.subject)]
    if attempt.shown is not None and rng.random() < _PRESENCE:
        noun = _some_noun(rng, attempt.shown)
        asked.append((noun, questions_for("remove", f"remove the {noun}", noun)[0]))
    cases = []
    for noun, question in asked:
        if is_presence(question):
            judged = _presence(noun, attempt)
        else:
            judged = _compared(edit, attempt, question, before, after)
        if judged is not None:
            yes, evidence = judged
            cases.append(Case(kind, edit.category, before, attempt.image, after, edit.source, question, yes, evidence))
    return tuple(cases)


def _compared(
    edit: Edit, attempt: _Attempt, question: Question, before: Tensor, after: Tensor
) -> tuple[bool, Tensor] | None:
    asked = _differs(before, after)
    if question.kind == "edit":
        return None if attempt.done is None else (attempt.done, _patches(asked & _differs(attempt.image, after)))
    unwanted = _differs(attempt.image, before) & _differs(attempt.image, after)
    if edit.category == "nothing":
        return None if attempt.kept is None else (attempt.kept, _patches(_differs(attempt.image, before)))
    return (
        None if attempt.kept is None else (attempt.kept, _patches(unwanted & (~asked | torch.tensor(not attempt.kept))))
    )


Reconstruct = Callable[[Float[Tensor, "batch 3 height width"]], Float[Tensor, "batch 3 height width"]]
"""An autoencoder's round trip, RGB in [0, 1]."""


def view(
    rng: random.Random,
    source: torch.Generator,
    attempts: Float[Tensor, "batch 3 height width"],
    reconstruct: Reconstruct,
) -> Float[Tensor, "batch 3 height width"]:
    """Attempts as an editor would paint them: two of three through the autoencoder, some with slight noise."""
    seen = attempts.clone()
    painted = [i for i in range(len(attempts)) if rng.random() < 0.67]
    if painted:
        seen[painted] = reconstruct(attempts[painted])
    level = torch.rand(len(attempts), 1, 1, 1, generator=source) * 0.04
    level = level * (torch.rand(len(attempts), 1, 1, 1, generator=source) < 0.4)
    return (seen + level * torch.randn(seen.shape, generator=source)).clamp(0, 1)
