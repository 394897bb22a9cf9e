"""The student's samples: how they are unrolled in training, and which of them the fake score learns from."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.config import EditPhaseConfig
from nopair.method.rollout import rollout, sampler_levels, training_levels
from nopair.training.keeping import CONTEXTS
from nopair.training.parts import Draws, Parts, Piece

Unrolled = tuple[Float[Tensor, "call b c h w"], Float[Tensor, "call b"]]
"""Noises and levels of a rollout."""
Unroll = Callable[[Draws, Float[Tensor, " step"]], Unrolled]
"""Draws them, for a sampler of these levels."""


@dataclass(frozen=True, eq=False, slots=True)
class Made:
    """Samples that the student has made of a piece, without a graph."""

    piece: Piece
    x0: Float[Tensor, "b c h w"]
    context: Float[Tensor, "b c h w"] | None
    """What teacher and fake score see of the piece's references."""


def generate(parts: Parts, piece: Piece, unroll: Unroll) -> Float[Tensor, "b c h w"]:
    """The student's samples of a piece, as latents, with gradient to the student. Draws from the piece's numbers."""
    student = parts.roles.student
    noises, levels = unroll(piece.draws, parts.levels)
    return rollout(lambda x, t: student.velocity(x, t, piece.instruction, piece.reference), noises, levels)


def _one_step(draws: Draws, schedule: Float[Tensor, " step"]) -> Unrolled:
    """From pure noise in one call, the ablation."""
    noises = torch.stack([draws.noise()])
    return noises, sampler_levels(schedule[:1].to(noises.device), noises.shape[1])


def _two_steps(draws: Draws, schedule: Float[Tensor, " step"]) -> Unrolled:
    """The paper's (Eq. 8)."""
    noises = torch.stack([draws.noise(), draws.noise()])
    return noises, training_levels(schedule.to(noises.device), draws.integers(len(schedule)) + 1)


def _all_steps(draws: Draws, schedule: Float[Tensor, " step"]) -> Unrolled:
    """As the sampler does it, the other ablation."""
    noises = torch.stack([draws.noise() for _ in schedule])
    return noises, sampler_levels(schedule.to(noises.device), noises.shape[1])


UNROLLS: Final[dict[str, Unroll]] = {"one-step": _one_step, "two-step": _two_steps, "full": _all_steps}


@final
class Reused:
    """The samples of the student step just done, at every fake-score step with other times and noises.

    They cost nothing, but are of the student before its step, and few.
    """

    def __init__(self, parts: Parts, phase: str, config: EditPhaseConfig) -> None:
        """Needs nothing; made as `Fresh` is."""

    def __call__(self, made: Sequence[Made], index: int, turn: int) -> Iterable[Made]:
        """`made`, the samples of step `index`, whichever `turn` it is."""
        return made


@final
class Fresh:
    """Other records' samples, made anew by the student as it is now for every fake-score step, as the authors do.

    The records are those that follow the phase's own, so that no step meets another's.
    """

    def __init__(self, parts: Parts, phase: str, config: EditPhaseConfig) -> None:
        self._parts, self._phase, self._config = parts, phase, config

    def __call__(self, made: Sequence[Made], index: int, turn: int) -> Iterator[Made]:
        """As many samples as `made` has, piece by piece, for the fake-score step `turn` (from 0) of step `index`."""
        config = self._config
        place = config.steps + index * config.fake_steps + turn
        for indices in self._parts.ranks.pieces(place, config.batch, config.accumulate):
            piece = Piece.of(self._parts, self._phase, indices)
            with torch.no_grad():
                context = CONTEXTS[config.context](self._parts.roles.teacher, config, piece)
                x0 = generate(self._parts, piece, UNROLLS[config.unroll])
            yield Made(piece, x0, context)


FAKE_SAMPLES: Final[dict[str, type[Reused] | type[Fresh]]] = {"reused": Reused, "fresh": Fresh}
