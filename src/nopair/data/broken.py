"""Photos that could not be read: each is named in the log, once, and too many stop the run.

A run's processes share a file of them, a line each, which a resumed run goes on with. So the limit holds for the run as
a whole, however many processes it has and however often it is stopped.
"""

import json
import logging
import os
from pathlib import Path
from threading import Lock
from typing import Final, final

from nopair.data.files import make_folder, write_atomic
from nopair.data.images import decode_image
from nopair.data.tables import Table
from nopair.errors import DataError, ImageError, OutputError

BROKEN: Final = "broken.jsonl"
"""Name of the file in a run's folder."""
_LOG: Final = logging.getLogger("nopair.data")


@final
class Broken:
    """Broken photos by their rows, at most `limit`; those of all processes that have the same `file`, if one is given.

    Threads may share it.
    """

    def __init__(self, limit: int, file: Path | None = None) -> None:
        self.limit = limit
        self.found: dict[int, str] = {}
        self._file = file
        self._lock = Lock()

    def add(self, row: int, error: ImageError) -> None:
        """Count the photo of a row.

        Raises:
            DataError: it is one more than `limit`.
            OutputError: the file cannot be written.
        """
        with self._lock:
            new = row not in self.found
            self.found[row] = str(error)
            if self._file is not None and new:
                _append(self._file, row, str(error))
            # Whoever writes its line last sees the lines of all others, so one of them sees too many.
            count = len(self.found) if self._file is None else len(_read(self._file) | self.found)
        if count > self.limit:
            several = f"{count} photos cannot be read, the last: " if self.limit else ""
            raise DataError(
                f"{several}{error}; mend the photo, or let another stand in for it with data.max_broken={count} or more"
            )
        if new:
            _LOG.warning("broken photo %d of at most %d, another stands in for it: %s", count, self.limit, error)


def prepare(file: Path, table: Table, *, resumed: bool) -> None:
    """For one process, before any counts: a new run begins without any, a resumed one forgets what was mended.

    Raises:
        OutputError: the file cannot be written.
        DataError: it is damaged.
    """
    if not resumed:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{file}: cannot be written ({error.strerror}); choose another output") from error
        return
    known = _read(file) if file.is_file() else {}
    still = {row: error for row, error in known.items() if row < len(table) and not _readable(table, row)}
    if still != known:
        write_atomic(file, "".join(_line(row, error) for row, error in still.items()).encode("ascii"))


def _readable(table: Table, row: int) -> bool:
    try:
        name, content = table.photo(row)
        decode_image(content, name)
    except ImageError:
        return False
    return True


def _line(row: int, error: str) -> str:
    return json.dumps({"row": row, "error": error}) + "\n"


def _append(file: Path, row: int, error: str) -> None:
    """One write to the end, which other processes' lines cannot come into."""
    make_folder(file.parent)
    try:
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(number, _line(row, error).encode("ascii"))
        finally:
            os.close(number)
    except OSError as problem:
        raise OutputError(f"{file}: cannot be written ({problem.strerror}); make room and run again") from problem


def _read(file: Path) -> dict[int, str]:
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="ascii").splitlines()]
        return {int(line["row"]): str(line["error"]) for line in lines}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); remove it to count broken photos anew") from error
