"""Marks of single edits to a table: means within each category, then the mean of those."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nopair.evaluation.scorers.rules import Marks


@dataclass(frozen=True, slots=True)
class Sample:
    """One edit of one editor. `marks` are by measure, None where missing; `problems` say why.

    `place`, `category`, `language` and `in_intersection` are those of the benchmark's item.
    """

    place: str
    category: str
    language: str
    in_intersection: bool | None
    marks: Marks
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean, over how many edits, and how many have no mark. `value` is None where no edit has one."""

    value: float | None
    count: int
    missing: int


@dataclass(frozen=True, slots=True)
class Board:
    """A table of one editor.

    `total` is the unweighted mean of the categories' means; its counts are of edits. A category in which no edit has a
    mark takes no part in it, and is named in `empty`, by measure.
    """

    categories: Mapping[str, Mapping[str, Mean]]
    total: Mapping[str, Mean]
    empty: Mapping[str, tuple[str, ...]]

    def json(self) -> dict[str, Any]:
        """As results.json has it."""
        categories = {name: _json(means) for name, means in self.categories.items()}
        return {"total": _json(self.total), "categories": categories, "empty": dict(self.empty)}


def board(samples: Sequence[Sample], measures: Sequence[str]) -> Board:
    """Means of each measure, over the edits that have it."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.category, []).append(sample)
    categories = {name: {m: _mean(groups[name], m) for m in measures} for name in sorted(groups)}
    total, empty = {}, {}
    for measure in measures:
        means = {name: row[measure] for name, row in categories.items()}
        values = [mean.value for mean in means.values() if mean.value is not None]
        value = math.fsum(values) / len(values) if values else None
        counts, missing = (sum(getattr(mean, part) for mean in means.values()) for part in ("count", "missing"))
        total[measure] = Mean(value, counts, missing)
        empty[measure] = tuple(name for name, mean in means.items() if mean.value is None)
    return Board(categories, total, empty)


def common(runs: Iterable[Sequence[Sample]], measures: Sequence[str]) -> frozenset[str]:
    """Places of the edits that have every mark in every one of `runs`."""
    answered = [
        frozenset(sample.place for sample in run if all(sample.marks.get(m) is not None for m in measures))
        for run in runs
    ]
    return frozenset.intersection(*answered) if answered else frozenset()


def _mean(samples: Sequence[Sample], measure: str) -> Mean:
    values = [value for sample in samples if (value := sample.marks.get(measure)) is not None]
    return Mean(math.fsum(values) / len(values) if values else None, len(values), len(samples) - len(values))


def _json(means: Mapping[str, Mean]) -> dict[str, Any]:
    return {name: {"mean": mean.value, "count": mean.count, "missing": mean.missing} for name, mean in means.items()}
