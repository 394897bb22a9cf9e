"""A judge in closed form, for tests and first steps: no model, no weights, a gradient known by heart."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.errors import JudgeError
from nopair.types import Question


@dataclass(frozen=True, slots=True)
class ScriptedJudge:
    """Wants every image to have the mean colour `target` and otherwise to stay as the reference.

    With m the mean colour of the edited image e, r the reference and s = `sharpness`, the log-odds of the right answer:

        edit      s (`tolerance`² - |m - target|²)     gradient -2s (m - target) / (height · width) at every pixel
        identity  s (`tolerance`² - mean (e - r)²)     gradient -2s (e - r) / (3 · height · width)

    so an edit is right when its mean colour is within `tolerance` of the target. Answers ignore a question's words.
    Only its `kind` and `wants_yes` count: where No is the right answer, Yes minus No has the opposite sign. Values
    outside [0, 1] are not clamped. A `nopair.judges.base.Judge`.
    """

    target: tuple[float, float, float]
    tolerance: float = 0.1
    sharpness: float = 100.0

    def yes_minus_no(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 height width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question"]:
        """See `nopair.judges.base.Judge.yes_minus_no`; here both images have one size.

        Raises:
            JudgeError: a question is of neither kind.
        """
        if not len(questions) == len(reference) == len(edited):
            raise ValueError(
                f"{len(reference)} references, {len(edited)} edited images, {len(questions)} rows of questions"
            )
        pixels = edited.float()
        target = pixels.new_tensor(self.target)
        distances = {
            "edit": (pixels.mean(dim=(2, 3)) - target).square().sum(dim=1),
            "identity": (pixels - reference.detach().float()).square().mean(dim=(1, 2, 3)),
        }
        odds = {kind: self.sharpness * (self.tolerance**2 - distance) for kind, distance in distances.items()}
        nothing = torch.zeros_like(pixels[:, 0, 0, 0])
        columns = [
            torch.stack([_answer(odds, nothing, row, sample, column) for sample, row in enumerate(questions)])
            for column in range(max(map(len, questions), default=0))
        ]
        return torch.stack(columns, dim=1) if columns else nothing[:, None][:, :0]


def _answer(odds: dict[str, Tensor], nothing: Tensor, row: Sequence[Question], sample: int, column: int) -> Tensor:
    if column >= len(row):
        return nothing[sample]
    question = row[column]
    if question.kind not in odds:
        raise JudgeError(f"the scripted judge knows questions of kind {' and '.join(odds)}, not {question.kind!r}")
    right = odds[question.kind][sample]
    return right if question.wants_yes else -right
