"""Several judges as one."""

import pytest
import torch

from nopair.errors import ConfigError, JudgeError
from nopair.judges.base import Judge
from nopair.judges.ensemble import JudgeEnsemble
from nopair.judges.scripted import ScriptedJudge
from nopair.judges.vision_language import VisionLanguageJudge
from nopair.types import Question

RED, BLUE = ScriptedJudge((1.0, 0.0, 0.0)), ScriptedJudge((0.0, 0.0, 1.0), sharpness=10.0)
EDIT = Question("edit", "{edited}", wants_yes=True)
SAME = Question("identity", "{reference} {edited}", wants_yes=False)
ROWS = [[EDIT, SAME], [], [SAME]]


def test_odds_and_gradients_are_weighted_means() -> None:
    reference, edited = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 4, 4, requires_grad=True)
    ensemble = JudgeEnsemble([RED, BLUE], [3.0, 1.0])
    assert isinstance(ensemble, Judge)
    assert ensemble.weights == (0.75, 0.25)
    odds = [judge.yes_minus_no(reference, edited, ROWS) for judge in (ensemble, RED, BLUE)]
    torch.testing.assert_close(odds[0], 0.75 * odds[1] + 0.25 * odds[2])
    assert odds[0][1:, 1].eq(0).all(), "not asked is zero"
    grads = [torch.autograd.grad(part.sum(), edited)[0] for part in odds]
    torch.testing.assert_close(grads[0], 0.75 * grads[1] + 0.25 * grads[2])


def test_a_sure_judge_does_not_silence_another() -> None:
    """Odds in the thousands, where a mean of probabilities has no gradient left."""
    sure = ScriptedJudge((1.0, 0.0, 0.0), tolerance=10.0)
    edited = torch.rand(1, 3, 4, 4, requires_grad=True)
    odds = JudgeEnsemble([sure, BLUE], [1.0, 1.0]).yes_minus_no(edited.detach(), edited, [[EDIT]])
    alone = BLUE.yes_minus_no(edited.detach(), edited, [[EDIT]])
    towards, expected = (torch.autograd.grad(part.sum(), edited)[0] for part in (odds, alone))
    of_sure = torch.autograd.grad(sure.yes_minus_no(edited.detach(), edited, [[EDIT]]).sum(), edited)[0]
    torch.testing.assert_close(towards - of_sure / 2, expected / 2, rtol=1e-3, atol=1e-4)


def test_a_judge_of_weight_0_is_not_asked() -> None:
    class Mute:
        def yes_minus_no(self, reference, edited, questions):
            raise AssertionError("asked")

    edited = torch.rand(1, 3, 4, 4)
    odds = JudgeEnsemble([Mute(), RED], [0.0, 2.0]).yes_minus_no(edited, edited, [[EDIT]])
    torch.testing.assert_close(odds, RED.yes_minus_no(edited, edited, [[EDIT]]))


def test_models_of_different_families_judge_together(judges: dict[str, VisionLanguageJudge]) -> None:
    reference, edited = torch.rand(2, 3, 40, 40), torch.rand(2, 3, 50, 33, requires_grad=True)
    question = Question("edit", "Before: {reference} After: {edited} Answer Yes or No.", wants_yes=True)
    members = [judges["internvl"], judges["qwen3_vl"]]
    odds = JudgeEnsemble(members, [1.0, 1.0]).yes_minus_no(reference, edited, [[question], [question]])
    expected = torch.stack([judge.yes_minus_no(reference, edited, [[question]] * 2) for judge in members]).mean(dim=0)
    torch.testing.assert_close(odds, expected)
    assert (torch.autograd.grad(odds.sum(), edited)[0] != 0).all()


def test_a_question_that_one_cannot_be_asked_is_an_error() -> None:
    odd = Question("other", "{edited}", wants_yes=True)
    with pytest.raises(JudgeError, match="other"):
        JudgeEnsemble([RED, BLUE], [1.0, 1.0]).yes_minus_no(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4), [[odd]])


@pytest.mark.parametrize(
    "weights", [[], [1.0], [1.0, 1.0, 1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")], [1.0, float("inf")]]
)
def test_weights_that_make_no_mean_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="weights") as caught:
        JudgeEnsemble([RED, BLUE], weights)
    assert "\n" not in str(caught.value)


def test_an_ensemble_has_members() -> None:
    with pytest.raises(ConfigError, match="0 judges"):
        JudgeEnsemble([], [])
