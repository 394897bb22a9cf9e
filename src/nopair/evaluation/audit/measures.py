"""How good a list of Yes/No answers is. Numbers in, numbers out; what is undefined is None.

Log-odds are of Yes against No, natural logarithm. A verdict is Yes where they are above 0, as in training.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BINS: Final = 10
"""Bins of equal width that calibration is measured in."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose probability of Yes is in [low, high): how many, their mean probability, how often Yes was right.

    The last bin holds 1 as well. The means are None in an empty bin.
    """

    low: float
    high: float
    count: int
    probability: float | None
    share_yes: float | None


@dataclass(frozen=True, slots=True)
class Measures:
    """What a list of answers is worth.

    Attributes:
        count: answers, at least 1.
        accuracy: share of right verdicts.
        auc: chance that an answer to which Yes is right has higher log-odds than one to which No is right; 0.5 is
            chance, None if only one of the two occurs.
        calibration_error: expected calibration error over the bins.
        said_yes: share of verdicts that are Yes.
        right_yes: share of right answers that are Yes.
        yes_bias: `said_yes` - `right_yes`; above 0, the judge says Yes too often.
        mean_log_odds: of Yes against No.
        reliability: the bins.
    """

    count: int
    accuracy: float
    auc: float | None
    calibration_error: float
    said_yes: float
    right_yes: float
    yes_bias: float
    mean_log_odds: float
    reliability: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What other words of equal meaning do to a judge.

    Attributes:
        count: questions that were put in more than one wording.
        flips: share of (question, other wording) whose verdict differs from that of the shipped wording.
        any_flip: share of questions whose verdict differs in at least one other wording.
        spread: standard deviation of a question's log-odds over its wordings (the shipped one among them), mean over
            questions.
    """

    count: int
    flips: float
    any_flip: float
    spread: float


def measure(log_odds: Sequence[float], yes_is_right: Sequence[bool]) -> Measures:
    """All measures of at least one answer, in one order.

    Raises:
        ValueError: no answers, not one label for each, or log-odds that are not finite.
    """
    if not log_odds or len(log_odds) != len(yes_is_right) or not all(map(math.isfinite, log_odds)):
        raise ValueError(f"{len(log_odds)} answers and {len(yes_is_right)} labels; expected finite ones, one each")
    count = len(log_odds)
    verdicts = [value > 0 for value in log_odds]
    said, right = sum(verdicts) / count, sum(yes_is_right) / count
    bins = reliability(log_odds, yes_is_right)
    return Measures(
        count=count,
        accuracy=sum(verdict == truth for verdict, truth in zip(verdicts, yes_is_right, strict=True)) / count,
        auc=auc(log_odds, yes_is_right),
        calibration_error=calibration_error(bins),
        said_yes=said,
        right_yes=right,
        yes_bias=said - right,
        mean_log_odds=math.fsum(log_odds) / count,
        reliability=bins,
    )


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties counting half.

    By the sum of the positives' ranks (Mann and Whitney, 1947). None if there are only positives or only negatives.
    """
    positives = sum(positive)
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    order = sorted(range(len(scores)), key=scores.__getitem__)
    total, start = 0.0, 0
    while start < len(order):
        end = start
        while end < len(order) and scores[order[end]] == scores[order[start]]:
            end += 1
        rank = (start + 1 + end) / 2  # of all that tie
        total += rank * sum(positive[index] for index in order[start:end])
        start = end
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def probability(log_odds: float) -> float:
    """The logistic function, without overflow."""
    return 0.5 * (1 + math.tanh(log_odds / 2))


def reliability(log_odds: Sequence[float], yes_is_right: Sequence[bool], bins: int = BINS) -> tuple[Bin, ...]:
    """Answers sorted into bins of equal width by their probability of Yes."""
    held: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for value, truth in zip(log_odds, yes_is_right, strict=True):
        chance = probability(value)
        held[min(int(chance * bins), bins - 1)].append((chance, truth))
    return tuple(
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            count=len(row),
            probability=math.fsum(chance for chance, _ in row) / len(row) if row else None,
            share_yes=sum(truth for _, truth in row) / len(row) if row else None,
        )
        for index, row in enumerate(held)
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the gap between a bin's mean probability and its share of Yes, weighted by count.

    Naeini et al., 2015, for the probability of Yes. In [0, 1]; the bins hold at least one answer.
    """
    gaps = [
        held.count * abs(held.probability - held.share_yes)
        for held in bins
        if held.probability is not None and held.share_yes is not None
    ]
    return math.fsum(gaps) / sum(held.count for held in bins)


def sensitivity(log_odds: Sequence[Sequence[float]]) -> Sensitivity | None:
    """Of questions in several wordings each, the shipped one first. None if no question has a second wording."""
    rows = [row for row in log_odds if len(row) > 1]
    if not rows:
        return None
    flips = [[(other > 0) != (row[0] > 0) for other in row[1:]] for row in rows]
    return Sensitivity(
        count=len(rows),
        flips=sum(map(sum, flips)) / sum(map(len, flips)),
        any_flip=sum(map(any, flips)) / len(rows),
        spread=math.fsum(map(_deviation, rows)) / len(rows),
    )


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
