"""Flow-GRPO (Liu et al., arXiv 2505.05470), a baseline: Eq. 24-31 of docs/method.md.

A sampler that adds noise between its calls is a policy: every move is a Gaussian whose mean the student decides, so
what it did has a probability, and a judge's verdict can reward it without a gradient through judge or decoder. Which
Gaussian is an argument. The last prediction of a rollout adds no noise and has no probability; it is never trained.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nopair.method.flow import at_least_fp32, over_latent, to_x0
from nopair.method.verdict import mean_over_asked, right_minus_wrong
from nopair.types import Velocity

STEADY = 1e-4
"""Added to a spread of rewards before it divides."""

Gaussian = tuple[Float[Tensor, "b c h w"], Float[Tensor, "b"]]
"""Mean and standard deviation, one for a whole latent, of the state that a move leads to."""

Move = Callable[[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"], Float[Tensor, "b"], Float[Tensor, "b"]], Gaussian]
"""(x_t, v, t, t') -> the Gaussian that the state at the next level t' < t is drawn from."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What a policy did: the states at all levels, the log-probabilities of the moves between them, and the result."""

    states: Float[Tensor, "step b c h w"]
    log_probs: Float[Tensor, "move b"]
    x0: Float[Tensor, "b c h w"]


def judge_reward(
    yes_minus_no: Float[Tensor, "b q"], wants_yes: Bool[Tensor, "b q"], asked: Bool[Tensor, "b q"]
) -> Float[Tensor, "b"]:
    """Eq. 24: mean over the asked questions of σ(ℓ_right - ℓ_wrong), in [0, 1]; 0 where nothing was asked."""
    log_odds = torch.where(asked, right_minus_wrong(yes_minus_no, wants_yes), 0)
    return mean_over_asked(log_odds.sigmoid(), asked)


def renoise_move(
    x: Float[Tensor, "b c h w"], v: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], t_next: Float[Tensor, "b"]
) -> Gaussian:
    """Eq. 25: mean (1 - t') x̂0 and deviation t'. The sampler of Eq. 9 itself, read as a policy."""
    return (1 - over_latent(t_next)) * to_x0(x, v, t), t_next


def sde_move(
    x: Float[Tensor, "b c h w"],
    v: Float[Tensor, "b c h w"],
    t: Float[Tensor, "b"],
    t_next: Float[Tensor, "b"],
    noise: float,
) -> Gaussian:
    """Eq. 26: one Euler-Maruyama step of the SDE with the flow's marginals and σ_t = a sqrt(t / (1 - t)), a = `noise`.

    At t = 1, where σ is infinite, t' stands for t in 1 - t, as in Flow-GRPO.
    """
    variance = noise**2 * t / (1 - torch.where(t < 1, t, t_next))
    dt = t_next - t
    mean = over_latent(1 + variance * dt / (2 * t)) * x + over_latent((1 + variance * (1 - t) / (2 * t)) * dt) * v
    return mean, (-variance * dt).sqrt()


def log_prob(
    x: Float[Tensor, "b c h w"], mean: Float[Tensor, "b c h w"], deviation: Float[Tensor, "b"]
) -> Float[Tensor, "b"]:
    """Eq. 27: log N(x; mean, deviation²), *averaged* over the latent, in fp32: its scale does not grow with images."""
    deviation = at_least_fp32(deviation)
    squares = (at_least_fp32(x) - mean).square().mean(dim=(1, 2, 3))
    return -squares / (2 * deviation.square()) - deviation.log() - 0.5 * math.log(2 * math.pi)


def policy_rollout(
    move: Move, velocity: Velocity, noises: Float[Tensor, "step b c h w"], levels: Float[Tensor, "step b"]
) -> Trajectory:
    """Eq. 28: x = ε_1; x ~ `move` for all levels but the last; x̂0 = x - t v at the last. With `renoise_move`, x̂0 is
    that of `rollout` for the same noises and levels (Eq. 7, 9), bit for bit.
    """
    states, log_probs = [noises[0]], list[Tensor]()
    for noise, t, t_next in zip(noises[1:], levels, levels[1:], strict=False):
        mean, deviation = move(states[-1], velocity(states[-1], t), t, t_next)
        states.append(mean + over_latent(deviation) * noise)
        log_probs.append(log_prob(states[-1], mean, deviation))
    x0 = to_x0(states[-1], velocity(states[-1], levels[-1]), levels[-1])
    moves = torch.stack(log_probs) if log_probs else levels[:0]
    return Trajectory(torch.stack([state.to(x0) for state in states]), moves, x0)


def advantages(rewards: Float[Tensor, "g k"], spread: Float[Tensor, "#g 1"], limit: float) -> Float[Tensor, "g k"]:
    """Eq. 29: (reward - its group's mean) / (spread + 1e-4), clamped to ± `limit`. A row is a group: one record, k
    rollouts. `spread` is the rewards' standard deviation, of each group or of all. Exactly 0 where a group's rewards
    are equal.
    """
    centred = (rewards - rewards.mean(dim=1, keepdim=True)) / (spread + STEADY)
    return torch.where(has_spread(rewards)[:, None], centred.clamp(-limit, limit), 0)


def has_spread(rewards: Float[Tensor, "g k"]) -> Bool[Tensor, "g"]:
    """Eq. 29: whether a group's rewards differ at all. If not, there is nothing to learn from it."""
    return rewards.amax(dim=1) > rewards.amin(dim=1)


def clipped_surrogate(
    new: Float[Tensor, "b"], old: Float[Tensor, "b"], advantage: Float[Tensor, "b"], clip: float
) -> Float[Tensor, "b"]:
    """Eq. 30: -min(r A, clamp(r, 1 ± `clip`) A) with r = exp(new - old), both as Eq. 27 gives them.

    Where new = old, r = 1 and the gradient is that of -A log p. Averaged log-probabilities keep r near 1, so `clip` is
    small.
    """
    ratio = (new - old.detach()).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def policy_kl(
    mean: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"], deviation: Float[Tensor, "b"]
) -> Float[Tensor, "b"]:
    """Eq. 31: KL(N(mean, σ²) ‖ N(reference, σ²)) = (mean - reference)² / (2 σ²), averaged over the latent."""
    squares = (at_least_fp32(mean) - reference.detach()).square().mean(dim=(1, 2, 3))
    return squares / (2 * at_least_fp32(deviation).square())
