"""Time, noise, velocity and the noise schedule: Eq. 1-6 of docs/method.md.

t = 0 is clean and t = 1 is noise. Times are fp32; mixing them with latents of a lower precision gives fp32, so a state
that is noised and denoised several times does not gather rounding errors. The adapters of the bases convert to this
convention.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def at_least_fp32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` in fp32, or as it is if wider. Every loss starts with it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def over_latent(t: Float[Tensor, "b"]) -> Float[Tensor, "b 1 1 1"]:
    """One number per sample, shaped to broadcast over latents."""
    return t[:, None, None, None]


def interpolate(
    x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], t: Float[Tensor, "b"]
) -> Float[Tensor, "b c h w"]:
    """Eq. 1: x_t = (1 - t) x0 + t ε. At t = 1 the result is exactly the noise and no gradient reaches `x0`."""
    return (1 - over_latent(t)) * x0 + over_latent(t) * noise


def velocity_target(x0: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Eq. 2: v = ε - x0, what a velocity field is trained to predict at every t."""
    return noise - x0


def to_x0(
    x_t: Float[Tensor, "b c h w"], v: Float[Tensor, "b c h w"], t: Float[Tensor, "b"]
) -> Float[Tensor, "b c h w"]:
    """Eq. 3: x0 = x_t - t v. Inverts Eq. 1 when v is the velocity of Eq. 2."""
    return x_t - over_latent(t) * v


def guided(
    cond_v: Float[Tensor, "b c h w"], uncond_v: Float[Tensor, "b c h w"], scale: Float[Tensor, "b"]
) -> Float[Tensor, "b c h w"]:
    """Eq. 4: v = v_u + s (v_c - v_u), classifier-free guidance. Scale 1 is conditional, 0 is unconditional; one scale
    per sample, because the right one differs by category of edit.
    """
    return uncond_v + over_latent(scale) * (cond_v - uncond_v)


def shift_time(t: Float[Tensor, "*shape"], shift: float) -> Float[Tensor, "*shape"]:
    """Eq. 5: s t / (s t + 1 - t), for t in [0, 1] and s > 0. s > 1 moves times towards noise, as bases do for large
    images. In this form, equal to s t / (1 + (s - 1) t), 0 and 1 stay exactly where they are for any s.
    """
    return shift * t / (shift * t + (1 - t))


def levels(steps: int, shift: float) -> Float[Tensor, "step"]:
    """Eq. 6: the schedule 1 = t_1 > ... > t_N > 0: N uniform levels (1, (N-1)/N, ..., 1/N) pushed through the base's
    time shift. For N = 4 and a shift of 6: 1, .9474, .8571, .6667. In fp32 on the CPU.

    Raises ValueError if `steps` < 1 or `shift` <= 0.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"a schedule needs steps >= 1 and shift > 0, not steps={steps}, shift={shift}")
    return shift_time(torch.arange(steps, 0, -1, dtype=torch.float32) / steps, shift)
