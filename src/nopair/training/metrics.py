"""What a run tells: metric records in a JSONL file, progress on the console.

One line of the file is `{"phase": ..., "step": ..., "time": ..., <metric>: ...}`: steps done in the phase, seconds
since the run began (time between an interruption and its resumption left out), and the metrics of that very step.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from nopair.errors import CheckpointError, OutputError


@dataclass(frozen=True, slots=True)
class Record:
    """The metrics of one step. `step` counts the steps done in `phase`; `seconds` is time since the run began."""

    phase: str
    step: int
    seconds: float
    values: Mapping[str, float]

    def to_json(self) -> str:
        """One line. A value that is not finite becomes null, since JSON has no NaN."""
        values = {name: value if math.isfinite(value) else None for name, value in self.values.items()}
        return json.dumps({"phase": self.phase, "step": self.step, "time": round(self.seconds, 3), **values})

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """Inverse of `to_json`; null becomes NaN. Raises ValueError."""
        try:
            fields = json.loads(line)
            phase, step, seconds = fields.pop("phase"), fields.pop("step"), fields.pop("time")
            values = {name: math.nan if value is None else float(value) for name, value in fields.items()}
            return cls(str(phase), int(step), float(seconds), values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a metrics record: {line[:60]}") from error


def read(path: Path) -> tuple[Record, ...]:
    """All records of a file; a last line without its end, from a killed run, is left out. Raises CheckpointError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"metrics {path} cannot be read: {error}") from error
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            records.append(Record.from_json(line))
        except ValueError as error:
            raise CheckpointError(f"metrics {path}, line {number}, is damaged; remove the file") from error
    return tuple(records)


class MetricsFile:
    """The JSONL file of a run, open for adding. Opening replaces what it held by `records`, in one move.

    Every record is in the operating system's hands when `write` returns. Raises OutputError.
    """

    def __init__(self, path: Path, records: Iterable[Record]) -> None:
        self._path = path
        fresh = path.with_name(f".{path.name}")
        try:
            with fresh.open("w", encoding="utf-8") as file:
                file.writelines(f"{record.to_json()}\n" for record in records)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise OutputError(f"metrics {path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, record: Record) -> None:
        """Add one record."""
        line = f"{record.to_json()}\n".encode()
        try:
            whole = self._file.write(line) == len(line)
        except OSError as error:
            raise OutputError(f"metrics {self._path} cannot be written: {error.strerror}") from error
        if not whole:
            raise OutputError(f"metrics {self._path} cannot be written: no space left")

    def sync(self) -> None:
        """Wait until the disk has everything."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"metrics {self._path} cannot be written: {error.strerror}") from error


def pace(done: int, left: int, seconds: float) -> str:
    """Rate and time to go, from `done` steps in `seconds` and `left` steps to do: `2.1 steps/s, 1:05 left`."""
    if done <= 0 or seconds <= 0:
        return ""
    each = seconds / done
    rate = f"{1 / each:.3g} steps/s" if each < 1 else f"{each:.3g} s/step"
    minutes, rest = divmod(math.ceil(each * left), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
    return f"{rate}, {clock} left"


class PhaseProgress:
    """Progress of one phase on a console: a live bar on a terminal, one plain line per record elsewhere."""

    def __init__(self, console: Console, name: str, steps: int, done: int) -> None:
        self._console, self._name, self._steps, self._first = console, name, steps, done
        self._begun = time.monotonic()
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            TextColumn("{task.fields[values]}", markup=False),
            console=console,
        )

    def __enter__(self) -> "PhaseProgress":
        if self._console.is_interactive:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._steps, completed=self._first, pace="", values="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            with _heard_or_not():
                self._bar.stop()

    def advance(self, done: int, record: Record | None) -> None:
        """`done` steps of the phase are done; `record`, if there is one, is shown."""
        rate = pace(done - self._first, self._steps - done, time.monotonic() - self._begun)
        shown = "" if record is None else _shown(record.values)
        with _heard_or_not():
            if self._task is None:
                if record is not None:
                    say(self._console, f"{self._name} {done}/{self._steps}  {rate}  {shown}")
            elif record is None:
                self._bar.update(self._task, completed=done, pace=rate)
            else:
                self._bar.update(self._task, completed=done, pace=rate, values=shown)


def _shown(values: Mapping[str, float]) -> str:
    """Names and values, without counts of refused steps while there are none."""
    told = {name: value for name, value in values.items() if value or not name.endswith("skipped")}
    return "  ".join(f"{name} {value:.4g}" for name, value in told.items())


def say(console: Console, text: str) -> None:
    """One plain line, never wrapped, marked up or coloured."""
    with _heard_or_not():
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _heard_or_not() -> AbstractContextManager[None]:
    """Inside, a console that is gone, such as a terminal of a lost connection, is no reason to lose a run. What is
    told there is also in metrics.jsonl, or on disk.
    """
    return suppress(OSError)
