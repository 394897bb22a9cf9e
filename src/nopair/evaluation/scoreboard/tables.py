"""A comparison as tables for a terminal. What is missing is shown as "-"."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from rich.table import Table
from rich.text import Text

from nopair.evaluation.scoreboard.means import Mean
from nopair.evaluation.scoreboard.results import Comparison, Scores

LANGUAGES = {"en": "English", "cn": "Chinese", "": ""}


def title_of(scores: Scores) -> str:
    """By whom, in which language, over which edits."""
    parts = (LANGUAGES.get(scores.language, scores.language), scores.subset if scores.subset != "all" else "")
    return " · ".join([scores.judge, *(part for part in parts if part)])


def grouped(scores: Sequence[Scores]) -> dict[str, list[Scores]]:
    """Tables of one judge, language and subset, all editors in one."""
    groups: dict[str, list[Scores]] = {}
    for each in scores:
        groups.setdefault(title_of(each), []).append(each)
    return groups


def number(mean: Mean) -> str:
    """Two digits, as benchmarks publish them."""
    return "-" if mean.value is None else f"{mean.value:.2f}"


def counted(row: Scores, measures: Sequence[str], part: Literal["count", "missing"]) -> str:
    """Of how many edits the means are, or how many have none; by measure where that differs."""
    counts = {measure: getattr(row.board.total[measure], part) for measure in measures}
    if len(set(counts.values())) == 1:
        return str(next(iter(counts.values())))
    return ", ".join(f"{measure} {count}" for measure, count in counts.items())


def tables(found: Comparison) -> Iterator[Table]:
    """The table that papers have, then the leading measures by category."""
    groups = grouped(found.scores())
    for title, rows in groups.items():
        drawn = Table(title=Text(f"{found.benchmark.name} · {title}"))
        for column in ("editor", *found.measures, "edits", "missing"):
            drawn.add_column(column, justify="left" if column == "editor" else "right")
        for row in rows:
            values = (number(row.board.total[measure]) for measure in found.measures)
            counts = (counted(row, found.leading, part) for part in ("count", "missing"))
            drawn.add_row(Text(row.editor), *values, *counts)
        yield drawn
    whole = [(title, rows) for title, rows in groups.items() if rows[0].subset == "all"]
    for (title, rows), measure in itertools.product(whole, found.leading):
        drawn = Table(title=Text(f"{measure} by category · {title}"))
        drawn.add_column("category")
        for row in rows:
            drawn.add_column(Text(row.editor), justify="right")
        for category in rows[0].board.categories:
            drawn.add_row(Text(category), *(number(row.board.categories[category][measure]) for row in rows))
        yield drawn
