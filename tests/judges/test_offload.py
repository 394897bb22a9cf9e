"""A judge whose weights are away when it is not asked answers, and teaches, as it would otherwise."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nopair.judges.base import VocabularyJudge
from nopair.judges.load import FAMILIES, load_judge
from nopair.judges.offload import HostWeights, OffloadedJudge
from nopair.judges.vision_language import VisionLanguageJudge
from nopair.types import Question

QUESTIONS = [
    [Question("edit", "Is there a circle? {edited} Answer Yes or No.", wants_yes=True)],
    [
        Question("edit", "{edited} Is it red? Answer Yes or No.", wants_yes=True),
        Question("identity", "{reference} Is the rest the same? {edited} Answer Yes or No.", wants_yes=False),
    ],
]


def offloaded(judge: VisionLanguageJudge) -> OffloadedJudge:
    return OffloadedJudge(judge, HostWeights(judge.model, "cpu").here)


def aligned(judge: VisionLanguageJudge) -> VisionLanguageJudge:
    """Copies lie aligned in memory. What a file holds need not, and some CPUs then round in another order."""
    for parameter in judge.model.parameters():
        parameter.data = parameter.data.clone()
    return judge


def images() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    reference, edited = (torch.rand(2, 3, 40, 56, generator=source) for _ in range(2))
    return reference.requires_grad_(), edited.requires_grad_()


def gradient(pixels: Tensor) -> Tensor:
    assert pixels.grad is not None
    return pixels.grad


def held(judge: VisionLanguageJudge) -> int:
    return sum(parameter.numel() for parameter in judge.model.parameters())


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize(
    ("asked", "checkpointing"), [("yes_minus_no", False), ("yes_minus_no", True), ("answer_logits", False)]
)
def test_answers_and_gradients_are_the_same_bits(
    folders: dict[str, Path], family: str, asked: str, checkpointing: bool
) -> None:
    judge = aligned(load_judge(folders[family]))
    if checkpointing:
        judge.checkpoint()
    reference, edited = images()
    answers = getattr(judge, asked)(reference, edited, QUESTIONS)
    answers.square().sum().backward()
    expected, edited.grad = gradient(edited), None
    away = offloaded(judge)
    for _ in range(2):
        again = getattr(away, asked)(reference, edited, QUESTIONS)
        assert torch.equal(again, answers)
        assert held(judge) == 0, "nothing stays between the answer and its gradient"
        again.square().sum().backward()
        assert torch.equal(gradient(edited), expected)
        assert held(judge) == 0
        edited.grad = None
    assert reference.grad is None


def test_it_says_what_a_judge_with_a_vocabulary_says(judge_folder: Path) -> None:
    judge = load_judge(judge_folder)
    away = offloaded(judge)
    assert isinstance(away, VocabularyJudge)
    assert away.answer_tokens == judge.answer_tokens
    logits = torch.randn(3, 2, len(judge.tokenizer))
    assert torch.equal(away.odds(logits), judge.odds(logits))


def test_nothing_asked_teaches_nothing(judge_folder: Path) -> None:
    away = offloaded(load_judge(judge_folder))
    reference, edited = images()
    odds = away.yes_minus_no(reference, edited, [[], []])
    assert odds.shape == (2, 0)
    (odds.sum() + edited.sum()).backward()
    assert torch.equal(gradient(edited), torch.ones_like(edited))


def test_weights_come_back_whole_and_leave_when_something_breaks(judge_folder: Path) -> None:
    judge = load_judge(judge_folder)
    before = {name: value.clone() for name, value in judge.model.state_dict().items()}
    weights = HostWeights(judge.model, "cpu")
    with weights.here():
        assert all(torch.equal(value, before[name]) for name, value in judge.model.state_dict().items())
    with pytest.raises(KeyboardInterrupt), weights.here():
        raise KeyboardInterrupt
    assert held(judge) == 0
    with pytest.raises(RuntimeError):
        judge.yes_minus_no(*images(), QUESTIONS)


def test_what_is_tied_stays_tied() -> None:
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(2, 2), "second": torch.nn.Linear(2, 2)}).requires_grad_(False)
    first, second = model["first"], model["second"]
    first.register_parameter("again", first.weight)  # pyright: ignore[reportArgumentType, reportCallIssue]
    second.weight = first.weight
    weights = HostWeights(model, "cpu")
    assert first.weight is second.weight is first.again
    assert first.again.numel() == 0  # pyright: ignore[reportCallIssue]
    with weights.here():
        assert first.weight is second.weight is first.again
        assert first.weight.shape == (2, 2)


def test_weights_come_once_at_a_time() -> None:
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    weights = HostWeights(model, "cpu")
    with weights.here():
        with pytest.raises(RuntimeError, match="on the device already"), weights.here():
            pytest.fail("they came twice")
        assert model.weight.shape == (2, 2), "who came first keeps them"
    assert model.weight.numel() == 0


def test_what_is_trained_cannot_be_kept_away() -> None:
    with pytest.raises(ValueError, match="frozen"):
        HostWeights(torch.nn.Linear(2, 2), "cpu")
