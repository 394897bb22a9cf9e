"""Where a command's models compute: the one place that turns `--device` into a device."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from nopair.errors import ConfigError, MemoryShortError

_REFUSALS: Final = re.compile(r"DefaultCPUAllocator|CUDA error: out of memory|CU\w+_STATUS_ALLOC_FAILED")
"""What a RuntimeError says where torch has no class of its own: on the CPU, of the driver, of NVIDIA's libraries."""


def choose_device(name: str, card: int = 0) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:<number>`. `auto` is a GPU where there is one; `cuda` and `auto` mean GPU `card`.

    A GPU that is chosen becomes torch's current one: what loads quantised weights knows no other.

    Raises:
        ConfigError: another name, or there is no such GPU.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ConfigError(f"device {name!r} is unknown; choose auto, cpu, cuda or cuda:<number>")
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not cards):
        return torch.device("cpu")
    number = int(name.removeprefix("cuda:")) if ":" in name else card
    if number >= cards:
        found = f"only {cards} here, counted from 0" if cards else "none here that this torch can use"
        raise ConfigError(f"device {name}: there is no GPU {number}, {found}; choose another, or use --device cpu")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def release() -> None:
    """Give memory back that models held which nobody needs any more, so that the next one has it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def lacks_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the host, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _REFUSALS.search(str(error)) is not None


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Inside, a device that runs out of memory, or the host, is told in one line that ends in `advice`.

    Raises:
        MemoryShortError: a device or the host ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        place = "the host" if isinstance(error, MemoryError) else "the device"
        asked = re.search(r"(?:[Tt]ried|[Uu]nable) to allocate ([\d.]+ \w+)", str(error))
        more = f" (it was asked for {asked[1]} more)" if asked else ""
        raise MemoryShortError(f"{place} has no memory left{more}; {advice}") from None
