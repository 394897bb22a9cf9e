"""What can be said about two runs on the same edits: which is better, and do two judges agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from nopair.evaluation.scoreboard.means import Sample

DRAWS: Final = 10_000
LEVEL: Final = 0.95
AT_ONCE: Final = 1_000_000
"""Edits drawn at a time, so that memory does not grow with edits times draws."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Second run minus first, as the mean of the categories' means, on the `count` edits that both have a mark for.

    `low` and `high` bound it at `LEVEL` (percentiles of a bootstrap that draws edits within their category).
    `better` is the share of draws in which the second is better, ties counted half.
    """

    first: float
    second: float
    low: float
    high: float
    better: float
    count: int

    @property
    def mean(self) -> float:
        """The difference itself."""
        return self.second - self.first


def compare(first: Sequence[Sample], second: Sequence[Sample], measure: str, seed: int = 0) -> Difference | None:
    """Paired by place; None if no edit has this mark in both runs."""
    others = {sample.place: sample.marks.get(measure) for sample in second}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for sample in first:
        one, other = sample.marks.get(measure), others.get(sample.place)
        if one is not None and other is not None:
            pairs.setdefault(sample.category, []).append((one, other))
    if not pairs:
        return None
    rng = np.random.default_rng(seed)
    groups = [np.array(pairs[name], dtype=np.float64) for name in sorted(pairs)]
    means = np.mean([group.mean(axis=0) for group in groups], axis=0)
    drawn = np.mean([_drawn(rng, group[:, 1] - group[:, 0]) for group in groups], axis=0)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    better = float(np.mean(drawn > 0) + np.mean(drawn == 0) / 2)
    count = sum(len(group) for group in groups)
    return Difference(float(means[0]), float(means[1]), float(low), float(high), better, count)


def _drawn(rng: np.random.Generator, values: Float[ndarray, " edit"]) -> Float[ndarray, " draw"]:
    """Means of as many edits as there are, drawn with replacement. The same whatever `AT_ONCE` is."""
    rows = max(1, AT_ONCE // len(values))
    sizes = [min(rows, DRAWS - start) for start in range(0, DRAWS, rows)]
    return np.concatenate([values[rng.integers(0, len(values), (size, len(values)))].mean(axis=1) for size in sizes])


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two judges on the same edits. Correlations are None where a judge always says the same.

    Attributes:
        count: edits that both have a mark for.
        rank: Spearman's correlation.
        linear: Pearson's correlation.
        bias: mean of second minus first.
        distance: mean absolute difference.
    """

    count: int
    rank: float | None
    linear: float | None
    bias: float
    distance: float


def agreement(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> Agreement | None:
    """Marks by edit; None if there is no edit that both have a mark for."""
    pairs = [(one, two) for key, one in first.items() if one is not None and (two := second.get(key)) is not None]
    if not pairs:
        return None
    x, y = np.array(pairs, dtype=np.float64).T
    return Agreement(
        count=len(pairs),
        rank=_correlation(_ranks(x), _ranks(y)),
        linear=_correlation(x, y),
        bias=float(np.mean(y - x)),
        distance=float(np.mean(np.abs(y - x))),
    )


def _correlation(x: Float[ndarray, " edit"], y: Float[ndarray, " edit"]) -> float | None:
    if x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Float[ndarray, " edit"]) -> Float[ndarray, " edit"]:
    """Equal values share the mean of their ranks."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]
