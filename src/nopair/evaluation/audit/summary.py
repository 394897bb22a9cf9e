"""The results of an audit as frozen values; audit.json holds the fields of `About` and of `Findings`."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from nopair.evaluation.audit.answers import Answer
from nopair.evaluation.audit.compass import Bearing, Climb, Point
from nopair.evaluation.audit.measures import Measures, Sensitivity, measure, probability, sensitivity

ENOUGH_ACCURACY: Final = 0.95
"""Below, a judge teaches errors often enough to be seen; the log tells of editors trained under such."""
ENOUGH_COSINE: Final = 0.1
"""Below, a gradient as good as ignores the right answer. The teacher's is at 0.35 and above (docs/log.md)."""
NEARER: Final = 0.9
"""Share of the distance to the right answer that an ascent should leave at most; a perfect one leaves none."""
FOOLED: Final = 0.2
"""Rise of the judge's approval beyond the oracle's during an ascent that is no accident."""
MISTAKES: Final = 3
"""Of each category, the surest ones are kept."""

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Group:
    """Answers in the shipped wording, and what other wordings do to them (None if there are none)."""

    measures: Measures
    wording: Sensitivity | None


@dataclass(frozen=True, slots=True)
class Asked:
    """Answers to all questions together, and by kind of question."""

    all: Group
    questions: Mapping[str, Group]


@dataclass(frozen=True, slots=True)
class Wording:
    """One wording of a question: how often it was put, its accuracy, and the share of verdicts that are Yes."""

    kind: str
    prompt: str
    count: int
    accuracy: float
    said_yes: float


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong answer to a question in its shipped wording.

    Attributes:
        category, attempt, kind, case, question, yes_is_right: as in `Answer`.
        probability: of Yes, as the judge saw it.
    """

    category: str
    attempt: str
    kind: str
    case: int
    question: str
    yes_is_right: bool
    probability: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation of so many cosines. Undefined ones (a gradient of 0) are left out."""

    count: int
    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Direction:
    """Cosine with the way to the right answer, of the edit question's gradient and of the whole loss's; None if
    undefined throughout."""

    edit: Spread | None
    loss: Spread | None


@dataclass(frozen=True, slots=True)
class Change:
    """A mean before and after an ascent."""

    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Ascent:
    """Means over so many ascents.

    `judge_edit` and `judge_identity` are the shares that the judge passes, `success` and `preservation` the oracle's
    (None outside the shapes world), `distance` the rms distance to the right answer in pixels.
    """

    count: int
    judge_edit: Change
    judge_identity: Change | None
    success: Change | None
    preservation: Change | None
    distance: Change


@dataclass(frozen=True, slots=True)
class Directions:
    """In one space, for all starts and by category."""

    all: Direction
    categories: Mapping[str, Direction]


@dataclass(frozen=True, slots=True)
class Ascents:
    """In one space with so many steps, for all starts and by category."""

    space: str
    steps: int
    all: Ascent
    categories: Mapping[str, Ascent]


