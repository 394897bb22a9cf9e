"""What the loop knows of training: a phase, and where its randomness comes from."""

import hashlib
from typing import Any, Protocol, runtime_checkable

import torch
from PIL.Image import Image
from torch import Tensor

State = dict[str, Any]
"""Nested dicts, lists and tuples of tensors, numbers, text, booleans and None: what a weights-only load reads."""


@runtime_checkable
class Phase(Protocol):
    """One stretch of training, in which every step means the same.

    The loop calls `begin` once, then `step(0)` ... `step(steps - 1)`, and `end` before the next phase begins. A resumed
    run calls `load_state` in place of `begin` and goes on with the step after the one that was saved; a phase that was
    saved complete is loaded too, and then the next one begins. So phases may share models: a phase takes over in
    `begin` what the one before left, and its state holds all that it and later phases need of it.

    A step is a function of the state, the index and the recipe: everything random comes from (seed, phase name, index),
    as `generator` gives it. The loop seeds torch's global generators from the same, for layers that draw from them.
    """

    @property
    def name(self) -> str:
        """What metrics, samples and checkpoints call the phase; unique in a run."""
        ...

    @property
    def steps(self) -> int:
        """How many steps it takes; 0 leaves it out."""
        ...

    def begin(self) -> None:
        """Get ready for step 0: make optimisers and averages from the models as the previous phase left them."""
        ...

    def end(self) -> None:
        """Let go of optimisers and averages, if there are any: they may be larger than the models, which stay."""
        ...

    def step(self, index: int) -> dict[str, float]:
        """Do step `index` (from 0), optimiser included. Returns metrics by name. Raises TrainingError."""
        ...

    def state(self) -> State:
        """All that a later step depends on. May alias live tensors: the loop writes it out before the next step."""
        ...

    def load_state(self, state: State) -> None:
        """Be as when `state` was taken. Called without `begin`. The tensors are the phase's to keep, on the CPU."""
        ...

    def samples(self, index: int) -> Image | None:
        """A picture of what the model does after step `index`, or None. Must not change the state."""
        ...


@runtime_checkable
class StudentPhase(Phase, Protocol):
    """A phase that trains the student of an editor. Only while it is open can it step, or tell its state or weights."""

    @property
    def is_open(self) -> bool:
        """Whether its optimisers and averages are there: from `begin` or `load_state` to `end`."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The averaged student: what is shipped, if this is the last phase. They are live."""
        ...


def seed_of(*parts: int | str) -> int:
    """A seed in [0, 2^63) from labelled parts, such as (recipe seed, phase name, index); the same on every machine."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by `seed_of(*parts)`."""
    return torch.Generator(device).manual_seed(seed_of(*parts))
