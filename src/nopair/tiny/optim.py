"""One optimizer for pretraining: Muon for hidden matrices, AdamW for embeddings, gains and the rest."""

import math
from typing import Any, Final

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


def cosine(index: int, steps: int, warmup: int) -> float:
    """Learning-rate factor at step `index`: linear over `warmup` steps, times a cosine from 1 to 0.02 over all
    steps."""
    return min(1.0, (index + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * index / steps)))
