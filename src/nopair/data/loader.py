"""Where records come from during training."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch

from nopair.types import EditBatch


@runtime_checkable
class Source(Protocol):
    """An endless, random-access stream of records: record `index` is the same whatever the batch it is asked for in."""

    def batch(self, indices: Sequence[int]) -> EditBatch:
        """Those records, stacked."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Limited:
    """The first `count` records of a source, over and over: what training is worth with less data."""

    source: Source
    count: int

    def batch(self, indices: Sequence[int]) -> EditBatch:
        """See `Source.batch`."""
        return self.source.batch([index % self.count for index in indices])


@final
@dataclass(frozen=True, slots=True)
class OnDevice:
    """A source with its images on `device`: where records leave the CPU, so that training never asks where they are."""

    source: Source
    device: torch.device

    def batch(self, indices: Sequence[int]) -> EditBatch:
        """See `Source.batch`."""
        batch = self.source.batch(indices)
        return dataclasses.replace(batch, reference=batch.reference.to(self.device))
