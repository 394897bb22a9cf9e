"""The training loop: phases one after the other, with metrics, samples, checkpoints and clean stops."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from rich.console import Console

from nopair.config import Run
from nopair.errors import CheckpointError, ConfigError, Interrupted
from nopair.training import checkpoint
from nopair.training.checkpoint import Checkpoint, Position
from nopair.training.folder import Elsewhere, RunFolder, Writer, require_no_other
from nopair.training.metrics import PhaseProgress, Record, read, say
from nopair.training.parallel import ALONE, Ranks
from nopair.training.phase import Phase, seed_of
from nopair.training.signals import StopRequest, stop_on_signals

RESUME: Final = "everything is saved, go on with --resume latest"
AGAIN: Final = "everything is saved, the same command goes on from here"
"""What a stopped run says, by how its command goes on."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What does not change while a run goes on."""

    recipe: Run
    writer: Writer
    console: Console
    stop: StopRequest
    ranks: Ranks
    stopped: str

    def stopped_by(self) -> int:
        """The signal that asked any rank to stop, or 0. All ranks ask, and get the same answer."""
        return self.ranks.largest(self.stop.signal or 0)


def run_phases(
    phases: Sequence[Phase],
    *,
    recipe: Run,
    directory: Path,
    resume: str | None = None,
    console: Console,
    ranks: Ranks = ALONE,
    stopped: str = RESUME,
) -> None:
    """Run `phases` in order, writing to `directory` (see `folder`).

    `resume` is None for a new run, `latest` for the newest checkpoint of `directory`, or the path of a checkpoint. A
    resumed run ends with the same weights and the same metrics, times apart, as one that was never interrupted; up to
    rounding with another number of ranks than before, or on a GPU, whose kernels are not asked to be deterministic. All
    ranks must see the same `directory`. Phases may be longer or shorter than they were in the checkpoint; steps of the
    run count on from its own. `stopped` is what a user who stops the run is told of what is saved and of how to go on.

    Raises ConfigError if a phase would end before the checkpoint that is in the middle of it; CheckpointError if there
    is nothing to resume, or if a checkpoint in `directory` is newer than where the run would start; TrainingError from
    a phase, or if another rank is gone; OutputError; Interrupted after a signal to any rank, with everything saved.
    """
    names = [phase.name for phase in phases]
    if len(set(names)) != len(names):
        raise ValueError(f"two phases have the same name: {names}")
    root = directory / "checkpoints"
    with stop_on_signals() as stop:
        start = None if resume is None else _load(phases, recipe, root, resume)
        _require_not_behind(root, 0 if start is None else start.total, resume)
        with _writer(directory, recipe, names, start, ranks) as writer:
            run = _Run(recipe, writer, console, stop, ranks, stopped)
            current = -1
            if start is not None:
                say(console, f"resuming after {start.phase} step {start.step}")
                current = names.index(start.phase)
            total = 0 if start is None else start.total
            for number, phase in enumerate(phases):
                if number < current:
                    continue
                first = start.step if start is not None and number == current else 0
                if number > current and phase.steps:
                    for over in phases[:number]:
                        over.end()
                    phase.begin()
                _run_phase(run, phase, first, total)
                total += max(0, phase.steps - first)
            if signal := run.stopped_by():  # it came while the very last step was being saved
                raise Interrupted(128 + signal)


def preflight(recipe: Run, directory: Path, resume: str | None) -> None:
    """Find out what `run_phases` would refuse, as far as it can be known before anything is loaded.

    Raises:
        CheckpointError: there is nothing to resume, or it is from another recipe; or a new run would meet checkpoints.
        OutputError: the folder has another recipe and no run.
    """
    root = directory / "checkpoints"
    require_no_other(directory, recipe)
    if resume is None:
        _require_not_behind(root, 0, None)
    else:
        path = _named(root, resume)
        checkpoint.require_same_run(path, checkpoint.recipe_of(path), recipe)


def _named(root: Path, resume: str) -> Path:
    return checkpoint.latest(root) if resume == "latest" else Path(resume)


