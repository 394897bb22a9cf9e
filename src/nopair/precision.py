"""How exactly weights are held: one notion for bases and judges."""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch

from nopair.errors import ConfigError, MissingExtraError, ModelError

Bits = Literal[4, 8]
DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Precisions by the names that options have for them."""
AUTO: Final = "auto"
"""Name of the precision that depends on the device: see `nopair.editor.Editor.load`."""


@dataclass(frozen=True, slots=True)
class Precision:
    """`dtype` of what is stored as it is and of all computation. With `bits`, matrices are quantised while they are
    read: to int8, or to NF4 in blocks of 64 with quantised scales.
    """

    dtype: torch.dtype = torch.float32
    bits: Bits | None = None


def dtype_called(name: str) -> torch.dtype | None:
    """One of `DTYPES`; None is `AUTO`.

    Raises:
        ConfigError: another name.
    """
    if name == AUTO:
        return None
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is unknown; choose {', '.join((AUTO, *DTYPES))}")
    return DTYPES[name]


def require_bitsandbytes() -> None:
    """Check that bitsandbytes is there. Raises MissingExtraError."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "quant")


def refuse_quantised(config: object, what: str) -> None:
    """Check that a model's config.json, as read, does not say that its weights are quantised already: adapters are
    merged into whole weights, and offloading moves plain ones.

    Raises:
        ModelError: it does. `what` is the model, for the message.
    """
    found = config.get("quantization_config") if isinstance(config, dict) else None
    if found is not None:
        method = found.get("quant_method", "unknown") if isinstance(found, dict) else "unknown"
        raise ModelError(
            f"{what} is quantised already (by {method}); take the checkpoint with whole weights, and set bits to have "
            "them quantised while they are read"
        )


def refuse_bits_off_card(bits: Bits | None, device: torch.device | str, what: str) -> None:
    """Check that what `quantisation` puts on the GPU is not wanted on the CPU.

    Raises:
        ConfigError: it is. `what` is the key or option that has the bits.
    """
    if bits is not None and torch.device(device).type == "cpu" and torch.cuda.is_available():
        raise ConfigError(
            f"{what} {bits} quantises on the GPU here, and the device is {device}; leave out {what}, or choose the GPU"
        )


def quantisation(
    library: Callable[..., Any], precision: Precision, plain: Sequence[str], what: str, on_cpu: Sequence[Bits]
) -> dict[str, Any]:
    """Arguments of `from_pretrained` that make it quantise matrices while it reads them; none without `bits`.

    They go to the current GPU, or where there is none, to the CPU.

    Args:
        library: `BitsAndBytesConfig` of diffusers or of transformers: theirs are alike, but not one class.
        precision: what is wanted.
        plain: names of modules that stay as they are.
        what: the model, for the message.
        on_cpu: the bits in which it can be had without a GPU.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
        ModelError: there is no GPU, and so many bits need one.
    """
    if precision.bits is None:
        return {}
    require_bitsandbytes()
    card = torch.cuda.is_available()
    if not card and precision.bits not in on_cpu:
        others = " or ".join(["null", *map(str, on_cpu)])
        raise ModelError(f"{what} in {precision.bits} bits needs a CUDA GPU; set bits to {others} on this machine")
    # It says with every multiplication that int8 is rounded from float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    config = library(
        load_in_8bit=precision.bits == 8,
        load_in_4bit=precision.bits == 4,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision.dtype,
        llm_int8_skip_modules=list(plain),
    )
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device() if card else "cpu"}}
