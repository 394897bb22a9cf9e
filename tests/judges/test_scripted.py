"""The scripted judge does what its closed form says."""

from typing import get_type_hints

import pytest
import torch

from nopair.errors import JudgeError
from nopair.judges.base import Judge
from nopair.judges.scripted import ScriptedJudge
from nopair.types import Question

EDIT = Question("edit", "{reference} {edited}", wants_yes=True)
IDENTITY = Question("identity", "{reference} {edited}", wants_yes=True)
GONE = Question("edit", "{edited}", wants_yes=False)
TARGET = (0.8, 0.2, 0.1)


def _images(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(batch, 3, 6, 8), torch.rand(batch, 3, 6, 8).requires_grad_()


def test_values_and_gradients_are_the_stated_ones() -> None:
    judge = ScriptedJudge(TARGET, tolerance=0.2, sharpness=7.0)
    reference, edited = _images()
    odds = judge.yes_minus_no(reference, edited, [[EDIT], [IDENTITY]])
    (gradient,) = torch.autograd.grad(odds.sum(), edited)

    offset = edited[0].mean(dim=(1, 2)) - torch.tensor(TARGET)
    change = edited[1] - reference[1]
    torch.testing.assert_close(odds[0, 0], 7 * (0.04 - (offset**2).sum()))
    torch.testing.assert_close(odds[1, 0], 7 * (0.04 - (change**2).mean()))
    torch.testing.assert_close(gradient[0], (-14 * offset / 48).view(3, 1, 1).expand(3, 6, 8))
    torch.testing.assert_close(gradient[1], -14 * change / (3 * 48))


def test_where_no_is_right_the_sign_turns() -> None:
    judge = ScriptedJudge(TARGET)
    odds = judge.yes_minus_no(*_images(1), [[EDIT, GONE]])
    torch.testing.assert_close(odds[0, 0], -odds[0, 1])


def test_the_perfect_edit_is_right_and_the_unchanged_image_is_not() -> None:
    judge = ScriptedJudge(TARGET)
    reference = torch.full((1, 3, 4, 4), 0.5)
    perfect = torch.tensor(TARGET).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert judge.yes_minus_no(reference, perfect, [[EDIT]]).item() > 0
    odds = judge.yes_minus_no(reference, reference, [[EDIT, IDENTITY]])
    assert odds[0, 0] < 0 < odds[0, 1]


def test_shorter_rows_are_filled_with_zeros_without_gradient() -> None:
    reference, edited = _images()
    odds = ScriptedJudge(TARGET).yes_minus_no(reference, edited, [[EDIT, IDENTITY], []])
    assert odds.shape == (2, 2)
    assert odds[1].tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(odds.sum(), edited)
    assert gradient[1].eq(0).all()


def test_nothing_asked_is_no_column() -> None:
    assert ScriptedJudge(TARGET).yes_minus_no(*_images(), [[], []]).shape == (2, 0)


def test_the_reference_gets_no_gradient() -> None:
    reference, edited = _images()
    odds = ScriptedJudge(TARGET).yes_minus_no(reference.requires_grad_(), edited, [[IDENTITY], [IDENTITY]])
    assert torch.autograd.grad(odds.sum(), [reference, edited], allow_unused=True)[0] is None


def test_an_unknown_kind_of_question_is_refused() -> None:
    with pytest.raises(JudgeError, match="style"):
        ScriptedJudge(TARGET).yes_minus_no(*_images(1), [[Question("style", "{edited}", wants_yes=True)]])


def test_rows_must_match_the_batch() -> None:
    with pytest.raises(ValueError, match="rows of questions"):
        ScriptedJudge(TARGET).yes_minus_no(*_images(2), [[EDIT]])


def test_it_has_the_judges_signature() -> None:
    assert get_type_hints(ScriptedJudge.yes_minus_no).keys() == get_type_hints(Judge.yes_minus_no).keys()
