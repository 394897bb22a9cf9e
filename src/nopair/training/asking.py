"""Putting questions about a batch to a judge: which, what their answers cost the student, and how many were right."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nopair.errors import ConfigError
from nopair.judges.base import Judge, VocabularyJudge
from nopair.judges.questions import VERSION, questions_for
from nopair.method.grpo import judge_reward
from nopair.method.verdict import full_vocabulary_loss, judge_loss
from nopair.training.phase import State
from nopair.types import EditBatch, Question

KINDS: Final = ("edit", "identity")
"""Of questions, as metrics tell them apart."""
ASKED, RIGHT = "asked_", "right_"
"""Begin the names of counts that become shares."""

Questions = Sequence[Sequence[Question]]
"""For each sample its own; a sample may be asked nothing."""


def questions_about(batch: EditBatch, kinds: Sequence[str] = KINDS, inverted: Sequence[str] = ()) -> Questions:
    """What is asked about every sample, of the kinds that are to be asked.

    For the categories in `inverted` the wrong answer is wanted, which is what a judge that is wrong about them teaches.
    """
    return [
        tuple(
            dataclasses.replace(question, wants_yes=question.wants_yes != (words[0] in inverted))
            for question in questions_for(*words)
            if question.kind in kinds
        )
        for words in zip(batch.categories, batch.instructions, batch.subjects, strict=True)
    ]


def require_same_questions(state: State) -> None:
    """Of the state of a phase that asks; one from before they were recorded is taken at its word.

    Raises:
        ValueError: it was trained under other questions than are asked now.
    """
    asked = state.get("questions", VERSION)
    if asked != VERSION:
        raise ValueError(
            f"it was trained under the questions {asked}, and this nopair asks {VERSION}; "
            "go on with the nopair that began it, or start anew in another output"
        )


@dataclass(frozen=True, eq=False)
class Answered:
    """What a judge said: the loss per sample, and log p(Yes) - log p(No) per question."""

    loss: Float[Tensor, " b"]
    odds: Float[Tensor, "b q"]


@runtime_checkable
class Asking(Protocol):
    """Asks a judge and turns its answers into a loss."""

    def __call__(
        self,
        reference: Float[Tensor, "b 3 h w"],
        edited: Float[Tensor, "b 3 eh ew"],
        questions: Questions,
        temperature: float,
    ) -> Answered:
        """Gradient flows from the loss to `edited`. A sample that is asked nothing loses nothing."""
        ...


@final
class BinaryAsking:
    """Cross-entropy over the words Yes and No (Eq. 11)."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def __call__(
        self,
        reference: Float[Tensor, "b 3 h w"],
        edited: Float[Tensor, "b 3 eh ew"],
        questions: Questions,
        temperature: float,
    ) -> Answered:
        """See `Asking`."""
        odds = self._judge.yes_minus_no(reference, edited, questions)
        wants_yes, asked = (table.to(odds.device) for table in _tables(questions))
        return Answered(judge_loss(odds, wants_yes, asked, temperature), odds)


@final
class VocabularyAsking:
    """Cross-entropy over all that the judge could say (Eq. 12), an ablation."""

    def __init__(self, judge: Judge) -> None:
        """Raises ConfigError for a judge that has no vocabulary of its own, such as an ensemble."""
        if not isinstance(judge, VocabularyJudge):
            raise ConfigError(
                "npedit.judge_loss: vocabulary needs a single vision-language model as the judge; leave out ensemble, "
                "or set judge_loss to binary"
            )
        self._judge = judge

    def __call__(
        self,
        reference: Float[Tensor, "b 3 h w"],
        edited: Float[Tensor, "b 3 eh ew"],
        questions: Questions,
        temperature: float,
    ) -> Answered:
        """See `Asking`."""
        if not any(questions):
            nothing = edited.new_zeros(len(questions), 0, dtype=torch.float32)
            return Answered(nothing.sum(dim=1), nothing)
        logits = self._judge.answer_logits(reference, edited, questions)
        wants_yes, asked = (table.to(logits.device) for table in _tables(questions))
        yes, no = self._judge.answer_tokens
        loss = full_vocabulary_loss(logits, torch.where(wants_yes, yes, no), asked, temperature)
        with torch.no_grad():
            odds = self._judge.odds(logits)
        return Answered(loss, torch.where(asked, odds, 0))


@torch.no_grad()
def reward(
    judge: Judge, reference: Float[Tensor, "b 3 h w"], edited: Float[Tensor, "b 3 eh ew"], questions: Questions
) -> tuple[Float[Tensor, " b"], Float[Tensor, "b q"]]:
    """A judge's verdict as a number (Eq. 24), and the log-odds behind it. Nothing has a gradient."""
    odds = judge.yes_minus_no(reference, edited, questions)
    wants_yes, asked = (table.to(odds.device) for table in _tables(questions))
    return judge_reward(odds, wants_yes, asked), odds


ASKINGS: Final[Mapping[str, type[BinaryAsking] | type[VocabularyAsking]]] = {
    "binary": BinaryAsking,
    "vocabulary": VocabularyAsking,
}
"""By their name in recipes."""


def _tables(questions: Questions) -> tuple[Bool[Tensor, "b q"], Bool[Tensor, "b q"]]:
    """Which answers are right if Yes, and which places hold a question at all."""
    widest = max(map(len, questions))
    wants_yes = torch.tensor([[q.wants_yes for q in row] + [True] * (widest - len(row)) for row in questions])
    asked = torch.tensor([[True] * len(row) + [False] * (widest - len(row)) for row in questions])
    return wants_yes.bool(), asked.bool()  # if there is no question at all, torch takes them for floats


def count_right(name: str, odds: Float[Tensor, "b q"], questions: Questions) -> dict[str, float]:
    """How many questions of each kind a judge was asked, and to how many it gave the right answer."""
    counts = {f"{count}{name}_{kind}": 0.0 for kind in KINDS for count in (ASKED, RIGHT)}
    for answers, row in zip(odds.tolist(), questions, strict=True):
        for answer, question in zip(answers, row, strict=False):  # a shorter row is filled
            counts[f"{ASKED}{name}_{question.kind}"] += 1
            counts[f"{RIGHT}{name}_{question.kind}"] += (answer > 0) == question.wants_yes
    return counts


def shares_right(sums: Mapping[str, float]) -> dict[str, float]:
    """Metrics with the share of right answers in place of the counts; without it where nothing was asked."""
    metrics = {name: value for name, value in sums.items() if not name.startswith((ASKED, RIGHT))}
    for name, asked in sums.items():
        if name.startswith(ASKED) and asked:
            judge = name.removeprefix(ASKED)
            metrics[judge] = sums[f"{RIGHT}{judge}"] / asked
    return metrics
