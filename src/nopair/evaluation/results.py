"""Results as frozen, checked values, as reports show them and results.json holds them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Marks:
    """Mean scores in [0, 1] of one editor on some scenes.

    The first four are the oracle's. `judge_edit` and `judge_identity` are the share of the same images that the judge
    passes on its questions about the edit and about all else; None where it was not asked.
    """

    success: float
    preservation: float
    realism: float
    overall: float
    judge_edit: float | None = None
    judge_identity: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not 0 <= value <= 1:  # also refuses NaN
                raise ValueError(f"{field.name} is {value}, expected a number in [0, 1]")

    @property
    def edit_gap(self) -> float | None:
        """How much better the judge thinks the edits are than the oracle does. Above 0.05 the judge is being hacked."""
        return None if self.judge_edit is None else self.judge_edit - self.success

    @property
    def identity_gap(self) -> float | None:
        """How much better the judge thinks the rest is preserved than the oracle does."""
        return None if self.judge_identity is None else self.judge_identity - self.preservation


@dataclass(frozen=True, slots=True)
class Verdict:
    """One editor's marks: the mean over categories, and each category's."""

    total: Marks
    categories: Mapping[str, Marks]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run took: wall-clock seconds, floating-point operations, and the most memory at any one time."""

    seconds: float
    flops: float
    peak_memory_bytes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} is {value}, expected a number of at least 0")


@dataclass(frozen=True, slots=True)
class Example:
    """One held-out edit: what went in, what came out before and after training, and the oracle's answer."""

    reference: Float[Tensor, "3 height width"]
    instruction: str
    category: str
    before: Float[Tensor, "3 height width"]
    after: Float[Tensor, "3 height width"]
    target: Float[Tensor, "3 height width"]
    before_marks: Marks
    after_marks: Marks


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report says.

    `summary` tells in a sentence or two what was trained, `facts` in names and values. `curves` are (step, value) by
    step. `scenes` is the number of held-out scenes scored, `seed` the run's.
    """

    title: str
    summary: str
    facts: Mapping[str, str]
    curves: Mapping[str, Sequence[tuple[float, float]]]
    examples: Sequence[Example]
    before: Verdict
    after: Verdict
    cost: Cost
    scenes: int
    seed: int

    def __post_init__(self) -> None:
        if self.before.categories.keys() != self.after.categories.keys():
            raise ValueError("before and after must be scored on the same categories")
        if self.scenes < 1:
            raise ValueError(f"scenes is {self.scenes}, expected at least 1")


def to_results(report: Report) -> dict[str, Any]:
    """The contents of results.json; scores in [0, 1]. A verdict that the judge did not give is absent."""
    return {
        "before": verdict_json(report.before),
        "after": verdict_json(report.after),
        "cost": {
            "seconds": report.cost.seconds,
            "flops": report.cost.flops,
            "peak_memory_bytes": report.cost.peak_memory_bytes,
        },
        "scenes": report.scenes,
        "seed": report.seed,
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Marks of an editor as results.json holds them: the means, and under "categories" those of each."""
    return _marks(verdict.total) | {"categories": {name: _marks(marks) for name, marks in verdict.categories.items()}}


def _marks(marks: Marks) -> dict[str, float]:
    judged = {"judge_edit": marks.judge_edit, "judge_identity": marks.judge_identity}
    return {
        "success": marks.success,
        "preservation": marks.preservation,
        "realism": marks.realism,
        "overall": marks.overall,
    } | {name: share for name, share in judged.items() if share is not None}
