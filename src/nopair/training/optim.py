"""What every optimiser step needs: a schedule, accumulation, a guard against bad gradients, averaged weights."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from nopair.errors import TrainingError
from nopair.training.muon import Muon
from nopair.training.phase import State


def learning_rate(index: int, *, peak: float, warmup_steps: int, total_steps: int, final_fraction: float) -> float:
    """Step size at step `index` (from 0): linear up to `peak`, then a cosine down to `final_fraction * peak`.

    Step `warmup_steps - 1` has the peak, and so has the next, where the cosine starts; the last step,
    `total_steps - 1`, has the final value, and so has any later one.
    """
    if index < warmup_steps:
        return peak * (index + 1) / warmup_steps
    span = max(1, total_steps - 1 - warmup_steps)
    progress = min(1.0, (index - warmup_steps) / span)
    return peak * (final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress)))


def accumulate(losses: Iterable[Tensor], count: int) -> float:
    """Backward of the mean of `count` scalar losses, one at a time; returns the mean.

    Give a generator that makes each loss when it is asked for, then only one graph is alive at a time. With pieces of
    equal size, the gradient is that of the whole batch.
    """
    total, seen = 0.0, 0
    for loss in losses:
        (loss / count).backward()
        total += loss.item()
        seen += 1
    if seen != count:
        raise ValueError(f"expected {count} losses, got {seen}")
    return total / count


@runtime_checkable
class Optimiser(Protocol):
    """What a `GuardedStep` needs of an optimiser; any of torch's fits."""

    param_groups: list[dict[str, Any]]

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


NOT_HIDDEN: Final = ("embed", "lm_head", "final_layer", "x_embedder", "t_embedder", "newline", "adaLN")
"""Parts of names of matrices that map from or to something other than hidden states; Muon is not meant for them."""


def split_hidden(parameters: Mapping[str, nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices between hidden states, for Muon, and all the rest."""
    hidden, rest = [], []
    for name, parameter in parameters.items():
        is_hidden = parameter.ndim == 2 and not any(word in name for word in NOT_HIDDEN)
        (hidden if is_hidden else rest).append(parameter)
    return hidden, rest


@final
class MuonAdamW:
    """Muon (Jordan et al. 2024) for hidden matrices and AdamW for the rest, as one `Optimiser`.

    Muon's updates are scaled to the root mean square of AdamW's, so that one step size fits both.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        hidden, rest = split_hidden(parameters)
        self._parts: dict[str, torch.optim.Optimizer] = {}  # adapters are all matrices, and leave nothing for AdamW
        if hidden:
            self._parts["muon"] = Muon(hidden, lr=lr, weight_decay=weight_decay)
        if rest:
            self._parts["adamw"] = torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay)
        self.param_groups = self._groups()

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts.values() for group in part.param_groups]

    def step(self) -> None:
        for part in self._parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self._parts.values():
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state_dict[name])
        self.param_groups = self._groups()


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What became of one optimiser step. `grad_norm` is the norm before clipping, `lr` the step size."""

    grad_norm: float
    lr: float
    skipped: bool


class GuardedStep:
    """An optimiser that clips gradients and refuses bad ones.

    A step with a loss or a gradient norm that is not finite, or with a norm above `spike`, leaves weights and moments
    as they are. More than `max_skipped` such steps in a row raise TrainingError. `label` says in the message which
    optimiser it is, for example `npedit student`.
    """

    def __init__(self, optimiser: Optimiser, *, label: str, clip: float, spike: float, max_skipped: int) -> None:
        self._optimiser = optimiser
        self._parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        if any(parameter.dtype != torch.float32 for parameter in self._parameters):
            raise ValueError("parameters must be float32: small updates to weights of less precision round away")
        self._label, self._clip, self._spike, self._max_skipped = label, clip, spike, max_skipped
        self._in_a_row = 0
        self.skipped = 0
        """Steps refused so far."""

    def step(self, loss: float, *, lr: float, index: int) -> StepOutcome:
        """Use the gradients that are there, then clear them. `index` is for the message of TrainingError."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        size = norm.item()
        skip = not (math.isfinite(loss) and size <= self._spike)  # a norm of NaN is not below anything
        if not skip:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip, norm)
            for group in self._optimiser.param_groups:
                group["lr"] = lr
            self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._in_a_row = self._in_a_row + 1 if skip else 0
        self.skipped += skip
        if self._in_a_row > self._max_skipped:
            raise TrainingError(self._message(loss, size, index))
        return StepOutcome(size, lr, skip)

    def _message(self, loss: float, size: float, index: int) -> str:
        if not math.isfinite(loss):
            what = f"loss is not finite ({loss})"
        elif not math.isfinite(size):
            what = f"gradient is not finite (norm {size})"
        else:
            what = f"gradient norm {size:.4g} is above the limit of {self._spike:g}"
        times = f", {self._in_a_row} steps in a row" if self._in_a_row > 1 else ""
        advice = "lower lr, or lengthen lr_warmup_steps, and start again"
        if math.isfinite(loss) and math.isfinite(size):
            advice += (
                "; or raise guard.max_grad_norm_spike and go on with --resume latest, if such norms are usual here"
            )
        return f"{self._label}: {what} at step {index}{times}; {advice}"

    def state(self) -> State:
        """Moments and counters."""
        return {"optimiser": self._optimiser.state_dict(), "skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state(self, state: State) -> None:
        """Go on from `state()`."""
        self._optimiser.load_state_dict(state["optimiser"])
        self.skipped, self._in_a_row = state["skipped"], state["in_a_row"]


class Ema:
    """Exponential moving average of named parameters, in float32: average += (1 - decay) * (parameter - average).

    It starts at the parameters' values. `parameters` are looked at again at every update, so pass the live ones.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self._parameters = dict(parameters)
        self._decay = decay
        self._average = {name: value.detach().to(torch.float32, copy=True) for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now; once per optimiser step."""
        for name, average in self._average.items():
            average.lerp_(self._parameters[name].detach().to(torch.float32), 1 - self._decay)

    def weights(self) -> dict[str, Tensor]:
        """The averages by name, float32. They are live: clone what must stay."""
        return dict(self._average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters have the averaged values; after, bit for bit their own again."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._assign(self._average)
        try:
            yield
        finally:
            self._assign(own)

    def state(self) -> State:
        """The averages; the decay is the recipe's."""
        return {"average": self.weights()}

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Go on from `state()`. Raises ValueError if the names differ."""
        if state["average"].keys() != self._average.keys():
            raise ValueError("the state averages other parameters")
        for name, average in self._average.items():
            average.copy_(state["average"][name])

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
