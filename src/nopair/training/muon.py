"""Muon, in float32 and many matrices at a time."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration of Jordan et al. (2024): steepest at zero, and so the quickest to lift small singular
values; it ends between 0.7 and 1.2 instead of at 1."""
ROUNDS: Final = 5
MOMENTUM: Final = 0.95


@final
class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal, for matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    The same as `torch.optim.Muon` with Nesterov momentum and `adjust_lr_fn="match_rms_adamw"`, which makes one step
    size fit both Muon and AdamW. That one iterates in bfloat16, one matrix after another: on processors without
    bfloat16 instructions it took more than half of a training step here, and this takes a tenth.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        if any(parameter.ndim != 2 for group in self.param_groups for parameter in group["params"]):
            raise ValueError("Muon is for matrices")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                self._move(parameters, group["lr"], group["weight_decay"])

    def _move(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        """One step of matrices of one shape."""
        updates = []
        for parameter in parameters:
            state: dict[str, Any] = self.state[parameter]
            gradient = parameter.grad
            assert gradient is not None, "step looked"
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            momentum: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM)
            updates.append(gradient.lerp(momentum, MOMENTUM))
        scale = lr * 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, update in zip(parameters, orthogonal(torch.stack(updates)), strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(update, alpha=-scale)


def orthogonal(matrices: Float[Tensor, "count rows columns"]) -> Float[Tensor, "count rows columns"]:
    """Matrices of about the same singular vectors, with singular values near 1 (zero matrices stay zero)."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
