"""Checkpoints that are complete or absent.

A checkpoint is a folder `checkpoint-<steps done in the run>` with

    state.pt         the phase's state, `torch.load(weights_only=True)`
    recipe.yaml      the run's recipe, every key spelled out
    checkpoint.json  format, phase, steps done in the phase and in the run, and the SHA-256 of the other files

It is written under a hidden name beside its place, brought to disk, and renamed; it is retired by a rename before it is
deleted. So whatever the moment a run is killed, a folder of that name is whole. `clean` removes what was left hidden.
"""

import hashlib
import json
import os
import pickle  # noqa: TID251 - only for the error that torch.load raises
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError
from torch import Tensor

from nopair.config import Run
from nopair.errors import CheckpointError, ConfigError, OutputError
from nopair.settings import dump, parse_tree
from nopair.training.phase import State

FORMAT: Final = 1
FREE_KEYS: Final = (
    *("name", "output", "threads", "logging", "checkpoint", "guard"),
    *("base.checkpointing", "judge.checkpointing", "judge.offload", "bystander.checkpointing", "bystander.offload"),
    *("data.max_broken", "data.workers", "data.cache"),
    *(f"{phase}.{key}" for phase in ("warmup", "sft", "grpo", "npedit") for key in ("steps", "accumulate")),
)
"""What a resumed run may say otherwise than its checkpoint. New steps also move the schedule's end."""

_FILES: Final = ("state.pt", "recipe.yaml")
_REMOVE: Final = "remove it to resume from the one before"
_NAME: Final = re.compile(r"checkpoint-(0|[1-9][0-9]*)")
_SAVING: Final = ".saving-"
_RETIRED: Final = ".retired-"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is: `step` steps of `phase` are done, and `total` steps of all phases so far."""

    phase: str
    step: int
    total: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read. `recipe` is what its recipe.yaml says, as plain values."""

    path: Path
    position: Position
    recipe: dict[str, Any]
    state: State


def save(root: Path, position: Position, state: State, recipe: Run, keep: int) -> Path:
    """Write a checkpoint into the folder `root`, then drop all but the newest `keep`. Returns its path.

    One that has its name already is replaced. Raises OutputError, on a full disk for example, with nothing half-written
    and the older checkpoints as they were; TypeError if the state holds what could not be read back.
    """
    _require_plain(state, "state")
    final = root / f"checkpoint-{position.total}"
    hidden = root / f"{_SAVING}{final.name}"
    try:
        _remove(hidden)
        hidden.mkdir(parents=True)
        _write(hidden, position, state, recipe)
        if final.exists():
            _retire(final)
        hidden.rename(final)
        _sync_folder(root)
        for number in sorted(_numbers(root))[:-keep]:
            _retire(root / f"checkpoint-{number}")
    except OSError as error:
        raise OutputError(f"checkpoint {final} cannot be written: {error.strerror}; make room and resume") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return final


def latest(root: Path) -> Path:
    """The newest checkpoint in the folder `root`. Raises CheckpointError if there is none."""
    numbers = _numbers(root)
    if not numbers:
        raise CheckpointError(f"there is no checkpoint in {root}; start the run without --resume")
    return root / f"checkpoint-{max(numbers)}"


def newest_total(root: Path) -> int:
    """Steps done at the newest checkpoint in `root`; 0 if there is none."""
    return max(_numbers(root), default=0)


def clean(root: Path) -> None:
    """Remove what killed saves and deletions left in `root`. Raises OutputError."""
    try:
        for path in root.iterdir() if root.is_dir() else ():
            if path.name.startswith((_SAVING, _RETIRED)):
                _remove(path)
    except OSError as error:
        raise OutputError(
            f"{error.filename} is left from a killed run and cannot be removed: {error.strerror}"
        ) from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, tensors on the CPU. Raises CheckpointError if it is missing, incomplete or damaged."""
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}")
    try:
        manifest = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"checkpoint {path} has format {manifest['format']}, this nopair reads {FORMAT}")
        position = Position(str(manifest["phase"]), int(manifest["step"]), int(manifest["total"]))
        digests = {name: str(manifest["sha256"][name]) for name in _FILES}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} has no readable checkpoint.json; {_REMOVE}") from error
    try:
        for name, digest in digests.items():
            if not (path / name).is_file():
                raise CheckpointError(f"checkpoint {path} is incomplete: {name} is missing; {_REMOVE}")
            if _digest(path / name) != digest:
                raise CheckpointError(f"checkpoint {path} has a damaged {name}; {_REMOVE}")
        recipe = recipe_of(path)
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"checkpoint {path} has a damaged state.pt; {_REMOVE}") from error
    return Checkpoint(path, position, recipe, state)


def recipe_of(path: Path) -> dict[str, Any]:
    """What the recipe.yaml of the checkpoint at `path` says, as plain values. Raises CheckpointError."""
    try:
        return parse_tree((path / "recipe.yaml").read_bytes(), "recipe.yaml")
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {path} has a recipe that this nopair cannot read: {error}") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror}") from error


def require_same_run(path: Path, theirs: dict[str, Any], recipe: Run) -> None:
    """Raises CheckpointError if `recipe_of` the checkpoint at `path` differs from `recipe` in more than FREE_KEYS."""
    try:
        # Keys that are newer than the checkpoint get their defaults.
        other = type(recipe).model_validate_json(json.dumps(theirs))
    except (ValidationError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path} is from another kind of run, or from another nopair") from error
    there, ours = dict(_leaves(other.model_dump())), dict(_leaves(recipe.model_dump()))
    for key in there | ours:
        free = any(key == name or key.startswith(f"{name}.") for name in FREE_KEYS)
        if not free and there.get(key) != ours.get(key):
            raise CheckpointError(
                f"checkpoint {path} is from another recipe: {key} is {there.get(key)!r} there and "
                f"{ours.get(key)!r} here; resume with {key} as there, or start anew in another output"
            )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _numbers(root: Path) -> list[int]:
    try:
        matches = [_NAME.fullmatch(path.name) for path in root.iterdir()] if root.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"checkpoints in {root} cannot be listed: {error.strerror}") from error
    return [int(match.group(1)) for match in matches if match]


def _write(folder: Path, position: Position, state: State, recipe: Run) -> None:
    with (folder / "state.pt").open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # torch's own writer reports a failed write this way.
            raise OSError(0, str(error).splitlines()[0]) from error
        file.flush()
        os.fsync(file.fileno())
    _write_text(folder / "recipe.yaml", dump(recipe))
    manifest = {
        "format": FORMAT,
        "phase": position.phase,
        "step": position.step,
        "total": position.total,
        "sha256": {name: _digest(folder / name) for name in _FILES},
    }
    _write_text(folder / "checkpoint.json", json.dumps(manifest, indent=2) + "\n")
    _sync_folder(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _retire(path: Path) -> None:
    """Delete a checkpoint such that its name is gone before its first file is."""
    retired = path.with_name(f"{_RETIRED}{path.name}")
    _remove(retired)
    path.rename(retired)
    _remove(retired)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _require_plain(value: object, where: str) -> None:
    """TypeError unless `torch.load(weights_only=True)` will read `value` back as it is."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise TypeError(f"{where} has a key of type {type(key).__name__}; use text or int")
            _require_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _require_plain(item, f"{where}[{number}]")
    elif not (value is None or isinstance(value, Tensor | bool | int | float | str)):
        raise TypeError(f"{where} is a {type(value).__name__}; use tensors, numbers, text, lists and dicts")
