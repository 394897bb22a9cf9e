"""Where records come from during training."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from nopair.types import EditBatch


@runtime_checkable
class Source(Protocol):
    """An endless, random-access stream of records: record `index` is the same whatever the batch it is asked for in."""

    def batch(self, indices: Sequence[int]) -> EditBatch:
        """Those records, stacked."""
        ...
