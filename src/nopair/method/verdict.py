"""From a judge's logits to a loss: Eq. 10-13 of docs/method.md.

A judge answers question j of a sample with one number, ℓ_yes - ℓ_no at the answer position. Everything here is fp32 and
works on log-odds: in bf16, 1 - p rounds to 0 as soon as p > 0.998, and the gradient goes with it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nopair.method.flow import at_least_fp32


def right_minus_wrong(yes_minus_no: Float[Tensor, "b q"], wants_yes: Bool[Tensor, "b q"]) -> Float[Tensor, "b q"]:
    """Eq. 10: ℓ_right - ℓ_wrong, the log-odds of the right answer, whichever of the two words that is."""
    log_odds = at_least_fp32(yes_minus_no)
    return torch.where(wants_yes, log_odds, -log_odds)


def mean_over_asked(per_question: Float[Tensor, "b q"], asked: Bool[Tensor, "b q"]) -> Float[Tensor, "b"]:
    """Mean over the questions a sample was asked; 0 where it was asked none. What stands in the other places is
    ignored.
    """
    total = torch.where(asked, per_question, 0).sum(dim=1)
    return total / asked.sum(dim=1).clamp(min=1)


def judge_loss(
    yes_minus_no: Float[Tensor, "b q"],
    wants_yes: Bool[Tensor, "b q"],
    asked: Bool[Tensor, "b q"],
    temperature: float,
) -> Float[Tensor, "b"]:
    """Eq. 11: mean over the asked questions of -log σ(τ (ℓ_right - ℓ_wrong)), cross-entropy over the words Yes and No
    alone.

    Finite for any finite logits: -log σ is linear, with a gradient of -τ, where the judge is sure of the wrong answer.
    """
    log_odds = torch.where(asked, right_minus_wrong(yes_minus_no, wants_yes), 0)
    return mean_over_asked(-F.logsigmoid(temperature * log_odds), asked)


def full_vocabulary_loss(
    logits: Float[Tensor, "b q v"],
    right: Int[Tensor, "b q"],
    asked: Bool[Tensor, "b q"],
    temperature: float = 1.0,
) -> Float[Tensor, "b"]:
    """Eq. 12, an ablation: cross-entropy over all v tokens instead of two. `right` holds the token id of the right
    answer.

    It also pushes on words that are no answer, which the paper finds a little worse. With v = 2 it is Eq. 11.
    """
    scaled = temperature * torch.where(asked[..., None], at_least_fp32(logits), 0)
    per_question = F.cross_entropy(scaled.flatten(0, 1), torch.where(asked, right, 0).flatten(), reduction="none")
    return mean_over_asked(per_question.unflatten(0, asked.shape), asked)


def ramp(step: int, ramp_steps: int, start: float = 0.1) -> float:
    """Eq. 13: the temperature τ at a training step, linear from `start` to 1 in `ramp_steps` steps, then 1.

    A low τ at first keeps a judge that is sure of the wrong answer from drowning the distribution-matching gradient.
    """
    return min(1.0, start + (1 - start) * step / ramp_steps) if ramp_steps > 0 else 1.0
