"""Asking: every question with a certain answer is put once in every wording, and each answer lands where it belongs."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from nopair.errors import JudgeError
from nopair.evaluation.audit.answers import Answer, ask
from nopair.evaluation.audit.cases import LabelledCase
from nopair.evaluation.audit.summary import asked, asked_by, mistakes, wordings
from nopair.judges.questions import templates_for
from nopair.judges.scripted import ScriptedJudge
from nopair.judges.wordings import other_wordings
from nopair.types import Question

CPU = torch.device("cpu")
JUDGE = ScriptedJudge((0.5, 0.5, 0.5), tolerance=0.1, sharpness=100.0)
"""Grey is what it wants; an edit that is grey to the dot has log-odds of 1, as has an unchanged image."""


def case(
    edited: float, *, category: str = "hats", done: bool | None, same: bool | None, size: int = 4, attempt: str = ""
) -> LabelledCase:
    """A reference of 0.4 throughout: the judge takes it for unedited but for rounding at 0.5 - 0.1 / sqrt(3)."""
    images = torch.full((3, size, size), 0.4), torch.full((3, size, size), edited)
    return LabelledCase(*images, "dye it", category, "hat", done, same, None, attempt)


def test_log_odds_and_right_answers_are_the_scripted_ones() -> None:
    [edit, identity] = ask(JUDGE, [case(0.5, done=True, same=False)], 1, CPU)
    assert (edit.kind, identity.kind) == ("edit", "identity")
    assert (edit.yes_is_right, identity.yes_is_right) == (True, False)
    assert edit.log_odds == pytest.approx([1, 1, 1])
    assert identity.log_odds == pytest.approx([0, 0, 0], abs=1e-4)
    [gone, _] = ask(JUDGE, [case(0.5, category="remove", done=True, same=False)], 1, CPU)
    assert not gone.yes_is_right, "of a thing that was removed, No is right"
    assert gone.log_odds == pytest.approx([-1, -1, -1])
    [same] = ask(JUDGE, [case(0.4, category="nothing", done=True, same=True)], 1, CPU)
    assert (same.kind, same.yes_is_right) == ("identity", True)
    assert same.log_odds == pytest.approx([1, 1, 1])


def test_what_is_debatable_is_not_asked() -> None:
    answers = ask(JUDGE, [case(0.5, done=None, same=True), case(0.5, done=False, same=None)], 8, CPU)
    assert [(answer.kind, answer.yes_is_right) for answer in answers] == [("identity", True), ("edit", False)]


def test_answers_do_not_depend_on_the_batch_nor_on_sizes_beside_them() -> None:
    cases = [
        case(value / 10, category=category, done=done, same=not done, size=size)
        for value, (category, done, size) in enumerate(
            [("hats", True, 4), ("remove", False, 4), ("nothing", True, 8), ("hats", False, 4), ("remove", None, 8)]
        )
    ]
    alone = [replace(answer, case=place) for place, each in enumerate(cases) for answer in ask(JUDGE, [each], 1, CPU)]
    assert alone[0].question.startswith("Was this instruction carried out: dye it?")
    assert "{edited}" in alone[0].question
    for batch in (1, 2, 3, 5):
        together = ask(JUDGE, cases, batch, CPU)
        assert [replace(a, log_odds=()) for a in together] == [replace(a, log_odds=()) for a in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.log_odds == pytest.approx(other.log_odds, abs=1e-5)


class Pedant:
    """Says Yes to the shipped wordings, and No to some others."""

    def yes_minus_no(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question"]:
        return torch.tensor([[-1.0 if "Somebody" in q.prompt else 3.0 for q in row] for row in questions])


def test_a_judge_that_minds_its_words_is_found_out() -> None:
    answers = ask(Pedant(), [case(0.5, done=True, same=False), case(0.5, done=False, same=True)], 2, CPU)
    for kind, template in zip(("edit", "identity"), templates_for("hats"), strict=True):
        own = [answer for answer in answers if answer.kind == kind]
        assert own[0].prompts == (template.prompt, *(other.prompt for other in other_wordings(template)))
        found = asked(own).all.wording
        assert found is not None
        assert (found.flips, found.any_flip) == (0.5, 1.0)
        assert found.spread == pytest.approx((32 / 9) ** 0.5)
    rows = {row.prompt: row for row in wordings(answers)}
    assert len(rows) == 6
    for prompt, row in rows.items():
        assert (row.count, row.accuracy, row.said_yes) == (2, 0.5, 0.0 if "Somebody" in prompt else 1.0)


def test_answers_are_summarised_by_what_they_are_about() -> None:
    answers = [
        Answer("hats", "right", "edit", True, ("p",), (2.0,), 0, "p"),
        Answer("hats", "right", "identity", True, ("q",), (-1.0,), 0, "q"),
        Answer("wigs", "", "edit", False, ("p",), (-1.0,), 1, "p"),
    ]
    assert asked(answers).all.measures.accuracy == pytest.approx(2 / 3)
    assert asked(answers).questions["edit"].measures.auc == 1
    assert asked(answers).all.wording is None
    by = asked_by(answers, lambda answer: answer.category)
    assert {name: each.all.measures.count for name, each in by.items()} == {"hats": 2, "wigs": 1}
    assert by["wigs"].questions["edit"].measures.auc is None
    assert set(asked_by(answers, lambda answer: answer.attempt)) == {"right"}


class Broken(Pedant):
    """Answers nothing that could be measured."""

    def yes_minus_no(self, reference: Tensor, edited: Tensor, questions: Sequence[Sequence[Question]]) -> Tensor:
        return torch.full((len(questions), max(map(len, questions))), torch.nan)


def test_answers_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(JudgeError, match="not numbers"):
        ask(Broken(), [case(0.5, done=True, same=False)], 1, CPU)


def test_the_surest_mistakes_of_each_category_are_kept() -> None:
    def said(category: str, odds: float, case: int, *, right: bool) -> Answer:
        return Answer(category, "", "edit", right, ("p", "other"), (odds, -odds), case, "p?")

    answers = [
        said("hats", 1.0, 0, right=False),
        said("hats", 5.0, 1, right=True),
        said("hats", -3.0, 2, right=True),
        said("wigs", 9.0, 3, right=True),
        said("caps", 0.0, 4, right=True),
        said("hats", 2.0, 5, right=False),
    ]
    found = mistakes(answers, 2)
    assert [(each.category, each.case) for each in found] == [("hats", 2), ("hats", 5), ("caps", 4)]
    assert found[0].probability == pytest.approx(1 / (1 + math.exp(3)))
    assert (found[0].question, found[0].yes_is_right) == ("p?", True)
    assert mistakes(answers[3:4], 2) == []
