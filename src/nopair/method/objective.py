"""The student's objective: Eq. 21-23 of docs/method.md, and the do-nothing rule.

The do-nothing rule: for a record of category `nothing` the right output is the reference, and all that the student is
told must say so. Its edited caption is its caption (so the teacher pulls towards images like the reference), the judge
is asked one question, whether the two images are the same, and Eq. 21 may say it once more in latents. Asking whether
such an "edit" was carried out would call identical images a failure while another term asks for them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nopair.errors import DataError
from nopair.method.flow import at_least_fp32, interpolate, to_x0
from nopair.types import EditBatch, Velocity

NOTHING = "nothing"
"""The category whose right output is the reference."""


def does_nothing(batch: EditBatch) -> Bool[Tensor, "b"]:
    """Which samples ask for the reference itself. On the CPU.

    Raises DataError if one of them has an edited caption other than its caption: it would be told two different things.
    """
    for index, category in enumerate(batch.categories):
        if category == NOTHING and batch.edited_captions[index] != batch.captions[index]:
            raise DataError(
                f"record '{batch.instructions[index]}' has category '{NOTHING}' but its edited caption "
                f"'{batch.edited_captions[index]}' is not its caption; make the two equal"
            )
    return torch.tensor([category == NOTHING for category in batch.categories], dtype=torch.bool)


def reference_loss(
    x0: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], nothing: Bool[Tensor, "b"]
) -> Float[Tensor, "b"]:
    """Eq. 21: for do-nothing samples the mean squared distance of output and reference latents, for others 0."""
    everywhere = torch.ones_like(reference[:, :1, :1, :1])
    return torch.where(nothing, preservation_loss(x0, reference, everywhere), 0)


def preservation_loss(
    x0: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], kept: Float[Tensor, "b 1 #h #w"]
) -> Float[Tensor, "b"]:
    """Eq. 21 asked of every sample, an addition to the paper, with a weight in [0, 1] for each place: mean of
    k (x0 - y)². With k = 1 everywhere it holds back what drifts, and the edit with it; Eq. 22 gives a better k.
    """
    return (kept * (at_least_fp32(x0) - reference.detach()).square()).mean(dim=(1, 2, 3))


@torch.no_grad()
def first_sight(
    reference: Float[Tensor, "b c h w"],
    edited: Velocity,
    described: Velocity,
    t: Float[Tensor, "b"],
    noise: Float[Tensor, "b c h w"],
    width: float,
) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b c h w"]]:
    """Eq. 22, what a teacher makes of an edit at first sight: k, how much of each place is to stay, and ỹ, the
    reference with the teacher's estimate of the edit where it is not.

    k = exp(-(d / width)²), d = mean over channels of |x̂0_edited - x̂0_described|; ỹ = k y + (1 - k) x̂0_edited. Both are
    estimates at the reference noised to t, under the edited caption and under the reference's own. Where the two
    captions lead to the same image, the edit is not. Needs no pair; the idea of DiffEdit's masks (Couairon et al.,
    arXiv 2210.11427).
    """
    x_t = interpolate(reference, noise, t)
    estimate = at_least_fp32(to_x0(x_t, edited(x_t, t), t))
    gap = estimate - to_x0(x_t, described(x_t, t), t)
    kept = torch.exp(-(gap.abs().mean(dim=1, keepdim=True) / width).square())
    return kept, torch.lerp(estimate, at_least_fp32(reference), kept)


def without_edit(
    reference: Float[Tensor, "b c h w"], blank: Float[Tensor, "b c h w"], kept: Float[Tensor, "b 1 h w"]
) -> Float[Tensor, "b c h w"]:
    """Eq. 22: y where k >= 1/2, `blank` (a grey image's latents) elsewhere: what stays of the reference, with a hole
    where the edit is. A teacher that can fill in holes is shown it, so that its images agree with what stays.
    """
    return torch.where(kept >= 0.5, reference, blank)


@dataclass(frozen=True, slots=True)
class Weights:
    """λ of each term; the only-judge and only-DMD ablations are weights of 0.

    Raises ValueError unless all are >= 0 and one is > 0.
    """

    judge: float
    dmd: float
    reference: float = 0.0
    preservation: float = 0.0
    redraw: float = 0.0

    def __post_init__(self) -> None:
        values = (self.judge, self.dmd, self.reference, self.preservation, self.redraw)
        if not all(value >= 0 for value in values) or not any(values):
            raise ValueError(f"loss weights must be >= 0 and one of them > 0, not {self}")


@dataclass(frozen=True, slots=True)
class StudentLosses:
    """The unweighted terms per sample and the scalar to differentiate."""

    judge: Float[Tensor, "b"]
    dmd: Float[Tensor, "b"]
    reference: Float[Tensor, "b"]
    preservation: Float[Tensor, "b"]
    redraw: Float[Tensor, "b"]
    total: Float[Tensor, ""]

    def metrics(self) -> dict[str, float]:
        """Batch means of the terms and the total, in one transfer from the device."""
        names = ("judge", "dmd", "reference", "preservation", "redraw", "total")
        means = torch.stack([getattr(self, name).mean() for name in names]).detach().tolist()
        return dict(zip(names, means, strict=True))


def student_losses(
    weights: Weights,
    judge: Float[Tensor, "b"],
    dmd: Float[Tensor, "b"],
    reference: Float[Tensor, "b"],
    preservation: Float[Tensor, "b"],
    redraw: Float[Tensor, "b"],
) -> StudentLosses:
    """Eq. 23: L = mean over the batch of the terms, each times its λ.

    A term whose weight is 0 is left out of the graph, so its models are spared a backward pass and a non-finite value
    in it is reported but does no harm. Pass zeros for a term that was not computed.
    """
    terms = (judge, dmd, reference, preservation, redraw)
    factors = (weights.judge, weights.dmd, weights.reference, weights.preservation, weights.redraw)
    weighted = [factor * term.mean() for factor, term in zip(factors, terms, strict=True) if factor > 0]
    return StudentLosses(*terms, torch.stack(weighted).sum())
