"""Flow-GRPO under the judge, a baseline: samples that the judge prefers to others of the same record are reinforced."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from nopair.config import GrpoConfig
from nopair.judges.questions import VERSION
from nopair.method.grpo import (
    Gaussian,
    Move,
    Trajectory,
    advantages,
    clipped_surrogate,
    has_spread,
    log_prob,
    policy_kl,
    policy_rollout,
    renoise_move,
    sde_move,
)
from nopair.method.rollout import sampler_levels
from nopair.training.asking import count_right, questions_about, require_same_questions, reward, shares_right
from nopair.training.optim import Ema
from nopair.training.parts import Draws, Parts, Trained, assign
from nopair.training.phase import State
from nopair.types import EditBatch, Text, Velocity

MOVES: Final[Mapping[str, Callable[[GrpoConfig], Move]]] = {
    "renoise": lambda config: renoise_move,
    "sde": lambda config: functools.partial(sde_move, noise=config.noise),
}
"""Policies by their name in recipes."""


@dataclass(frozen=True, eq=False)
class _Rollout:
    """Samples of a piece of a batch, those of a record side by side, and which of their moves are trained.

    `starts` are the means of these moves under the student as it was when the phase began, where that counts.
    """

    velocity: Velocity
    levels: Float[Tensor, "step b"]
    trajectory: Trajectory
    trained: Int[Tensor, "b move"]
    rewards: Float[Tensor, " b"]
    counts: dict[str, float]
    starts: tuple[Float[Tensor, "b c h w"], ...] = ()


@final
class GrpoPhase:
    """Flow-GRPO (Eq. 24-31): rollouts without gradient, their verdicts as rewards, then `updates` steps on them.

    Sample k of record r is number r * group + k, and its noises and trained moves depend on that number alone.
    """

    name = "grpo"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config = parts.recipe.grpo
        self._move = MOVES[self._config.policy](self._config)
        self.steps = self._config.steps
        self.is_open = False

    def begin(self) -> None:
        self._student = Trained(self._parts, "student", self.name, self._config, self._config.lr)
        self._ema = Ema(self._student.parameters, self._config.average_decay)
        # The student as it is now: this average is never updated. At weight 0 nothing is held to it.
        self._start = Ema(self._student.parameters, 0.0) if self._config.kl_weight else None
        self.is_open = True

    def end(self) -> None:
        if self.is_open:
            del self._student, self._ema, self._start
            self.is_open = False

    def step(self, index: int) -> dict[str, float]:
        config, ranks = self._config, self._parts.ranks
        pieces = ranks.pieces(index, config.batch, config.accumulate)
        rollouts = self._with_starts([self._rollout(indices) for indices in pieces])
        metrics = self._summary(rollouts)
        own = torch.stack([one.rewards for one in rollouts]).unflatten(1, (-1, config.group))
        better = advantages(own.flatten(0, 1), self._spread(own.flatten(0, 1)), config.advantage_limit)
        for _ in range(config.updates):
            metrics |= self._update(rollouts, better.view(len(rollouts), -1), index)
        if index + 1 == self.steps:
            assign(self._student.parameters, self._ema.weights())
        return metrics

    @torch.no_grad()
    def _rollout(self, indices: Sequence[int]) -> _Rollout:
        config, parts = self._config, self._parts
        student, group = parts.roles.student, config.group
        batch = parts.source.batch(indices)
        reference = student.encode_image(batch.reference).repeat_interleave(group, dim=0)
        text = _repeated(student.encode_text(batch.instructions), group)
        batch = _grouped(batch, group)
        draws = Draws(parts.recipe.seed, self.name, [i * group + k for i in indices for k in range(group)], reference)
        noises = torch.stack([draws.noise() for _ in parts.levels])
        levels = sampler_levels(parts.levels.to(reference.device), len(batch))

        def velocity(x: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            return student.velocity(x, t, text, reference)

        trajectory = policy_rollout(self._move, velocity, noises, levels)
        questions = questions_about(batch, parts.recipe.npedit.questions)
        rewards, odds = reward(parts.judge, batch.reference, student.decode_latents(trajectory.x0), questions)
        trained = draws.subsets(len(levels) - 1, config.moves)
        return _Rollout(velocity, levels, trajectory, trained, rewards, count_right("judge", odds, questions))

    @torch.no_grad()
    def _with_starts(self, rollouts: Sequence[_Rollout]) -> list[_Rollout]:
        """The rollouts with `starts`, for which the student is for a moment as it was when the phase began."""
        if self._start is None:
            return list(rollouts)
        with self._start.applied():
            return [
                dataclasses.replace(one, starts=tuple(self._moved(one, k)[0] for k in range(self._config.moves)))
                for one in rollouts
            ]

    def _moved(self, rollout: _Rollout, k: int) -> Gaussian:
        """What the student would do now in the k-th trained move of each sample."""
        which, rows = rollout.trained[:, k], torch.arange(len(rollout.trained), device=rollout.trained.device)
        x, t = rollout.trajectory.states[which, rows], rollout.levels[which, rows]
        return self._move(x, rollout.velocity(x, t), t, rollout.levels[which + 1, rows])

    def _update(self, rollouts: Sequence[_Rollout], better: Float[Tensor, "piece b"], index: int) -> dict[str, float]:
        """One optimiser step on all trained moves, one graph at a time."""
        config, parts = self._config, self._parts
        share = 1 / (len(rollouts) * config.moves)
        sums: dict[str, float] = {}
        for rollout, advantage in zip(rollouts, better, strict=True):
            for k in range(config.moves):
                loss, metrics = self._loss(rollout, advantage, k)
                parts.roles.backward(loss * share, "student")
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0.0) + value * share / parts.ranks.world
        means = parts.ranks.sum(sums)
        means |= self._student.step(means["loss"], index)
        self._ema.update()
        return means

    def _loss(
        self, rollout: _Rollout, advantage: Float[Tensor, " b"], k: int
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        config = self._config
        which, rows = rollout.trained[:, k], torch.arange(len(advantage), device=advantage.device)
        mean, deviation = self._moved(rollout, k)
        new = log_prob(rollout.trajectory.states[which + 1, rows], mean, deviation)
        old = rollout.trajectory.log_probs[which, rows]
        loss = clipped_surrogate(new, old, advantage, config.clip_range).mean()
        ratio = (new - old).detach().exp()
        metrics = {"ratio": ratio.mean(), "clipped": ((ratio - 1).abs() > config.clip_range).float().mean()}
        if rollout.starts:
            kl = policy_kl(mean, rollout.starts[k], deviation).mean()
            loss, metrics["kl"] = loss + config.kl_weight * kl, kl.detach()
        metrics["loss"] = loss.detach()
        return loss, dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))

    def _summary(self, rollouts: Sequence[_Rollout]) -> dict[str, float]:
        """Rewards and verdicts of all ranks."""
        config, ranks = self._config, self._parts.ranks
        sums: dict[str, float] = {}
        for rollout in rollouts:
            groups = rollout.rewards.view(-1, config.group)
            measured = {
                "reward": groups.mean(),
                "reward_std": groups.std(dim=1, correction=0).mean(),
                "no_spread": 1 - has_spread(groups).float().mean(),
            }
            means = {name: value.item() / (len(rollouts) * ranks.world) for name, value in measured.items()}
            for name, value in (means | rollout.counts).items():
                sums[name] = sums.get(name, 0.0) + value
        return shares_right(ranks.sum(sums))

    def _spread(self, rewards: Float[Tensor, "g k"]) -> Float[Tensor, "#g 1"]:
        """Of each group, or of the rewards of all ranks."""
        if self._config.std == "group":
            return rewards.std(dim=1, keepdim=True, correction=0)
        count = rewards.numel() * self._parts.ranks.world
        mean = self._parts.ranks.sum({"": float(rewards.double().sum())})[""] / count
        squares = self._parts.ranks.sum({"": float((rewards.double() - mean).square().sum())})[""] / count
        return rewards.new_full((1, 1), squares**0.5)

    def state(self) -> State:
        start = None if self._start is None else self._start.state()
        models = {"student": self._student.state(), "ema": self._ema.state(), "start": start}
        return models | {"questions": VERSION}

    def load_state(self, state: State) -> None:
        require_same_questions(state)
        self.begin()
        self._student.load_state(state["student"])
        self._ema.load_state(state["ema"])
        if self._start is not None:
            self._start.load_state(state["start"])

    def samples(self, index: int) -> Image | None:
        with self._ema.applied():
            return self._parts.sampler.grid()

    def weights(self) -> dict[str, Tensor]:
        """The averaged student."""
        return self._ema.weights()


def _grouped(batch: EditBatch, group: int) -> EditBatch:
    """Every record `group` times, side by side."""

    def words(column: Sequence[str]) -> tuple[str, ...]:
        return tuple(word for word in column for _ in range(group))

    return EditBatch(
        reference=batch.reference.repeat_interleave(group, dim=0),
        instructions=words(batch.instructions),
        captions=words(batch.captions),
        edited_captions=words(batch.edited_captions),
        categories=words(batch.categories),
        subjects=words(batch.subjects),
    )


def _repeated(text: Text, group: int) -> Text:
    """Every prompt `group` times, side by side."""
    return Text(
        text.features.repeat_interleave(group, dim=0),
        tuple(length for length in text.lengths for _ in range(group)),
        None if text.pooled is None else text.pooled.repeat_interleave(group, dim=0),
    )
