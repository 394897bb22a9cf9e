"""Several judges as one."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.errors import ConfigError
from nopair.judges.base import Judge
from nopair.types import Question


class JudgeEnsemble:
    """The weighted mean of several judges' log-odds; a `nopair.judges.base.Judge`.

    A mean of log-odds multiplies odds, each to the power of its weight, so it is one more Bayesian verdict, and its
    gradient is the same mean of the judges' gradients: no judge is drowned because another is sure, as would happen to
    a mean of probabilities, whose gradient vanishes with p (1 - p), and none is ignored, as by the minimum. A judge
    that speaks in larger numbers than the others counts for more; its weight is the place to correct that.

    Attributes:
        judges: at least one.
        weights: of the judges, as shares that add up to 1. A judge of weight 0 is not asked at all.
    """

    def __init__(self, judges: Sequence[Judge], weights: Sequence[float]) -> None:
        """Takes weights of any scale.

        Raises:
            ConfigError: no judges, not one weight for each, a weight that is negative or not finite, or all are 0.
        """
        if not judges or len(judges) != len(weights):
            raise ConfigError(f"an ensemble of {len(judges)} judges has {len(weights)} weights; give each judge one")
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or sum(weights) == 0:
            raise ConfigError(
                f"an ensemble's weights are {', '.join(map(str, weights))}; give numbers from 0 up, not all of them 0"
            )
        self.judges: tuple[Judge, ...] = tuple(judges)
        self.weights: tuple[float, ...] = tuple(weight / math.fsum(weights) for weight in weights)

    def yes_minus_no(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question"]:
        """See `nopair.judges.base.Judge.yes_minus_no`. The judges are asked one after another.

        Raises:
            JudgeError: a judge of weight above 0 cannot be asked one of the questions.
        """
        verdicts = [
            weight * judge.yes_minus_no(reference, edited, questions)
            for judge, weight in zip(self.judges, self.weights, strict=True)
            if weight
        ]
        return torch.stack(verdicts).sum(dim=0)
