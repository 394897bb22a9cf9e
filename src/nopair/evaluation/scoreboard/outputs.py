"""The outputs of an editor on a benchmark, made once for each edit that is asked for."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nopair.data.files import make_folder, write_atomic
from nopair.device import release
from nopair.digests import edit_digest
from nopair.errors import EndpointError, OutputError
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.editors.base import Contestant

ABOUT: Final = "editor.json"
ASKED: Final = "asked.json"
"""By place, the digest of the instruction and the image that the output there was made for."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Items without an output of their own, in the benchmark's order.

    Attributes:
        items: all of them.
        stale: places of those among them where an output lies that was made for another instruction or image, or for
            nobody knows which. They are made anew.
    """

    items: tuple[Item, ...]
    stale: frozenset[str]


@dataclass(frozen=True, slots=True)
class Made:
    """What came of editing: why items have no output, by place, and why it ended before all were tried, or None."""

    problems: Mapping[str, str]
    ended: EndpointError | None = None


def waiting(editor: Contestant, items: Sequence[Item], folder: Path) -> Waiting:
    """What is still to be made. Outputs that somebody else has made are taken as they are.

    Raises:
        OutputError: the list of what the outputs were made for is broken.
        DataError: an item's image cannot be read.
    """
    known = _read(folder / ASKED) if editor.makes else {}
    missing = {item.place for item in items if not editor.output(item, folder).is_file()}
    stale = frozenset(
        item.place
        for item in items
        if editor.makes
        and item.place not in missing
        and known.get(item.place) != edit_digest(item.instruction, item.source)
    )
    return Waiting(tuple(item for item in items if item.place in missing or item.place in stale), stale)


def make_outputs(editor: Contestant, items: Sequence[Item], folder: Path, told: Callable[[int], None]) -> Made:
    """Make what is not there yet, or was made for another edit.

    `told` is called with the number of items done.

    Raises:
        OutputError: the folder holds outputs of an editor with other settings, or cannot be written.
        DataError: an item's image cannot be read.
    """
    make_folder(folder)
    _same(editor, folder / ABOUT)
    left = waiting(editor, items, folder)
    if editor.makes:
        _prepare(editor, left, folder)
    done = len(items) - len(left.items)
    problems: dict[str, str] = {}
    told(done)

    def tell(item: Item, problem: str | None) -> None:
        nonlocal done
        done += 1
        if problem is not None:
            problems[item.place] = problem
        told(done)

    ended: EndpointError | None = None
    try:
        editor.make(left.items, folder, tell)
    except EndpointError as error:
        ended = error
        lacking = [item.place for item in left.items if not editor.output(item, folder).is_file()]
        problems = dict.fromkeys(lacking, str(error)) | problems
    release()
    return Made(problems, ended)


def _prepare(editor: Contestant, left: Waiting, folder: Path) -> None:
    """Old outputs go first, then it is written what will be made: whatever is there later was made for that."""
    for item in left.items:
        try:
            editor.output(item, folder).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{editor.output(item, folder)}: was made for another edit and cannot be removed ({error.strerror}); "
                "remove it yourself"
            ) from error
    known = _read(folder / ASKED)
    now = known | {item.place: edit_digest(item.instruction, item.source) for item in left.items}
    if now != known:
        _write(folder / ASKED, now)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error}); remove {path.parent} to edit anew") from error
    if not isinstance(found, dict):
        raise OutputError(f"{path}: expected an object; remove {path.parent} to edit anew")
    return found


def _write(path: Path, values: Mapping[str, Any]) -> None:
    write_atomic(path, json.dumps(values, indent=2, ensure_ascii=False).encode("utf-8") + b"\n")


def _same(editor: Contestant, path: Path) -> None:
    wanted = json.loads(json.dumps({"name": editor.name} | dict(editor.about)))
    found = _read(path)
    if not path.is_file():
        _write(path, wanted)
        return
    changed = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if changed:
        old, new = (values.get(changed[0]) for values in (found, wanted))
        raise OutputError(
            f"{path.parent}: holds outputs of {editor.name} with another {changed[0]} ({old}, now {new}); give "
            "this one another ,name= or remove the folder"
        )
