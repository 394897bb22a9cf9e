"""What was answered or found once, on disk, so that no run does it again: an append-only file of JSON lines by key.

A line is written at once and whole; one that a kill cut short is dropped when the journal is opened, so at most what
was under way is lost. Only places are held in memory, about 150 bytes a line. One process writes a journal at a time.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Final, final

from nopair.data.files import make_folder
from nopair.data.locks import locked
from nopair.errors import DataError, OutputError

_LINES_BETWEEN_SYNCS: Final = 64


@final
class Journal:
    """A journal that is open for reading and appending, as a context manager."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or creates it.

        Raises:
            OutputError: it cannot be written, or another run has it open.
            DataError: a line is damaged.
        """
        make_folder(path.parent)
        self.path = path
        self._lock = locked(path).lock
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            self._lock.release()
            raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
        self._unsynced = 0
        try:
            self._places = self._read()
        except DataError:
            self.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> dict[str, Any] | None:
        """What was written under a key; None if nothing was."""
        place = self._places.get(key)
        if place is None:
            return None
        start, length = place
        return json.loads(os.pread(self._file.fileno(), length, start))["value"]

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Write a value under a key; of several under one, the last counts.

        Raises:
            OutputError: the disk is full or gone.
        """
        line = json.dumps({"key": key, "value": value}, ensure_ascii=True).encode("ascii") + b"\n"
        try:
            start = os.fstat(self._file.fileno()).st_size
            if self._file.write(line) != len(line):
                raise OSError(0, "the disk is full")
            self._unsynced += 1
            if self._unsynced >= _LINES_BETWEEN_SYNCS:
                os.fsync(self._file.fileno())
                self._unsynced = 0
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written ({error.strerror}); make room and run again") from error
        self._places[key] = (start, len(line))

    def close(self) -> None:
        """Give the file back."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()
        self._lock.release()

    def _read(self) -> dict[str, tuple[int, int]]:
        places: dict[str, tuple[int, int]] = {}
        start = 0
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file.fileno(), start)
                    break
                places[self._key(line, number)] = (start, len(line))
                start += len(line)
        return places

    def _key(self, line: bytes, number: int) -> str:
        try:
            tree = json.loads(line)
            if isinstance(tree["key"], str) and isinstance(tree["value"], dict):
                return tree["key"]
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise DataError(f"{self.path}, line {number}: is damaged; take it out, and what it held is done again")
