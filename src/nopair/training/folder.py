"""The folder of a run, and who writes it.

    recipe.yaml     the run as a value
    models.json     see `models`
    metrics.jsonl   see `metrics`
    samples/        <phase>-<steps done>.png
    checkpoints/    see `checkpoint`

Of several processes that train together one has the `RunFolder`; the others have `Elsewhere`, which writes nothing.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, final, runtime_checkable

from nopair.config import Run
from nopair.data.files import remove_parts, write_atomic
from nopair.errors import OutputError
from nopair.settings import dump
from nopair.training import checkpoint
from nopair.training.checkpoint import Position
from nopair.training.metrics import MetricsFile, Record
from nopair.training.phase import Phase

RECIPE: Final = "recipe.yaml"


def remove_run(directory: Path) -> None:
    """Remove an earlier run, whatever became of it; nothing if there is none.

    Raises:
        OutputError: it does not look like a run, or cannot be removed.
    """
    try:
        if not directory.exists():
            return
        if not ((directory / RECIPE).is_file() and (directory / "checkpoints").is_dir()):
            raise OutputError(
                f"{directory}: is no earlier run (no {RECIPE} and checkpoints) and is not replaced; "
                "move it away or choose another output"
            )
        shutil.rmtree(directory)
    except OSError as error:
        raise OutputError(f"{directory}: cannot be removed ({error.strerror or error}); remove it yourself") from error


@runtime_checkable
class Writer(Protocol):
    """What the loop has to write while it runs. All raise OutputError."""

    def record(self, phase: Phase, done: int, values: Mapping[str, float]) -> Record | None:
        """Add the metrics of the step that made it `done`; returns what was added, if anything was."""
        ...

    def samples(self, phase: Phase, done: int) -> None:
        """Write a picture of what the phase's model does now, if it draws one."""
        ...

    def save(self, phase: Phase, position: Position) -> None:
        """Write a checkpoint."""
        ...


@final
@dataclass(frozen=True, slots=True)
class Elsewhere:
    """For a process that leaves the writing to another."""

    def record(self, phase: Phase, done: int, values: Mapping[str, float]) -> None:
        """Nothing; so are the others."""

    def samples(self, phase: Phase, done: int) -> None: ...

    def save(self, phase: Phase, position: Position) -> None: ...


@final
@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder, open for writing. `begun` is the monotonic time at which the run would have begun, had it never been
    interrupted."""

    directory: Path
    recipe: Run
    metrics: MetricsFile
    begun: float

    @classmethod
    @contextmanager
    def opened(cls, directory: Path, recipe: Run, kept: Sequence[Record]) -> Iterator["RunFolder"]:
        """Make it ready for a run whose metrics so far are `kept`. A recipe that no run wrote is not replaced.

        Raises:
            OutputError: there is such a recipe, or the folder cannot be written.
        """
        require_no_other(directory, recipe)
        try:
            for folder in (directory, directory / "checkpoints", directory / "samples"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"output folder {directory} cannot be written: {error.strerror}") from error
        write_atomic(directory / RECIPE, dump(recipe).encode())
        checkpoint.clean(directory / "checkpoints")
        remove_parts(directory)  # an editor that was being written when the run was killed is as large as the base
        begun = time.monotonic() - (kept[-1].seconds if kept else 0.0)
        with MetricsFile(directory / "metrics.jsonl", kept) as metrics:
            yield cls(directory, recipe, metrics, begun)

    def record(self, phase: Phase, done: int, values: Mapping[str, float]) -> Record:
        """See `Writer.record`."""
        record = Record(phase.name, done, time.monotonic() - self.begun, values)
        self.metrics.write(record)
        return record

    def samples(self, phase: Phase, done: int) -> None:
        """See `Writer.samples`."""
        image = phase.samples(done - 1)
        if image is None:
            return
        path = self.directory / "samples" / f"{phase.name}-{done:06}.png"
        hidden = path.with_name(f".{path.name}")
        try:
            image.save(hidden, format="PNG")
            hidden.replace(path)
        except OSError as error:
            hidden.unlink(missing_ok=True)
            raise OutputError(f"samples {path} cannot be written: {error.strerror}") from error

    def save(self, phase: Phase, position: Position) -> None:
        """See `Writer.save`."""
        # The metrics go to disk first, so a checkpoint never knows of a step that they do not.
        self.metrics.sync()
        checkpoint.save(
            self.directory / "checkpoints", position, phase.state(), self.recipe, self.recipe.checkpoint.keep
        )


def require_no_other(directory: Path, recipe: Run) -> None:
    """Where no run has been, a recipe of another text is the user's own. (Studies remove checkpoints, not metrics.)

    Raises:
        OutputError: there is such a one, or it cannot be read.
    """
    path = directory / RECIPE
    try:
        been = any((directory / name).exists() for name in ("checkpoints", "metrics.jsonl"))
        if path.exists() and not been and path.read_bytes() != dump(recipe).encode():
            raise OutputError(f"{path}: is another recipe, which this run's would replace; choose another output")
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror}); choose another output") from error
