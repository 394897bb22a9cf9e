"""Photos are read and decoded by threads while a step computes, so that no step waits for them.

What a rank asks for next follows from what it asks for now. A wrong guess costs time and changes nothing: a sample
depends on its index alone.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Final, final

from nopair.config import PhaseConfig
from nopair.data.photos import PhotoSource, stacked
from nopair.training.parallel import Ranks
from nopair.types import EditBatch, EditRecord

PIECES: Final = 2
"""Pieces of a batch that are read ahead."""


@final
class Ahead:
    """A `nopair.data.loader.Source` that reads the next pieces of this rank ahead; for one thread that asks."""

    def __init__(self, source: PhotoSource, plans: Sequence[PhaseConfig], ranks: Ranks, workers: int) -> None:
        self._source = source
        self._plans = plans
        self._ranks = ranks
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="photos")
        self._pending: dict[int, Future[EditRecord]] = {}

    def batch(self, indices: Sequence[int]) -> EditBatch:
        """See `PhotoSource.batch`."""
        now = {index: self._pending.pop(index, None) or self._submit(index) for index in indices}
        following = [index for piece in islice(self._following(indices), PIECES) for index in piece]
        for index in self._pending.keys() - set(following):
            self._pending.pop(index).cancel()
        for index in following:
            if index not in self._pending:
                self._pending[index] = self._submit(index)
        return stacked([now[index].result() for index in indices])

    def _submit(self, index: int) -> Future[EditRecord]:
        return self._pool.submit(self._source.sample, index)

    def _following(self, indices: Sequence[int]) -> Iterator[range]:
        """The pieces after this one, in the first phase in which it is a piece."""
        for plan in self._plans:
            first = indices[0] // plan.batch
            if first >= plan.steps:
                continue
            for step in range(first, plan.steps):
                pieces = list(self._ranks.pieces(step, plan.batch, plan.accumulate))
                if step == first:
                    if range(indices[0], indices[-1] + 1) not in pieces:
                        break
                    pieces = pieces[pieces.index(range(indices[0], indices[-1] + 1)) + 1 :]
                yield from pieces
            else:
                return
