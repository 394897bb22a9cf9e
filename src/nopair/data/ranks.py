"""Rows sorted by what they are, without holding them: the sorted list is in a temporary file, four bytes a row."""

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO, Final, final
from weakref import finalize

import numpy as np
from jaxtyping import Integer

from nopair.errors import OutputError

_ROW: Final = np.dtype("<u4")
_STRATUM: Final = np.dtype("<u2")
_AT_ONCE: Final = 2**16


@dataclass(frozen=True, slots=True)
class Part:
    """Buckets and categories of some rows, numbers from 0 to 254."""

    buckets: Integer[np.ndarray, " row"]
    categories: Integer[np.ndarray, " row"]


@dataclass(frozen=True, slots=True)
class Cell:
    """The rows of one bucket and category: `count` of them, from place `start` on."""

    bucket: int
    category: int
    start: int
    count: int


@final
class Ranks:
    """All rows, by bucket, then category, then row. `cells` are in that order. Threads may share it."""

    def __init__(self, cells: tuple[Cell, ...], file: int) -> None:
        """Takes over the open file of that number, and closes it in the end."""
        self.cells = cells
        self._file = file
        finalize(self, os.close, file)

    @classmethod
    def of(cls, parts: Iterable[Part]) -> "Ranks":
        """Sort rows that come in order, some at a time. What is in memory at a time does not grow with the rows.

        Raises:
            OutputError: there is no room for the temporary file.
        """
        counts = np.zeros(2**16, np.int64)
        try:
            with tempfile.TemporaryFile() as spool:
                for part in parts:
                    strata = part.buckets.astype(_STRATUM) * _STRATUM.type(256) + part.categories.astype(_STRATUM)
                    counts += np.bincount(strata, minlength=2**16)
                    spool.write(strata.tobytes())
                spool.seek(0)
                with tempfile.TemporaryFile() as file:
                    _place(spool, counts, file.fileno())
                    kept = os.dup(file.fileno())
        except OSError as error:
            raise OutputError(f"{tempfile.gettempdir()}: cannot be written ({error.strerror}); set TMPDIR") from error
        found = np.flatnonzero(counts)
        starts = accumulate(counts[found].tolist(), initial=0)
        cells = (
            Cell(*divmod(int(one), 256), start, int(counts[one])) for one, start in zip(found, starts, strict=False)
        )
        return cls(tuple(cells), kept)

    def __getitem__(self, place: int) -> int:
        """The row at a place."""
        return int.from_bytes(os.pread(self._file, _ROW.itemsize, place * _ROW.itemsize), "little")


def _place(spool: BinaryIO, counts: Integer[np.ndarray, " stratum"], file: int) -> None:
    """Write each row to its place, from the strata of all rows in order: a counting sort."""
    free = np.cumsum(counts) - counts
    row = 0
    while content := spool.read(_AT_ONCE * _STRATUM.itemsize):
        strata = np.frombuffer(content, _STRATUM)
        order = np.argsort(strata, kind="stable")
        found, firsts = np.unique(strata[order], return_index=True)
        rows = (order + row).astype(_ROW)
        for stratum, some in zip(found.tolist(), np.split(rows, firsts[1:]), strict=True):
            os.pwrite(file, some.tobytes(), int(free[stratum]) * _ROW.itemsize)
            free[stratum] += len(some)
        row += len(strata)
