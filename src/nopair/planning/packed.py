"""Linear layers with quantised weights, as shapes: the bytes they hold, and what they need for a moment to compute.

bitsandbytes cannot quantise on the meta device. What it does is counted by hand: NF4 keeps half a byte a weight and
a scale for each block of 64, which is quantised itself (`nopair.precision`): a byte, and a float32 for each 256 of
them; int8 keeps a byte a weight and a float32 for each row. Both unpack a layer's weights to multiply by them (int8
only in the backward pass), once in each direction, and keep nothing unpacked.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn

from nopair.precision import Bits

BLOCK: Final = 64
"""Weights that share a scale in NF4."""
SCALES: Final = 256
"""Quantised scales that share a scale of their own."""


class _Unpacked(torch.autograd.Function):
    """x W^T with a W that is unpacked when it is needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int, bits: int) -> Tensor:
        ctx.rows, ctx.columns, ctx.dtype = rows, x.shape[-1], x.dtype
        flat = x.reshape(-1, x.shape[-1])
        if bits == 4:
            out = flat @ x.new_empty(x.shape[-1], rows)
        else:
            rounded = torch.empty_like(flat, dtype=torch.float16)[: (len(flat) + 1) // 2]  # a byte a number
            whole = torch.empty(len(flat), rows, dtype=torch.float32, device=x.device)
            out = flat @ x.new_empty(1, rows).expand(x.shape[-1], rows)
            del rounded, whole
        return out.view(*x.shape[:-1], rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        flat = gradient.reshape(-1, ctx.rows)
        weight = gradient.new_empty(ctx.rows, ctx.columns, dtype=ctx.dtype)
        return (flat @ weight).view(*gradient.shape[:-1], ctx.columns), None, None


class PackedLinear(nn.Linear):
    """A frozen linear layer of `bits`-bit weights, for the meta device only. An `nn.Linear`, so that adapters fit it.

    `weight` holds the packed bytes and has another shape than a plain layer's. `compute_dtype` is, as in the library,
    what is computed in.
    """

    def __init__(self, plain: nn.Linear, bits: Bits) -> None:
        with torch.device("meta"):
            super().__init__(plain.in_features, plain.out_features, plain.bias is not None, dtype=plain.weight.dtype)
        self.bits: Bits = bits
        self.compute_dtype: torch.dtype = plain.weight.dtype
        count = plain.weight.numel()
        packed = torch.empty(count * bits // 8, 1, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        blocks = -(-count // BLOCK) if bits == 4 else plain.out_features
        kind = torch.uint8 if bits == 4 else torch.float32
        self.register_buffer("scales", torch.empty(blocks, dtype=kind, device="meta"))
        if bits == 4:
            self.register_buffer("scales_of_scales", torch.empty(-(-blocks // SCALES), device="meta"))
        self.requires_grad_(False)

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear.forward`."""
        out: Any = _Unpacked.apply(input, self.out_features, self.bits)
        return out if self.bias is None else out + self.bias


Quantise = Callable[[nn.Module, Bits, Callable[[str], bool]], None]
"""Makes the layers of a module quantised, in place, whose full names the function says yes to."""


def pack(module: nn.Module, bits: Bits, is_packed: Callable[[str], bool]) -> None:
    """Replace in place the linear layers of `module` whose full names `is_packed` says are quantised."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear) and is_packed(name):
            module.set_submodule(name, PackedLinear(layer, bits))
