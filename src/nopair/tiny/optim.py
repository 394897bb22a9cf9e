"""What pretraining updates with: Muon for hidden matrices and AdamW for the rest, and averaged weights."""

import math
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from nopair.errors import TrainingError
from nopair.training.muon import Muon
from nopair.training.optim import split_hidden

CLIP: Final = 1.0


class PretrainingOptimizer:
    """Backward, clipping and both updates in one call; each has a step size of its own."""

    def __init__(self, model: nn.Module, lr: float, other_lr: float) -> None:
        hidden, other = split_hidden(dict(model.named_parameters()))
        self.parameters = hidden + other
        self.lrs = (lr, other_lr)
        self.optimizers = (
            Muon(hidden, lr=lr, weight_decay=0.02),
            torch.optim.AdamW(other, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0),
        )

    def step(self, loss: Tensor, factor: float) -> float:
        """Update with the learning rates times `factor`. Returns the gradient norm before clipping.

        Raises:
            TrainingError: the gradient is not finite; no weight has changed.
        """
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, CLIP)
        if not norm.isfinite():
            raise TrainingError(
                f"pretraining: the gradient norm is {norm.item()}; resume from a checkpoint with a lower step size"
            )
        for optimizer, lr in zip(self.optimizers, self.lrs, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def state_dict(self) -> dict[str, Any]:
        """State of both optimizers."""
        return {"muon": self.optimizers[0].state_dict(), "adamw": self.optimizers[1].state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.optimizers[0].load_state_dict(state["muon"])
        self.optimizers[1].load_state_dict(state["adamw"])


@final
class PretrainingAverage:
    """Exponential moving average of all that a model's state holds, where the model is and in its precision.

    The decay rises to `decay` over the first steps, so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay = model, decay
        self._average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, index: int) -> None:
        """Take in the model as it is after step `index`, counted from 0."""
        decay = min(self._decay, (1 + index) / (10 + index))
        for name, value in self._model.state_dict().items():
            self._average[name].lerp_(value, 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """The averages by name. They are live: clone what must stay."""
        return dict(self._average)

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state()`, wherever its tensors are. Raises KeyError if a name is missing."""
        for name, average in self._average.items():
            average.copy_(state[name])


def cosine(index: int, steps: int, warmup: int) -> float:
    """Learning-rate factor at step `index`: linear over `warmup` steps, times a cosine from 1 to 0.02 over all
    steps."""
    return min(1.0, (index + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * index / steps)))
