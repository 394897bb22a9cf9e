"""Labelled cases for pretraining the tiny judge: a reference, an attempt at an edit, a question, and the right answer.

A judge follows only where it has been: attempts are of all kinds of `nopair.world.attempts`, and most are seen through
the autoencoder the editor will paint with. Where a label would be debatable the case is not made.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nopair.judges.questions import questions_for
from nopair.types import Question
from nopair.world.attempts import KINDS, Attempt, make_attempt, other_than, seen_in
from nopair.world.edits import FREE_FORM, Edit, any_edit, random_thing, sample_edit
from nopair.world.render import render, thing_layers, thing_region
from nopair.world.scenes import OBJECT_COLOURS, SHAPES, SIZE, Scene

PATCH: Final = 8
"""Side in pixels of the patches that evidence is marked on."""

_PRESENCE: Final = 0.35
"""Share of attempts about which it is asked, besides, whether some thing can be seen: removal has too few such
questions."""

_NEW_SCENES: Final = 0.25
"""Share of edits that put the subject in a new scene."""
_LAX: Final = ("background", "move", "recolour")
"""Edits after which judges have been blind to slight changes of what was to stay."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question about one attempt.

    `evidence` marks, on a grid of patches of the attempt, where what the question turns on can be seen: unfinished
    parts of the edit, unwanted changes, or the object asked for. It and `target`, the right result, are training aids
    for the judge alone, and so is `scene`, what the reference shows.
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


def _patches(different: Bool[Tensor, "height width"]) -> Bool[Tensor, "row column"]:
    share = torch.nn.functional.avg_pool2d(different.float()[None], PATCH)[0]
    return share > 0.05


def _differs(one: Tensor, other: Tensor) -> Bool[Tensor, "height width"]:
    return (one - other).abs().amax(0) > 0.1


def _presence(noun: str, attempt: Attempt) -> tuple[bool, Tensor] | None:
    """Answer and evidence for whether a `noun` can be seen; None when damage makes it debatable."""
    evidence = torch.zeros(SIZE // PATCH, SIZE // PATCH, dtype=torch.bool)
    if attempt.shown is None:
        return None
    thing = seen_in(attempt.shown, noun)
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
        thing = replace(thing, colour=other_than(rng, OBJECT_COLOURS, thing.colour))
    elif roll < 0.5:
        thing = replace(thing, shape=other_than(rng, SHAPES, thing.shape))
    return thing.noun


def is_presence(question: Question) -> bool:
    """Whether a question asks if something can be seen in the attempt, without the reference."""
    return "{reference}" not in question.prompt


def draw_kind(rng: random.Random, unrelated: float = KINDS["unrelated"]) -> str:
    """A kind of attempt, by its share; `unrelated` stands in for that kind's own share."""
    shares = KINDS | {"unrelated": unrelated}
    return rng.choices(list(shares), list(shares.values()))[0]


def draw_edit(rng: random.Random, kind: str) -> Edit:
    """An edit to attempt: of any category from either split, with every second nudged attempt at one of `_LAX`."""
    roll = rng.random()
    if roll < _NEW_SCENES:
        return sample_edit(rng, FREE_FORM, held_out=rng.random() < 0.5)
    if kind == "nudged" and roll < 0.5 + _NEW_SCENES / 2:
        return sample_edit(rng, rng.choice(_LAX), held_out=rng.random() < 0.3)
    return any_edit(rng)


def make_case(rng: random.Random, source: torch.Generator, kind: str, edit: Edit) -> tuple[Case, ...]:
    """The questions about one attempt, each with its answer; debatable ones are left out, so there may be none."""
    attempt = make_attempt(rng, kind, edit, source)
    before, after = render(edit.source), render(edit.target)
    asked = [(edit.subject, question) for question in questions_for(edit.category, edit.instruction, edit.subject)]
    if attempt.shown is not None and rng.random() < _PRESENCE:
        noun = _some_noun(rng, attempt.shown)
        asked.append((noun, questions_for("remove", f"remove the {noun}", noun)[0]))
    cases = []
    for noun, question in asked:
        alone = is_presence(question)
        judged = _presence(noun, attempt) if alone else compared(edit, attempt, question, before, after)
        if judged is not None:
            yes, evidence = judged
            cases.append(Case(kind, edit.category, before, attempt.image, after, edit.source, question, yes, evidence))
    return tuple(cases)


def still_there(
    edit: Edit, attempt: Attempt, question: Question, before: Tensor, after: Tensor
) -> tuple[bool, Tensor] | None:
    """Answer and evidence for whether what was to be removed can be seen, by whether the edit was done."""
    if attempt.done is None:
        return None
    left = _differs(before, after) & _differs(attempt.image, after) & torch.tensor(not attempt.done)
    return not attempt.done, _patches(left)


def compared(
    edit: Edit, attempt: Attempt, question: Question, before: Tensor, after: Tensor
) -> tuple[bool, Tensor] | None:
    """Answer and evidence of a question about both images; None where it is debatable."""
    asked = _differs(before, after)
    if question.kind == "edit":
        if attempt.done is None:
            return None
        # Places are open in a new scene: one that stands elsewhere is no evidence against it.
        open_ = edit.category == FREE_FORM and attempt.done
        return attempt.done, _patches(asked & _differs(attempt.image, after) & torch.tensor(not open_))
    unwanted = _differs(attempt.image, before) & _differs(attempt.image, after)
    if edit.category == "nothing":
        return None if attempt.kept is None else (attempt.kept, _patches(_differs(attempt.image, before)))
    if edit.category == FREE_FORM:
        return None if attempt.kept is None else (attempt.kept, _patches(_subject_differs(edit, attempt, after)))
    return (
        None if attempt.kept is None else (attempt.kept, _patches(unwanted & (~asked | torch.tensor(not attempt.kept))))
    )


def _subject_differs(edit: Edit, attempt: Attempt, after: Tensor) -> Bool[Tensor, "height width"]:
    """Where the right result has its subject and an attempt has something else; nowhere if the attempt has the subject,
    too."""
    (subject,) = (thing for thing in edit.target.things if thing.shape == edit.subject)
    return (thing_region(subject, grow=1)[0] > 0) & _differs(attempt.image, after) & torch.tensor(not attempt.kept)


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