@contextmanager
def _writer(
    directory: Path, recipe: Run, names: Sequence[str], start: Position | None, ranks: Ranks
) -> Iterator[Writer]:
    """The folder for the rank that writes."""
    if ranks.writes:
        kept = [] if start is None else _records_until(directory / "metrics.jsonl", names, start)
        with RunFolder.opened(directory, recipe, kept) as folder:
            yield folder
    else:
        yield Elsewhere()


def _run_phase(run: _Run, phase: Phase, first: int, total: int) -> None:
    """Steps `first` to the last of `phase`; `total` steps of the run are done."""
    if first >= phase.steps:
        return
    logging, ranks = run.recipe.logging, run.ranks
    with PhaseProgress(run.console, phase.name, phase.steps, first) as progress:
        for index in range(first, phase.steps):
            # Layers that draw from torch's own generator draw differently on every rank, as their samples differ.
            torch.manual_seed(seed_of(run.recipe.seed, phase.name, index * ranks.world + ranks.rank))
            values = {name: float(value) for name, value in phase.step(index).items()}
            done = index + 1
            record = run.writer.record(phase, done, values) if _due(done, logging.every, phase.steps) else None
            if logging.samples_every and _due(done, logging.samples_every, phase.steps):
                run.writer.samples(phase, done)
            stopped_by = run.stopped_by()
            if stopped_by or _due(done, run.recipe.checkpoint.every, phase.steps):
                run.writer.save(phase, Position(phase.name, done, total + done - first))
                ranks.wait()  # nobody goes on, or leaves, before it is on disk
            progress.advance(done, record)
            if stopped_by:
                say(run.console, f"stopped after {phase.name} step {done}; {run.stopped}")
                raise Interrupted(128 + stopped_by)


def _due(done: int, every: int, steps: int) -> bool:
    """Whether something that happens after every `every` steps (0: never), and after the last, happens after `done`."""
    return done == steps or (every > 0 and done % every == 0)


def _load(phases: Sequence[Phase], recipe: Run, root: Path, resume: str) -> Position:
    """Put the phase of the checkpoint back into its state; where the run stands."""
    saved = checkpoint.load(_named(root, resume))
    checkpoint.require_same_run(saved.path, saved.recipe, recipe)
    for phase in phases:
        if phase.name == saved.position.phase:
            _require_an_end(phase, saved)
            try:
                phase.load_state(saved.state)
            except (KeyError, ValueError, RuntimeError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise CheckpointError(f"checkpoint {saved.path} does not fit this run: {reason}") from error
            return saved.position
    raise CheckpointError(f"checkpoint {saved.path} is of the phase {saved.position.phase!r}, which this run lacks")


def _require_an_end(phase: Phase, saved: Checkpoint) -> None:
    """A phase hands over what it has learnt in its last step, so one that was not at its end must have a step left."""
    done = saved.position.step
    planned = saved.recipe.get(phase.name, {}).get("steps", phase.steps)
    if phase.steps <= done < planned:
        raise ConfigError(
            f"{phase.name}.steps={phase.steps} leaves nothing to do, but checkpoint {saved.path} is in the middle of "
            f"{phase.name}, after {done} of {planned} steps; resume with {phase.name}.steps={done + 1} or more"
        )


def _require_not_behind(root: Path, total: int, resume: str | None) -> None:
    """A run that starts behind a checkpoint of its own folder would mix two histories there."""
    newest = checkpoint.newest_total(root)
    if newest > total and resume is None:
        raise CheckpointError(f"{root} holds checkpoints of an earlier run; add --resume latest, or use another output")
    if newest > total:
        raise CheckpointError(f"{root}/checkpoint-{newest} is newer than {resume}; move it away or --resume latest")


def _records_until(path: Path, names: Sequence[str], position: Position) -> list[Record]:
    """The records of the steps that were done at `position`."""
    if not path.exists():
        return []
    order = {name: number for number, name in enumerate(names)}
    end = (order[position.phase], position.step)
    return [record for record in read(path) if (order.get(record.phase, len(names)), record.step) <= end]
