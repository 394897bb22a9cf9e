"""A run's parts as they are, with a clock told whose turn it is, in the backward pass too."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from nopair.backbones.base import Backbone
from nopair.backbones.roles import Role, Roles
from nopair.judges.base import Judge
from nopair.types import Question, Text

REST, BACKWARD = "rest", ", backward"


@dataclass(eq=False)
class Clock:
    """Gives time to whoever's turn it is, while `running`."""

    device: torch.device
    running: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _turn: str = REST
    _since: float = 0.0

    def now(self) -> float:
        """Seconds, once the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def start(self) -> None:
        self.running, self._turn, self._since = True, REST, self.now()

    def turn(self, part: str) -> str:
        """From here on it is the turn of `part`. Returns whose it was."""
        if self.running:
            now = self.now()
            self.seconds[self._turn] += now - self._since
            self._since = now
        former, self._turn = self._turn, part
        return former

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        former = self.turn(name)
        try:
            yield
        finally:
            self.turn(former)


class _Mark(torch.autograd.Function):
    """Nothing, but the backward pass tells the clock that it came by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clock: Clock, part: str) -> Tensor:
        ctx.clock, ctx.part = clock, part
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        ctx.clock.turn(ctx.part)
        return gradients[0], None, None


def entered(x: Tensor, clock: Clock) -> Tensor:
    """What goes into a part: when the backward pass comes out here, the part is over."""
    made: Any = _Mark.apply(x, clock, f"other{BACKWARD}")
    return made


def left(x: Tensor, clock: Clock, part: str) -> Tensor:
    """What comes out of a part: the backward pass goes in here."""
    made: Any = _Mark.apply(x, clock, part + BACKWARD)
    return made


@contextmanager
def told(clock: Clock) -> Iterator[None]:
    """Inside, the clock knows of optimisers."""
    hooks = (
        register_optimizer_step_pre_hook(lambda *_: void(clock.turn("optimiser"))),
        register_optimizer_step_post_hook(lambda *_: void(clock.turn(REST))),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def void(_: object) -> None:
    """A hook's answer would be taken for other arguments."""


@dataclass(frozen=True, eq=False)
class TimedBackbone:
    """A `Backbone`. With `known`, texts and references are encoded once and kept, as a recipe's cache keeps them."""

    inner: Backbone
    name: str
    clock: Clock
    known: dict[Any, Any] | None

    @property
    def transformer(self) -> nn.Module:
        return self.inner.transformer

    @property
    def adapter_ranks(self) -> Mapping[str, int]:
        return self.inner.adapter_ranks

    def shift_for(self, height: int, width: int, steps: int) -> float:
        return self.inner.shift_for(height, width, steps)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.inner.latent_shape(height, width)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        with self.clock.part("text encoder"):
            return self._kept(tuple(prompts), lambda: self.inner.encode_text(prompts))

    def encode_image(self, pixels: Tensor) -> Tensor:
        with self.clock.part("encoder"):  # photos are all alike
            return self._kept(pixels.shape, lambda: self.inner.encode_image(pixels))

    def _kept(self, key: Any, make: Any) -> Any:
        if self.known is None:
            return make()
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def decode_latents(self, latents: Tensor) -> Tensor:
        with self.clock.part("decoder"):
            return left(self.inner.decode_latents(entered(latents, self.clock)), self.clock, "decoder")

    def velocity(self, noisy: Tensor, t: Tensor, text: Text, reference: Tensor | None = None) -> Tensor:
        with self.clock.part(self.name):
            return left(self.inner.velocity(entered(noisy, self.clock), t, text, reference), self.clock, self.name)

    def with_transformer(self, transformer: nn.Module) -> Backbone:
        return self.inner.with_transformer(transformer)


@dataclass(frozen=True, eq=False)
class TimedRoles:
    """`Roles`."""

    inner: Roles
    clock: Clock
    known: dict[Any, Any] | None

    @property
    def student(self) -> Backbone:
        return TimedBackbone(self.inner.student, "student", self.clock, self.known)

    @property
    def teacher(self) -> Backbone:
        return TimedBackbone(self.inner.teacher, "teacher", self.clock, self.known)

    @property
    def fake(self) -> Backbone:
        return TimedBackbone(self.inner.fake, "fake score", self.clock, self.known)

    def activate(self, role: Role) -> None:
        self.inner.activate(role)

    def backward(self, loss: Tensor, role: Role) -> None:
        with self.clock.part(f"other{BACKWARD}"):
            self.inner.backward(loss, role)

    def trainable(self, role: Role) -> dict[str, nn.Parameter]:
        return self.inner.trainable(role)

    def export(self, role: Role, weights: Mapping[str, Tensor]) -> nn.Module:
        return self.inner.export(role, weights)


@dataclass(frozen=True, eq=False)
class TimedJudge:
    """A `Judge`."""

    inner: Judge
    clock: Clock

    def yes_minus_no(self, reference: Tensor, edited: Tensor, questions: Sequence[Sequence[Question]]) -> Tensor:
        with self.clock.part("judge"):
            odds = self.inner.yes_minus_no(reference, entered(edited, self.clock), questions)
            return left(odds, self.clock, "judge")
