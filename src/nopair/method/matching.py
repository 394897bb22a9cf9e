"""Flow matching and distribution matching (DMD): Eq. 14-20 of docs/method.md.

The student's samples are pulled towards the images a frozen text-to-image teacher makes for the edited caption (`real`)
and away from what the student makes now (`fake`, a score model trained online on the student's own samples). Neither
sees the reference image; as an option, both see what is to stay of it (Eq. 22), bound into the two fields. As another
option, the samples are pulled towards what the teacher makes of them (Eq. 32).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.method.flow import at_least_fp32, interpolate, over_latent, shift_time, to_x0, velocity_target
from nopair.types import Velocity

FLOOR = 1e-4
"""Least value of a normaliser: the latents' scale is about 1, and a gap must stay finite when the teacher agrees."""

Normaliser = Callable[[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]], Float[Tensor, "b #c #h #w"]]
"""(x, real_x0) -> w, how far the student's sample is from the teacher's, to divide the gap by."""


def flow_matching_loss(
    v: Float[Tensor, "b c h w"], x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b"]:
    """Eq. 14: mean over a sample's latent of (v - (ε - x0))²."""
    return (at_least_fp32(v) - velocity_target(at_least_fp32(x0), noise)).square().mean(dim=(1, 2, 3))


def denoising_loss(
    x0: Float[Tensor, "b c h w"], velocity: Velocity, t: Float[Tensor, "b"], noise: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b"]:
    """Eq. 14 for a velocity field at x_t: trains the fake score (x0: the student's samples) and warms the student up
    (x0: the reference's own latents, which the student also sees clean). `x0` gets no gradient.
    """
    x0 = x0.detach()
    return flow_matching_loss(velocity(interpolate(x0, noise, t), t), x0, noise)


def query_times(
    u: Float[Tensor, "b"], low: float, high: float | Float[Tensor, "b"], shift: float
) -> Float[Tensor, "b"]:
    """Eq. 15: t = low + (high - low) shift(u), for u uniform in [0, 1). Used for the score query and for training the
    fake score alike: a score model is only asked where it has been trained. `high` may differ by sample.
    """
    return low + (high - low) * shift_time(u, shift)


def per_sample(x: Float[Tensor, "b c h w"], real_x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 1 1"]:
    """Eq. 17: w = mean over all of a sample's latent of |x - x̂0_real|. One number: the gap keeps its direction."""
    return (at_least_fp32(x) - real_x0).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=FLOOR)


def per_pixel(x: Float[Tensor, "b c h w"], real_x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Eq. 17, an option: w = mean over channels only. Places where the teacher nearly agrees are pushed hard too."""
    return (at_least_fp32(x) - real_x0).abs().mean(dim=1, keepdim=True).clamp(min=FLOOR)


def score_gap(
    x: Float[Tensor, "b c h w"],
    real_x0: Float[Tensor, "b c h w"],
    fake_x0: Float[Tensor, "b c h w"],
    normaliser: Normaliser,
) -> Float[Tensor, "b c h w"]:
    """Eq. 16: g = (x̂0_fake - x̂0_real) / w, along the gradient of the reverse KL from student to teacher: x - g is
    nearer to the teacher. Detached: the gap is a direction, not a function to differentiate.
    """
    x, real_x0, fake_x0 = x.detach(), real_x0.detach(), fake_x0.detach()
    return (at_least_fp32(fake_x0) - real_x0) / normaliser(x, real_x0)


def surrogate_loss(x: Float[Tensor, "b c h w"], gap: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Eq. 18: ½ mean (x - sg(x - g))² over a sample's latent. Its value says how large g is; its gradient to x is
    exactly g / (c h w), so the scale does not depend on the size of the image.
    """
    x = at_least_fp32(x)
    return 0.5 * (x - (x - gap).detach()).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def gap_at(
    x0: Float[Tensor, "b c h w"],
    real: Velocity,
    fake: Velocity,
    t: Float[Tensor, "b"],
    noise: Float[Tensor, "b c h w"],
    normaliser: Normaliser,
) -> Float[Tensor, "b c h w"]:
    """Eq. 16 with both fields asked about the student's sample re-noised to t. No gradient reaches either of them."""
    x_t = interpolate(x0, noise, t)
    return score_gap(x0, to_x0(x_t, real(x_t, t), t), to_x0(x_t, fake(x_t, t), t), normaliser)


def dmd_loss(
    x0: Float[Tensor, "b c h w"],
    real: Velocity,
    fake: Velocity,
    t: Float[Tensor, "b"],
    noise: Float[Tensor, "b c h w"],
    normaliser: Normaliser,
) -> Float[Tensor, "b"]:
    """Eq. 19: the surrogate of the gap at one t. `real` is the teacher with guidance (Eq. 4) under the edited caption,
    `fake` the fake score under the same caption, without guidance; t as in Eq. 15. Gradient reaches `x0` alone.
    """
    return surrogate_loss(x0, gap_at(x0, real, fake, t, noise, normaliser))


def decoupled_dmd_loss(
    x0: Float[Tensor, "b c h w"],
    cond: Velocity,
    uncond: Velocity,
    fake: Velocity,
    scale: Float[Tensor, "b"],
    t: tuple[Float[Tensor, "b"], Float[Tensor, "b"]],
    noise: Float[Tensor, "b c h w"],
    normaliser: Normaliser,
) -> Float[Tensor, "b"]:
    """Eq. 20, an option: decoupled DMD (arXiv 2511.22677), g = gap(cond, fake) at t[0] + (s - 1) gap(cond, uncond) at
    t[1].

    Under one w, the gap to a guided teacher is this sum with t[0] = t[1]. Apart, the matching term can cover all times
    and the guidance term only those below the level at which the student stopped: `query_times(u, low, levels[-1],
    shift)`.
    """
    matching = gap_at(x0, cond, fake, t[0], noise, normaliser)
    guidance = gap_at(x0, cond, uncond, t[1], noise, normaliser)
    return surrogate_loss(x0, matching + over_latent(scale - 1) * guidance)


@torch.no_grad()
def redrawn(
    x0: Float[Tensor, "b c h w"], real: Velocity, t: Float[Tensor, "b"], noise: Float[Tensor, "b c h w"], steps: int
) -> Float[Tensor, "b c h w"]:
    """Eq. 32, x̃: the samples noised to t, and taken from there to 0 by `real` in `steps` even steps of Euler's method:
    SDEdit (Meng et al., arXiv 2108.01073). What t leaves of a sample stays; what is finer is drawn anew.
    """
    x, stride = interpolate(x0, noise, t), t / steps
    for left in range(steps, 0, -1):
        x = x - over_latent(stride) * real(x, stride * left)
    return x


def redraw_loss(
    x0: Float[Tensor, "b c h w"],
    real: Velocity,
    t: Float[Tensor, "b"],
    noise: Float[Tensor, "b c h w"],
    steps: int,
    normaliser: Normaliser,
) -> Float[Tensor, "b"]:
    """Eq. 32, an option: the surrogate of (x0 - x̃) / w, which is Eq. 16 with x̃ as the real estimate and the sample
    itself in place of the fake one. Gradient reaches `x0` alone.
    """
    return surrogate_loss(x0, score_gap(x0, redrawn(x0, real, t, noise, steps), x0, normaliser))
