"""Supervised fine-tuning on before/after pairs, a baseline: all that knows a right answer in training is in here."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from nopair.method.matching import denoising_loss, query_times
from nopair.training.optim import Ema, accumulate
from nopair.training.parts import Draws, Parts, Trained, assign
from nopair.training.phase import State
from nopair.world.pairs import PairSource


@final
class SftPhase:
    """Flow matching (Eq. 14) onto the right answer, given the reference as clean tokens and the instruction as text.

    It teaches the velocity field of the answers at all times, which is a model for many small steps. The few-step
    sampler then works with estimates that are means over all answers still possible; see docs/baselines.md.
    """

    name = "sft"

    def __init__(self, parts: Parts, pairs: PairSource) -> None:
        self._parts = parts
        self._pairs = pairs
        self._config = parts.recipe.sft
        self.steps = self._config.steps
        self.is_open = False

    def begin(self) -> None:
        self._student = Trained(self._parts, "student", self.name, self._config, self._config.lr)
        self._ema = Ema(self._student.parameters, self._config.average_decay)
        self.is_open = True

    def end(self) -> None:
        if self.is_open:
            del self._student, self._ema
            self.is_open = False

    def step(self, index: int) -> dict[str, float]:
        config, ranks = self._config, self._parts.ranks
        losses = (self._loss(piece) for piece in ranks.pieces(index, config.batch, config.accumulate))
        loss = ranks.mean(accumulate(losses, config.accumulate))
        metrics = self._student.step(loss, index)
        self._ema.update()
        if index + 1 == self.steps:
            assign(self._student.parameters, self._ema.weights())
        return {"loss": loss} | metrics

    def _loss(self, indices: Sequence[int]) -> Float[Tensor, ""]:
        roles = self._parts.roles
        student = roles.student
        batch = self._pairs.batch(indices)
        with torch.no_grad():
            reference = student.encode_image(batch.reference)
            target = student.encode_image(batch.target)
        text = student.encode_text(batch.instructions)
        draws = Draws(self._parts.recipe.seed, self.name, indices, reference)
        t = query_times(draws.uniform(), 0.0, 1.0, self._parts.shift)
        roles.activate("student")
        return denoising_loss(
            target, lambda x, time: student.velocity(x, time, text, reference), t, draws.noise()
        ).mean()

    def state(self) -> State:
        return {"student": self._student.state(), "ema": self._ema.state()}

    def load_state(self, state: State) -> None:
        self.begin()
        self._student.load_state(state["student"])
        self._ema.load_state(state["ema"])

    def samples(self, index: int) -> Image | None:
        with self._ema.applied():
            return self._parts.sampler.grid()

    def weights(self) -> dict[str, Tensor]:
        """The averaged student."""
        return self._ema.weights()