@dataclass(frozen=True, slots=True)
class About:
    """What was audited, and how.

    Attributes:
        judge, base: as named; base None if none was used.
        source: "shapes world", or the folder of cases.
        cases: how many.
        seed, per_category: of the shapes world; None for a folder.
        questions: version of the question set.
        device: where the judge computed.
        dtype, bits: precision of the judge's weights; bits None if they are not quantised.
        seconds: wall-clock time of asking and ascending.
    """

    judge: str
    base: str | None
    source: str
    cases: int
    seed: int | None
    per_category: int | None
    questions: str
    device: str
    dtype: str
    bits: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What an audit found out.

    Attributes:
        overall, categories, attempts: the answers, all and by what they are about.
        wordings: every wording of every question.
        mistakes: the surest ones of each category, `MISTAKES` at most.
        directions: of the gradient, by space; empty without starts.
        ascents: None without starts or steps.
        warnings: what to mind before training, in words.
    """

    overall: Asked
    categories: Mapping[str, Asked]
    attempts: Mapping[str, Asked]
    wordings: Sequence[Wording]
    mistakes: Sequence[Mistake]
    directions: Mapping[str, Directions]
    ascents: Ascents | None
    warnings: Sequence[str]


def asked(answers: Sequence[Answer]) -> Asked:
    """At least one answer, summarised."""
    kinds = grouped(answers, lambda answer: answer.kind)
    return Asked(_group(answers), {kind: _group(rows) for kind, rows in kinds.items()})


def asked_by(answers: Sequence[Answer], key: Callable[[Answer], str]) -> dict[str, Asked]:
    """Answers by a property of theirs; those where it is empty are left out."""
    return {name: asked(rows) for name, rows in grouped(answers, key).items() if name}


def wordings(answers: Sequence[Answer]) -> list[Wording]:
    """Every wording that occurs, in the order in which it was first put."""
    said = grouped(
        [
            (answer.kind, prompt, odds > 0, answer.yes_is_right)
            for answer in answers
            for prompt, odds in zip(answer.prompts, answer.log_odds, strict=True)
        ],
        lambda row: row[:2],
    )
    return [
        Wording(kind, prompt, len(rows), _mean([row[2] == row[3] for row in rows]), _mean([row[2] for row in rows]))
        for (kind, prompt), rows in said.items()
    ]


def mistakes(answers: Sequence[Answer], each: int) -> list[Mistake]:
    """The `each` wrong answers of each category that the judge was surest of, surest first."""
    wrong = [answer for answer in answers if (answer.log_odds[0] > 0) != answer.yes_is_right]
    return [
        Mistake(one.category, one.attempt, one.kind, one.case, one.question, one.yes_is_right,
                probability(one.log_odds[0]))
        for rows in grouped(wrong, lambda answer: answer.category).values()
        for one in sorted(rows, key=lambda answer: -abs(answer.log_odds[0]))[:each]
    ]  # fmt: skip


def directions(found: Sequence[Bearing]) -> Directions:
    """At least one bearing, summarised."""
    categories = grouped(found, lambda bearing: bearing.category)
    return Directions(_direction(found), {name: _direction(rows) for name, rows in categories.items()})


def ascents(space: str, steps: int, climbs: Sequence[Climb]) -> Ascents:
    """At least one ascent, summarised."""
    categories = grouped(climbs, lambda climb: climb.category)
    return Ascents(space, steps, _ascent(climbs), {name: _ascent(rows) for name, rows in categories.items()})


def warnings(categories: Mapping[str, Asked], found: Mapping[str, Directions], climbed: Ascents | None) -> list[str]:
    """What to mind before training, most basic first."""
    weak = [
        f"{name} {kind} {group.measures.accuracy:.3f} of {group.measures.count}"
        for name, asked_ in categories.items()
        for kind, group in asked_.questions.items()
        if group.measures.accuracy < ENOUGH_ACCURACY
    ]
    lines = [f"accuracy below {ENOUGH_ACCURACY}: {', '.join(weak)}"] if weak else []
    for space, where in found.items():
        lost = [name for name, each in where.categories.items() if each.edit is None or each.edit.mean < ENOUGH_COSINE]
        if lost:
            lines.append(
                f"in {space}, the gradient of the edit question does not point at the right answer (mean cosine below "
                f"{ENOUGH_COSINE}): {', '.join(lost)}"
            )
    if climbed is not None and climbed.all.success is not None:
        judge, oracle = climbed.all.judge_edit, climbed.all.success
        if (judge.after - judge.before) - (oracle.after - oracle.before) > FOOLED:
            lines.append(
                f"ascending in {climbed.space} fools the judge: its approval of the edit went from {judge.before:.2f} "
                f"to {judge.after:.2f}, the oracle's success from {oracle.before:.2f} to {oracle.after:.2f}"
            )
    if climbed is not None and climbed.all.distance.after > NEARER * climbed.all.distance.before:
        far = climbed.all.distance
        lines.append(
            f"ascending in {climbed.space} does not lead to the right answer: {far.before:.3f} rms away before, "
            f"{far.after:.3f} after"
        )
    return lines


def grouped(items: Sequence[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Items by key, keys in the order in which they first occur."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _group(answers: Sequence[Answer]) -> Group:
    shipped = measure([answer.log_odds[0] for answer in answers], [answer.yes_is_right for answer in answers])
    return Group(shipped, sensitivity([answer.log_odds for answer in answers]))


def _direction(rows: Sequence[Bearing]) -> Direction:
    return Direction(_spread([row.edit for row in rows]), _spread([row.loss for row in rows]))


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = _mean(known)
    return Spread(len(known), mean, math.sqrt(_mean([(value - mean) ** 2 for value in known])))


def _ascent(rows: Sequence[Climb]) -> Ascent:
    edit = _change(rows, lambda point: point.judge_edit)
    distance = _change(rows, lambda point: point.distance)
    assert edit is not None
    assert distance is not None
    return Ascent(
        count=len(rows),
        judge_edit=edit,
        judge_identity=_change(rows, lambda point: point.judge_identity),
        success=_change(rows, lambda point: point.success),
        preservation=_change(rows, lambda point: point.preservation),
        distance=distance,
    )


def _change(rows: Sequence[Climb], read: Callable[[Point], float | None]) -> Change | None:
    """Of the ascents for which it is known; at both ends, or at neither."""
    known = [(a, b) for row in rows if (a := read(row.before)) is not None and (b := read(row.after)) is not None]
    return Change(_mean([a for a, _ in known]), _mean([b for _, b in known])) if known else None


def _mean(values: Sequence[float | bool]) -> float:
    return math.fsum(values) / len(values)
