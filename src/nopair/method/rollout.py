"""The few-step generator: Eq. 7-9 of docs/method.md.

`rollout` is the only place where samples are made. What is trained (two calls, Eq. 8) and what is evaluated,
demonstrated and served (all N calls, Eq. 9) are this one function at other levels, so a student never meets a kind of
noise at test time that it was not trained on. Noise is an argument: it is the caller who makes sample k independent of
its batch.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nopair.method.flow import interpolate, to_x0
from nopair.types import Velocity


def rollout(
    velocity: Velocity, noises: Float[Tensor, "step b c h w"], levels: Float[Tensor, "step b"]
) -> Float[Tensor, "b c h w"]:
    """Eq. 7: from i = 1 on, x = (1 - t_i) x̂0 + t_i ε_i, then x̂0 = x - t_i v(x, t_i); returns the last x̂0.

    `levels[0]` must be 1, so that the first x is `noises[0]` and nothing else; every later x̂0 is fully re-noised with
    fresh noise. Any schedule will do, a different one for each sample too. Gradient flows through all calls.
    """
    x0 = torch.zeros_like(noises[0])
    for noise, t in zip(noises, levels, strict=True):
        x = interpolate(x0, noise, t)
        x0 = to_x0(x, velocity(x, t), t)
    return x0


def training_levels(levels: Float[Tensor, "step"], stop: Int[Tensor, "b"]) -> Float[Tensor, "2 b"]:
    """Eq. 8, the unrolled generator: levels (1, t_k) with k = `stop` in 1..N, drawn by the caller for each sample.

    k = 1 is a one-step generation: t_1 = 1 makes the second call start from fresh pure noise, and the first call gets a
    gradient of exactly zero. Raises IndexError (on CUDA: a device assertion) for a stop outside 1..N.
    """
    chosen = levels.index_select(0, stop - 1)
    return torch.stack([torch.ones_like(chosen), chosen])


def sampler_levels(levels: Float[Tensor, "step"], batch: int) -> Float[Tensor, "step b"]:
    """Eq. 9, the sampler: all N levels for each of `batch` samples. As training levels they are the full-unroll
    ablation, and `levels(1, shift)` is the one-step ablation.
    """
    return levels[:, None].expand(-1, batch)
