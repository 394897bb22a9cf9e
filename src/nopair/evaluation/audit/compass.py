"""Where a judge's gradient points, and where following it leads.

The start is the unedited reference: what an editor hands in before it has learnt anything but to copy. A judge that is
right about nearly everything can still have a gradient there that has nothing to do with the right answer.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nopair.backbones.base import Backbone
from nopair.errors import JudgeError
from nopair.evaluation.audit.cases import LabelledCase
from nopair.judges.base import Judge
from nopair.judges.questions import questions_for
from nopair.method.verdict import judge_loss, right_minus_wrong
from nopair.types import Question
from nopair.world.edits import Edit
from nopair.world.oracle import score_batch

Pixels = Float[Tensor, "batch 3 height width"]
Objective = Callable[[Float[Tensor, "batch question"]], Float[Tensor, " batch"]]
"""What is ascended, for each sample, as a function of the judge's log-odds."""

_TINY: Final = 1e-30
"""Smaller gradients than this lead nowhere."""


@dataclass(frozen=True, eq=False, slots=True)
class Space:
    """What the gradient is taken in: a name, and the ways from pixels and to them.

    `decode` is differentiable and need not clamp.
    """

    name: str
    encode: Callable[[Pixels], Tensor]
    decode: Callable[[Tensor], Pixels]


PIXELS: Final = Space("pixels", lambda pixels: pixels, lambda values: values)


def latents_of(backbone: Backbone) -> Space:
    """The latents of a base's autoencoder, which is what an editor's own gradient arrives in."""
    return Space("latents", backbone.encode_image, backbone.decode_latents)


@dataclass(frozen=True, slots=True)
class Bearing:
    """Cosine between the judge's gradient at a start and the way to the right answer, in one space, in [-1, 1].

    Of the log-odds of the right answer to the edit question, and of the whole judge loss of training (temperature 1).
    None where the gradient or the way is 0.
    """

    category: str
    edit: float | None
    loss: float | None


@dataclass(frozen=True, slots=True)
class Point:
    """What is said of an image: whether the judge is content by kind of question, the oracle's success and preservation
    (None outside the shapes world), and its rms distance to the target in pixels."""

    judge_edit: bool
    judge_identity: bool | None
    success: float | None
    preservation: float | None
    distance: float


@dataclass(frozen=True, slots=True)
class Climb:
    """An ascent: what was said before and after."""

    category: str
    before: Point
    after: Point


@dataclass(frozen=True, eq=False, slots=True)
class Starts:
    """Unedited references of one size with the right answers, and all that is asked about them."""

    references: Pixels
    targets: Pixels
    categories: tuple[str, ...]
    questions: tuple[tuple[Question, ...], ...]
    edits: tuple[Edit, ...] | None


