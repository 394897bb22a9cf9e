"""From the numbers of a judge's answers to an edit's marks, as each benchmark's makers define them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

Answers = Mapping[str, tuple[float, ...] | None]
"""The numbers by question; None where there is no readable answer."""
Marks = Mapping[str, float | None]
"""An edit's marks by measure; None where one is missing."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How marks are made. `measures` are their names, the most important last; all lie in [low, high]."""

    measures: tuple[str, ...]
    low: float
    high: float
    marks: Callable[[Answers], Marks]


def viescore(answers: Answers) -> Marks:
    """SC and PQ are the least of their numbers, O their geometric mean (VIEScore, arXiv 2312.14867; per edit)."""
    semantic, quality = (None if (own := answers.get(name)) is None else min(own) for name in ("SC", "PQ"))
    both = None if semantic is None or quality is None else math.sqrt(semantic * quality)
    return {"SC": semantic, "PQ": quality, "O": both}


def imgedit(answers: Answers) -> Marks:
    """The mean of the three numbers, as ImgEdit-Bench's own code takes it."""
    numbers = answers.get("edit")
    return {"score": None if numbers is None else sum(numbers) / len(numbers)}


RULES: Final[Mapping[Literal["viescore", "imgedit"], Rule]] = {
    "viescore": Rule(("SC", "PQ", "O"), 0.0, 10.0, viescore),
    "imgedit": Rule(("score",), 1.0, 5.0, imgedit),
}
