"""The training loop: phases one after the other, with metrics, samples, checkpoints and clean stops.

A run's folder holds

    recipe.yaml     the run as a value
    metrics.jsonl   see `metrics`
    samples/        <phase>-<steps done>.png
    checkpoints/    see `checkpoint`
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from nopair.config import Run, dump
from nopair.errors import CheckpointError, Interrupted, OutputError
from nopair.training import checkpoint
from nopair.training.checkpoint import Position
from nopair.training.metrics import MetricsFile, PhaseProgress, Record, read, say
from nopair.training.phase import Phase, seed_of
from nopair.training.signals import StopRequest, stop_on_signals


@dataclass(frozen=True, slots=True)
class _Run:
    """What does not change while a run goes on. `begun` is the monotonic time at which the run would have begun."""

    recipe: Run
    directory: Path
    metrics: MetricsFile
    console: Console
    stop: StopRequest
    begun: float


def run_phases(
    phases: Sequence[Phase], *, recipe: Run, directory: Path, resume: str | None = None, console: Console
) -> None:
    """Run `phases` in order, writing to `directory`.

    `resume` is None for a new run, `latest` for the newest checkpoint of `directory`, or the path of a checkpoint. A
    resumed run ends with the same weights and the same metrics, times apart, as one that was never interrupted.

    Raises CheckpointError if there is nothing to resume, or if a checkpoint in `directory` is newer than where the run
    would start; TrainingError from a phase; OutputError; Interrupted after a signal, with everything saved.
    """
    names = [phase.name for phase in phases]
    if len(set(names)) != len(names):
        raise ValueError(f"two phases have the same name: {names}")
    root = directory / "checkpoints"
    with stop_on_signals() as stop:
        start = None if resume is None else _load(phases, recipe, root, resume)
        _require_not_behind(root, 0 if start is None else start.total, resume)
        _prepare(directory, recipe)
        kept = [] if start is None else _records_until(directory / "metrics.jsonl", names, start)
        begun = time.monotonic() - (kept[-1].seconds if kept else 0.0)
        with MetricsFile(directory / "metrics.jsonl", kept) as metrics:
            run = _Run(recipe, directory, metrics, console, stop, begun)
            current = -1
            if start is not None:
                say(console, f"resuming after {start.phase} step {start.step}")
                current = names.index(start.phase)
            offset = 0
            for number, phase in enumerate(phases):
                if number > current and phase.steps:
                    phase.begin()
                if number >= current:
                    _run_phase(run, phase, start.step if start is not None and number == current else 0, offset)
                offset += phase.steps
            if stop.signal is not None:  # it came while the very last step was being saved
                raise Interrupted(128 + stop.signal)


def _run_phase(run: _Run, phase: Phase, first: int, offset: int) -> None:
    """Steps `first` to the last of `phase`; `offset` steps of other phases come before."""
    if first >= phase.steps:
        return
    logging = run.recipe.logging
    with PhaseProgress(run.console, phase.name, phase.steps, first) as progress:
        for index in range(first, phase.steps):
            torch.manual_seed(seed_of(run.recipe.seed, phase.name, index))
            values = {name: float(value) for name, value in phase.step(index).items()}
            done = index + 1
            record = None
            if _due(done, logging.every, phase.steps):
                record = Record(phase.name, done, time.monotonic() - run.begun, values)
                run.metrics.write(record)
            progress.advance(done, record)
            if logging.samples_every and _due(done, logging.samples_every, phase.steps):
                _save_samples(run.directory / "samples", phase, index)
            stopped_by = run.stop.signal
            if stopped_by is not None or _due(done, run.recipe.checkpoint.every, phase.steps):
                _save(run, phase, Position(phase.name, done, offset + done))
            if stopped_by is not None:
                say(
                    run.console,
                    f"stopped after {phase.name} step {done}; everything is saved, go on with --resume latest",
                )
                raise Interrupted(128 + stopped_by)


def _due(done: int, every: int, steps: int) -> bool:
    """Whether something that happens after every `every` steps (0: never), and after the last, happens after `done`."""
    return done == steps or (every > 0 and done % every == 0)


def _save(run: _Run, phase: Phase, position: Position) -> None:
    # The metrics go to disk first, so a checkpoint never knows of a step that they do not.
    run.metrics.sync()
    checkpoint.save(run.directory / "checkpoints", position, phase.state(), run.recipe, run.recipe.checkpoint.keep)


def _load(phases: Sequence[Phase], recipe: Run, root: Path, resume: str) -> Position:
    """Put the phase of the checkpoint back into its state; where the run stands, counted with this run's steps."""
    saved = checkpoint.load(checkpoint.latest(root) if resume == "latest" else Path(resume))
    checkpoint.require_same_run(saved, recipe)
    offset = 0
    for phase in phases:
        if phase.name == saved.position.phase:
            try:
                phase.load_state(saved.state)
            except (KeyError, ValueError, RuntimeError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise CheckpointError(
                    f"checkpoint {saved.path} does not fit the models of this run: {reason}"
                ) from error
            return Position(phase.name, saved.position.step, offset + saved.position.step)
        offset += phase.steps
    raise CheckpointError(f"checkpoint {saved.path} is of the phase {saved.position.phase!r}, which this run lacks")


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


def _prepare(directory: Path, recipe: Run) -> None:
    try:
        for folder in (directory, directory / "checkpoints", directory / "samples"):
            folder.mkdir(parents=True, exist_ok=True)
        (directory / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"output folder {directory} cannot be written: {error.strerror}") from error
    checkpoint.clean(directory / "checkpoints")


def _save_samples(folder: Path, phase: Phase, index: int) -> None:
    image = phase.samples(index)
    if image is None:
        return
    path = folder / f"{phase.name}-{index + 1:06}.png"
    hidden = path.with_name(f".{path.name}")
    try:
        image.save(hidden, format="PNG")
        hidden.replace(path)
    except OSError as error:
        hidden.unlink(missing_ok=True)
        raise OutputError(f"samples {path} cannot be written: {error.strerror}") from error
