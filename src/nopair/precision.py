"""How exactly weights are held: one notion for bases and judges."""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch

from nopair.errors import MissingExtraError, ModelError

Bits = Literal[4, 8]


@dataclass(frozen=True, slots=True)
class Precision:
    """`dtype` of what is stored as it is and of all computation. With `bits`, matrices are quantised while they are
    read: to int8, or to NF4 in blocks of 64 with quantised scales.
    """

    dtype: torch.dtype = torch.float32
    bits: Bits | None = None


def require_quantisation(bits: Bits, what: str) -> None:
    """Check that quantised weights can be had here. `what` names the model, for the message.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        ModelError: there is no GPU.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "quant")
    if not torch.cuda.is_available():
        raise ModelError(f"{what} in {bits} bits needs a CUDA GPU; set bits to null on this machine")
