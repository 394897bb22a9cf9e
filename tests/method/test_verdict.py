"""Eq. 10-13: the judge's loss, its gradient, and its behaviour where a naive one breaks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nopair.method import full_vocabulary_loss, judge_loss, ramp, right_minus_wrong

ALL = torch.tensor([[True]])
log_odds = st.floats(-30, 30)


@given(log_odds, st.booleans(), st.floats(0.01, 2.0))
def test_it_is_minus_log_sigmoid_of_the_right_answer(value: float, wants_yes: bool, temperature: float) -> None:
    yes_minus_no = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    loss = judge_loss(yes_minus_no, torch.tensor([[wants_yes]]), ALL, temperature)
    margin = temperature * (value if wants_yes else -value)
    expected = math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0)
    assert loss.item() == pytest.approx(expected)
    loss.sum().backward()
    sign = 1 if wants_yes else -1
    assert yes_minus_no.grad is not None
    # Descent raises ℓ_yes - ℓ_no where Yes is right, and lowers it where No is.
    assert yes_minus_no.grad.item() == pytest.approx(-sign * temperature / (1 + math.exp(margin)))


def test_it_is_cross_entropy_over_the_two_words() -> None:
    logits = torch.randn(5, 3, 2)  # No, Yes
    wants_yes, asked = torch.rand(5, 3) > 0.5, torch.ones(5, 3, dtype=torch.bool)
    binary = judge_loss(logits[..., 1] - logits[..., 0], wants_yes, asked, 0.7)
    torch.testing.assert_close(full_vocabulary_loss(logits, wants_yes.long(), asked, 0.7), binary)


@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 1000))
def test_other_words_only_add_to_the_loss(vocabulary: int, questions: int, seed: int) -> None:
    logits = torch.randn(2, questions, vocabulary, generator=torch.Generator().manual_seed(seed))
    asked = torch.ones(2, questions, dtype=torch.bool)
    full = full_vocabulary_loss(logits, torch.ones(2, questions, dtype=torch.long), asked)
    assert (full >= judge_loss(logits[..., 1] - logits[..., 0], asked, asked, 1.0) - 1e-5).all()


@pytest.mark.parametrize("rubbish", [0.0, 1e9, math.inf, math.nan])
def test_what_was_not_asked_counts_for_nothing(rubbish: float) -> None:
    asked = torch.tensor([[True, True], [True, False], [False, False]])
    answers = torch.tensor([[1.0, -2.0], [3.0, rubbish], [rubbish, rubbish]], requires_grad=True)
    loss = judge_loss(answers, torch.ones(3, 2, dtype=torch.bool), asked, 1.0)
    softplus = torch.nn.functional.softplus
    expected = torch.tensor(
        [(softplus(torch.tensor(-1.0)) + softplus(torch.tensor(2.0))) / 2, softplus(torch.tensor(-3.0)), 0]
    )
    torch.testing.assert_close(loss.detach(), expected)
    loss.sum().backward()
    assert answers.grad is not None
    assert (answers.grad[asked] != 0).all()
    assert (answers.grad[~asked] == 0).all()

    logits = torch.stack([torch.zeros(3, 2), answers.detach()], dim=-1).requires_grad_()
    right = torch.where(asked, 1, -1)  # no token has this id
    full = full_vocabulary_loss(logits, right, asked)
    torch.testing.assert_close(full.detach(), expected)
    full.sum().backward()
    assert logits.grad is not None
    assert (logits.grad[asked] != 0).all()
    assert (logits.grad[~asked] == 0).all()


@pytest.mark.parametrize("value", [1e4, -1e4, 1e30, -1e30])
def test_extreme_answers_stay_finite(value: float) -> None:
    answers = torch.tensor([[value]], requires_grad=True)
    loss = judge_loss(answers, ALL, ALL, 1.0)
    loss.sum().backward()
    assert answers.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(answers.grad).all()
    assert answers.grad.item() == (0.0 if value > 0 else -1.0)
    assert loss.item() == pytest.approx(max(-value, 0.0))


def test_a_sure_judge_in_bf16_still_gives_a_gradient() -> None:
    """log-odds of 10: in bf16, 1 - σ(10) is 0."""
    answers = torch.tensor([[10.0]], dtype=torch.bfloat16, requires_grad=True)
    assert 1 - torch.sigmoid(answers) == 0
    loss = judge_loss(answers, ALL, ALL, 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4.54e-5, rel=1e-3)
    loss.sum().backward()
    assert answers.grad is not None
    assert answers.grad.item() < 0


def test_log_odds_of_the_right_answer_do_not_mix_polarities() -> None:
    answers = torch.tensor([[4.0, -4.0]])
    torch.testing.assert_close(right_minus_wrong(answers, torch.tensor([[True, False]])), torch.tensor([[4.0, 4.0]]))


@pytest.mark.parametrize(
    ("step", "steps", "expected"), [(0, 10, 0.1), (5, 10, 0.55), (10, 10, 1.0), (99, 10, 1.0), (0, 0, 1.0)]
)
def test_the_ramp_is_linear_then_one(step: int, steps: int, expected: float) -> None:
    assert ramp(step, steps) == pytest.approx(expected)


def test_the_ramp_starts_where_it_is_told() -> None:
    assert ramp(0, 10, start=0.4) == pytest.approx(0.4)


def test_shapes_are_checked() -> None:
    with pytest.raises(TypeError):
        judge_loss(torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.bool), 1.0)
    one: Tensor = torch.zeros(2)
    with pytest.raises(TypeError):
        judge_loss(one, one.bool(), one.bool(), 1.0)
