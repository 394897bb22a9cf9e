"""Which questions are asked, and what a judge's answers cost."""

import pytest
import torch

from nopair.errors import ConfigError
from nopair.judges.ensemble import JudgeEnsemble
from nopair.judges.load import load_judge
from nopair.judges.scripted import ScriptedJudge
from nopair.judges.vision_language import VisionLanguageJudge
from nopair.method.verdict import full_vocabulary_loss, judge_loss
from nopair.training.asking import BinaryAsking, VocabularyAsking, count_right, questions_about, shares_right
from nopair.types import EditBatch
from nopair.weights import resolve
from nopair.world.records import WorldSource


@pytest.fixture(scope="module")
def judge() -> VisionLanguageJudge:
    return load_judge(resolve("tiny:judge"))


@pytest.fixture(scope="module")
def batch() -> EditBatch:
    source = WorldSource(0, held_out=False, categories=("recolour", "remove", "nothing"), nothing_share=0.6)
    return source.batch(range(6))


def test_only_the_kinds_that_are_wanted_are_asked(batch: EditBatch) -> None:
    both, one = questions_about(batch), questions_about(batch, ("edit",))
    assert [[q for q in row if q.kind == "edit"] for row in both] == [list(row) for row in one]
    assert any(not row for row in one), "doing nothing is asked for identity alone"
    assert {q.kind for row in both for q in row} == {"edit", "identity"}


@pytest.mark.parametrize("asking", [BinaryAsking, VocabularyAsking])
def test_both_losses_see_the_same_answers_and_ask_nothing_of_those_not_asked(
    judge: VisionLanguageJudge, batch: EditBatch, asking: type[BinaryAsking] | type[VocabularyAsking]
) -> None:
    questions = questions_about(batch, ("edit",))
    answered = asking(judge)(batch.reference, batch.reference.flip(0), questions, 1.0)
    expected = judge.yes_minus_no(batch.reference, batch.reference.flip(0), questions)
    torch.testing.assert_close(answered.odds, expected)
    silent = torch.tensor([not row for row in questions])
    assert (answered.loss[silent] == 0).all()
    assert (answered.loss[~silent] > 0).all()
    nothing = asking(judge)(batch.reference, batch.reference, [()] * 6, 1.0)
    assert nothing.loss.tolist() == [0.0] * 6
    assert nothing.odds.shape == (6, 0)


def test_both_losses_are_those_of_the_method_at_the_temperature_that_is_asked_for(
    judge: VisionLanguageJudge, batch: EditBatch
) -> None:
    questions, edited = questions_about(batch), batch.reference.flip(0)
    wants_yes = torch.tensor([[q.wants_yes for q in row] + [True] * (2 - len(row)) for row in questions])
    asked = torch.tensor([[True] * len(row) + [False] * (2 - len(row)) for row in questions])
    logits = judge.answer_logits(batch.reference, edited, questions)
    yes, no = judge.answer_tokens
    expected = (
        (BinaryAsking, judge_loss(judge.odds(logits), wants_yes, asked, 0.3)),
        (VocabularyAsking, full_vocabulary_loss(logits, torch.where(wants_yes, yes, no), asked, 0.3)),
    )
    for asking, loss in expected:
        torch.testing.assert_close(asking(judge)(batch.reference, edited, questions, 0.3).loss, loss)


def test_the_whole_vocabulary_also_counts_words_that_are_no_answer(
    judge: VisionLanguageJudge, batch: EditBatch
) -> None:
    """-log p(right word) of a softmax over everything is never less than over the two words alone."""
    questions = questions_about(batch)
    edited = batch.reference.flip(0).requires_grad_()
    whole = VocabularyAsking(judge)(batch.reference, edited, questions, 1.0)
    (gradient,) = torch.autograd.grad(whole.loss.sum(), edited)
    assert gradient.abs().sum() > 0
    logits = judge.answer_logits(batch.reference, edited, questions)
    yes, no = judge.answer_tokens
    two = logits[..., [yes, no]]
    right = torch.tensor([[0 if q.wants_yes else 1 for q in row] + [0] * (2 - len(row)) for row in questions])
    asked = torch.tensor([[True] * len(row) + [False] * (2 - len(row)) for row in questions])
    assert (whole.loss >= full_vocabulary_loss(two, right, asked) - 1e-6).all()


def test_without_a_vocabulary_of_its_own_a_judge_is_refused(judge: VisionLanguageJudge) -> None:
    for other in (JudgeEnsemble([judge, judge], [1.0, 1.0]), ScriptedJudge((1.0, 0.0, 0.0))):
        with pytest.raises(ConfigError, match="judge_loss"):
            VocabularyAsking(other)


def test_counts_become_shares_where_something_was_asked(batch: EditBatch) -> None:
    questions = questions_about(batch, ("edit",))
    wanted = torch.tensor([[1.0 if row and row[0].wants_yes else -1.0] for row in questions])
    counts = count_right("judge", wanted, questions)
    assert shares_right(counts) == {"judge_edit": 1.0}
    assert shares_right(count_right("judge", -wanted, questions)) == {"judge_edit": 0.0}


def test_of_a_judge_that_is_wrong_about_a_kind_of_edit_the_wrong_answer_is_wanted(batch: EditBatch) -> None:
    for category, right, wrong in zip(
        batch.categories, questions_about(batch), questions_about(batch, inverted=("recolour",)), strict=True
    ):
        assert [q.prompt for q in right] == [q.prompt for q in wrong]
        turned = [r.wants_yes != w.wants_yes for r, w in zip(right, wrong, strict=True)]
        assert turned == [category == "recolour"] * len(right)
