"""A judge's log-odds for every question about every case, in every wording."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from nopair.errors import JudgeError
from nopair.evaluation.audit.cases import LabelledCase
from nopair.judges.base import Judge
from nopair.judges.questions import fill, templates_for
from nopair.judges.wordings import other_wordings
from nopair.types import Question


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge said to one question about one case.

    Attributes:
        category, attempt: of the case.
        kind: of the question, "edit" or "identity".
        yes_is_right: the right answer.
        prompts: the wordings it was put in, unfilled, the shipped one first.
        log_odds: of Yes against No, one for each wording.
        case: place of the case among all, from 0.
        question: the shipped wording as it was put, `{reference}` and `{edited}` standing for the images.
    """

    category: str
    attempt: str
    kind: str
    yes_is_right: bool
    prompts: tuple[str, ...]
    log_odds: tuple[float, ...]
    case: int
    question: str


def ask(judge: Judge, cases: Sequence[LabelledCase], batch: int, device: torch.device) -> list[Answer]:
    """Ask about every case whatever has a certain answer, in all wordings, without gradient, `batch` cases at a time.

    A batch is cut where the size of the images changes. `device` is the judge's.

    Raises:
        JudgeError: an answer is not a finite number, or the judge cannot be asked.
    """
    first, answers = 0, list[Answer]()
    for chunk in _chunks(cases, batch):
        answers += _ask(judge, chunk, first, device)
        first += len(chunk)
    return answers


def _chunks(cases: Sequence[LabelledCase], batch: int) -> Iterator[list[LabelledCase]]:
    for start in range(0, len(cases), batch):
        for _, run in groupby(cases[start : start + batch], lambda case: (case.reference.shape, case.edited.shape)):
            yield list(run)


@torch.no_grad()
def _ask(judge: Judge, cases: Sequence[LabelledCase], first: int, device: torch.device) -> list[Answer]:
    """Of cases of one size; the first of them has place `first`."""
    asked = [[template for template in templates_for(case.category) if _truth(case, template) is not None]
             for case in cases]  # fmt: skip
    worded = [[(template, *other_wordings(template)) for template in row] for row in asked]
    rows = [
        [fill(wording, case.instruction, case.subject) for wordings in row for wording in wordings]
        for case, row in zip(cases, worded, strict=True)
    ]
    odds = judge.yes_minus_no(
        torch.stack([case.reference for case in cases]).to(device),
        torch.stack([case.edited for case in cases]).to(device),
        rows,
    )
    if not bool(odds.isfinite().all()):
        raise JudgeError("the judge answers with values that are not numbers; load it in another precision")
    answers = []
    for place, (case, row, values) in enumerate(zip(cases, worded, odds.double().cpu().tolist(), strict=True), first):
        left = iter(values)
        for wordings in row:
            truth = _truth(case, wordings[0])
            assert truth is not None
            prompts = tuple(wording.prompt for wording in wordings)
            said = tuple(next(left) for _ in wordings)
            put = fill(wordings[0], case.instruction, case.subject).prompt
            answers.append(Answer(case.category, case.attempt, wordings[0].kind, truth, prompts, said, place, put))
    return answers


def _truth(case: LabelledCase, question: Question) -> bool | None:
    """Whether Yes is the right answer; None where it is debatable."""
    holds = case.edit_done if question.kind == "edit" else case.rest_same
    return None if holds is None else holds == question.wants_yes
