"""Data-parallel training: processes that share every batch and take every decision together.

Each process, a rank, has all models and does its share of a step's samples. Gradients and losses are averaged before
anything is decided from them, so that all ranks refuse, clip and move alike, and have the same weights, averages and
moments after every step. Rank 0 alone writes.

torch's DistributedDataParallel would not do: it expects one forward pass of one module for each backward pass, and a
step here goes through the student twice, and through adapters that change roles.

Numbers travel between CPUs (gloo) and gradients between GPUs (nccl), numbers first: a rank that is gone is then noticed
at once, by an error, and not by a GPU that waits for ever.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nopair.device import choose_device
from nopair.errors import ConfigError, TrainingError

PATIENCE: Final = timedelta(hours=2)
"""How long ranks wait for one that is busy, for example with writing a large checkpoint."""
BUCKET: Final = 2**24
"""Most numbers that are sent at a time (a single larger gradient is sent whole): 64 MiB of float32."""

_START: Final = "start several processes with torchrun, or unset WORLD_SIZE"


@final
@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of a run: number `rank` of `world`. A process alone is rank 0 of 1 and talks to nobody.

    All ranks must call the same methods in the same order. Each raises TrainingError if another rank is gone.
    """

    rank: int = 0
    world: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the rank that writes files and talks to the user."""
        return self.rank == 0

    def pieces(self, step: int, batch: int, accumulate: int) -> Iterator[range]:
        """This rank's samples of a step, in `accumulate` equal pieces.

        Step s has the samples s * batch to (s + 1) * batch - 1, whoever does them. `require_shares` has been asked.
        """
        size = batch // (accumulate * self.world)
        first = step * batch + self.rank * accumulate * size
        for start in range(first, first + accumulate * size, size):
            yield range(start, start + size)

    def require_shares(self, phase: str, batch: int, accumulate: int) -> None:
        """Raises ConfigError unless a batch falls into equal pieces for all ranks."""
        least = accumulate * self.world
        if batch % least:
            raise ConfigError(
                f"{phase}.batch={batch} cannot be shared by {self.world} processes in {phase}.accumulate={accumulate} "
                f"equal pieces each; make it a multiple of {least}"
            )

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over ranks of numbers that have the same names everywhere."""
        if self.world == 1:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        _all_reduce(total, dist.ReduceOp.SUM)
        return dict(zip(values, total.tolist(), strict=True))

    def mean(self, value: float) -> float:
        """Mean over ranks."""
        return self.sum({"": value})[""] / self.world

    def largest(self, value: int) -> int:
        """The largest over ranks."""
        if self.world == 1:
            return value
        found = torch.tensor(value)
        _all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def wait(self) -> None:
        """Return when every rank has called it."""
        self.largest(0)

    @torch.no_grad()
    def mean_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradients, all of one dtype, by their means over ranks, in place.

        A parameter without a gradient counts as zero, or stays without one where no rank has one.
        """
        if self.world == 1:
            return
        present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        _all_reduce(present, dist.ReduceOp.MAX)
        gradients = []
        for parameter, somewhere in zip(parameters, present.tolist(), strict=True):
            if somewhere:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            _all_reduce(flat, dist.ReduceOp.SUM)
            means = (flat / self.world).split([gradient.numel() for gradient in bucket])
            for gradient, mean in zip(bucket, means, strict=True):
                gradient.copy_(mean.view_as(gradient))


ALONE: Final = Ranks()
"""A process that trains by itself."""


@contextmanager
def joined(device: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Inside, this process is one of those that `torchrun` started, as its environment variables tell, or alone.

    Args:
        device: as `choose_device` takes it; `auto` and `cuda` are a GPU of its own for each process of a machine.

    Raises:
        ConfigError: there are fewer GPUs than processes, or `device` names one GPU for all, or what started the
            processes did not say which is which.
        TrainingError: the processes do not find each other.
    """
    world = _number("WORLD_SIZE", "1")
    if ":" in device and world > 1:
        raise ConfigError(
            f"device {device} names one GPU for {world} processes; use --device cuda, and each has its own"
        )
    place = choose_device(device, _number("LOCAL_RANK") if world > 1 else 0)
    if world == 1:
        yield ALONE, place
        return
    ranks = Ranks(_number("RANK"), world)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        _variable(name)
    _told(dist.init_process_group, "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=PATIENCE)
    yield ranks, place
    # Not after an error: others may still wait for this rank, and that it leaves without a word tells them.
    dist.destroy_process_group()


def _number(name: str, default: str | None = None) -> int:
    value = _variable(name, default)
    if not value.isdecimal():
        raise ConfigError(f"environment variable {name} is {value!r}, not a number; {_START}")
    return int(value)


def _variable(name: str, default: str | None = None) -> str:
    value = os.environ.get(name, default)
    if value is None:
        raise ConfigError(f"environment variable {name} is not set, though WORLD_SIZE is; {_START}")
    return value


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in groups of at most BUCKET numbers."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _all_reduce(tensor: Tensor, operation: Any) -> None:
    _told(dist.all_reduce, tensor, operation)


def _told(call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """A call that needs the other ranks. Every failure of it, of whatever library, is a RuntimeError."""
    try:
        call(*arguments, **options)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        reason = re.sub(r"^\[\S+\] ", "", reason)  # where in the library
        raise TrainingError(
            f"another process of this run failed or was killed; its own message says why ({reason}); go on with "
            "--resume latest"
        ) from error