def starts_of(cases: Sequence[LabelledCase], per_category: int, batch: int, device: torch.device) -> list[Starts]:
    """The first `per_category` references of each category that have a target and an edit question, each edit once."""
    picked: dict[tuple[int, int], list[LabelledCase]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    known: set[tuple[str, bytes]] = set()
    for case in cases:
        asked = any(q.kind == "edit" for q in questions_for(case.category, case.instruction, case.subject))
        if case.target is None or not asked or counts[case.category] >= per_category:
            continue
        key = (case.instruction, case.reference.numpy().tobytes())
        if key not in known:
            known.add(key)
            counts[case.category] += 1
            picked[case.reference.shape[1], case.reference.shape[2]].append(case)
    return [
        _stack(group[start : start + batch], device)
        for group in picked.values()
        for start in range(0, len(group), batch)
    ]


def _stack(cases: Sequence[LabelledCase], device: torch.device) -> Starts:
    edits = tuple(case.edit for case in cases if case.edit is not None)
    return Starts(
        references=torch.stack([case.reference for case in cases]).to(device),
        targets=torch.stack([case.target for case in cases if case.target is not None]).to(device),
        categories=tuple(case.category for case in cases),
        questions=tuple(questions_for(case.category, case.instruction, case.subject) for case in cases),
        edits=edits if len(edits) == len(cases) else None,
    )


def bearings(judge: Judge, starts: Starts, space: Space) -> list[Bearing]:
    """Where the gradient points at each start.

    Raises:
        JudgeError: a gradient is not finite.
    """
    with torch.no_grad():
        here, there = space.encode(starts.references), space.encode(starts.targets)
    here = here.detach().requires_grad_()
    odds = judge.yes_minus_no(starts.references, space.decode(here), starts.questions)
    edit = _gradient(_edit_odds(starts.questions)(odds), here, keep=True)
    loss = _gradient(_less_loss(starts.questions)(odds), here, keep=False)
    way = (there - here).detach()
    return [
        Bearing(category, _cosine(edit[i], way[i]), _cosine(loss[i], way[i]))
        for i, category in enumerate(starts.categories)
    ]


def climb(judge: Judge, starts: Starts, space: Space, steps: int) -> list[Climb]:
    """Ascend the gradient of the negative judge loss of training (temperature 1), and compare both ends.

    All steps are of one length, and add up to the distance between start and right answer: a gradient that always
    points there ends there, one that has nothing to do with it comes no nearer.

    Raises:
        JudgeError: a gradient is not finite.
    """
    objective = _less_loss(starts.questions)
    with torch.no_grad():
        values, there = space.encode(starts.references), space.encode(starts.targets)
        targets = space.decode(there).clamp(0, 1)
        stride = _norms(there - values) / steps
    before = _look(judge, starts, space, values, targets)
    for _ in range(steps):
        values = values.detach().requires_grad_()
        odds = judge.yes_minus_no(starts.references, space.decode(values), starts.questions)
        gradient = _gradient(objective(odds), values, keep=False)
        values = values.detach() + stride * gradient / _norms(gradient).clamp(min=_TINY)
    after = _look(judge, starts, space, values, targets)
    return [Climb(*each) for each in zip(starts.categories, before, after, strict=True)]


@torch.no_grad()
def _look(judge: Judge, starts: Starts, space: Space, values: Tensor, targets: Pixels) -> list[Point]:
    images = space.decode(values).clamp(0, 1)
    odds = judge.yes_minus_no(starts.references, images, starts.questions)
    scores = score_batch(starts.edits, images) if starts.edits is not None else [None] * len(images)
    distances = (images - targets).square().mean(dim=(1, 2, 3)).sqrt().tolist()
    points = []
    for row, said, score, distance in zip(starts.questions, odds.tolist(), scores, distances, strict=True):
        content = {q.kind: (value > 0) == q.wants_yes for q, value in zip(row, said, strict=False)}
        oracle = (None, None) if score is None else (score.success, score.preservation)
        points.append(Point(content["edit"], content.get("identity"), *oracle, distance))
    return points


def _norms(values: Float[Tensor, "batch *axes"]) -> Float[Tensor, "batch *ones"]:
    """Each sample's Euclidean norm, with axes of 1 to multiply by."""
    return values.flatten(1).norm(dim=1).view(-1, *[1] * (values.ndim - 1))


def _edit_odds(questions: Sequence[Sequence[Question]]) -> Objective:
    def objective(odds: Float[Tensor, "batch question"]) -> Float[Tensor, " batch"]:
        wants = _mask(questions, odds, lambda q: q.wants_yes)
        counts = _mask(questions, odds, lambda q: q.kind == "edit")
        return torch.where(counts, right_minus_wrong(odds, wants), 0).sum(dim=1)

    return objective


def _less_loss(questions: Sequence[Sequence[Question]]) -> Objective:
    def objective(odds: Float[Tensor, "batch question"]) -> Float[Tensor, " batch"]:
        wants = _mask(questions, odds, lambda q: q.wants_yes)
        return -judge_loss(odds, wants, _mask(questions, odds, lambda _: True), 1.0)

    return objective


def _mask(
    questions: Sequence[Sequence[Question]], odds: Tensor, holds: Callable[[Question], bool]
) -> Bool[Tensor, "batch question"]:
    """Of each question whether it holds; False where a row has none."""
    wide = odds.shape[1]
    rows = [[holds(q) for q in row] + [False] * (wide - len(row)) for row in questions]
    return torch.tensor(rows, dtype=torch.bool, device=odds.device)


def _gradient(heights: Float[Tensor, " batch"], values: Tensor, *, keep: bool) -> Tensor:
    """Each sample's own gradient: samples do not see each other, so that of the sum is theirs."""
    (gradient,) = torch.autograd.grad(heights.sum(), values, retain_graph=keep)
    if not bool(gradient.isfinite().all()):
        raise JudgeError("the judge's gradient has values that are not numbers; load it in another precision")
    return gradient


def _cosine(gradient: Tensor, way: Tensor) -> float | None:
    one, other = gradient.double().flatten(), way.double().flatten()
    scale = float(one.norm() * other.norm())
    return float(one @ other) / scale if scale > 0 else None
