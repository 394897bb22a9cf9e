"""A judge's words to numbers. What cannot be read without doubt is not read."""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from nopair.evaluation.scorers.rubric import Template

_LINE: Final = re.compile(r"([^:：]+)[:：][\s*_]*(\d+(?:\.\d+)?)(?:\s*/\s*\d+)?[\s*_.]*")
"""`Prompt Compliance: 4`, with or without marks of lists and emphasis around."""
_THOUGHT: Final = "</think>"
"""What a reasoning model says before this is not its answer."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """No numbers, and why."""

    why: str


def read_scores(text: str, template: Template, low: int, high: int) -> tuple[float, ...] | Unreadable:
    """The numbers of an answer: as many as `template` asks for, each within [low, high].

    Text around them does not matter. Several different answers in one text are none.
    """
    answer = text.rpartition(_THOUGHT)[2]
    found = _from_json(answer) if template.reply == "json" else _from_lines(answer)
    if isinstance(found, Unreadable):
        return found
    if len(found) != template.scores:
        return Unreadable(f"holds {len(found)} numbers instead of {template.scores}")
    outside = [number for number in found if not low <= number <= high]
    return Unreadable(f"{outside[0]:g} is outside {low} to {high}") if outside else found


def _from_json(text: str) -> tuple[float, ...] | Unreadable:
    answers = {json.dumps(value) for value in _score_values(text)}
    if not answers:
        return Unreadable('holds no JSON object with a "score"')
    if len(answers) > 1:
        return Unreadable("holds several answers that differ")
    value = json.loads(answers.pop())
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return Unreadable("a score is not a number")
    if not all(abs(number) <= sys.float_info.max for number in numbers):  # nor NaN, nor an integer beyond all floats
        return Unreadable("a score is not finite")
    return tuple(float(number) for number in numbers)


def _score_values(text: str) -> Iterator[Any]:
    """Every "score" of every JSON object in a text; of an object within another that has one, only the outer's."""
    decoder = json.JSONDecoder(object_pairs_hook=list)
    start = text.find("{")
    while start >= 0:
        try:
            pairs, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        scores = [pair[1] for pair in pairs if pair[0] == "score"]
        yield from scores
        start = text.find("{", end if scores else start + 1)


def _from_lines(text: str) -> tuple[float, ...] | Unreadable:
    lines = [match for line in text.splitlines() if (match := _LINE.fullmatch(line.strip()))]
    numbers = [float(match[2]) for match in lines if any(letter.isalpha() for letter in match[1])]
    return tuple(numbers) if numbers else Unreadable("holds no line that ends in a number")
