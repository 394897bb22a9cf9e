"""The outputs of an editor on a benchmark, made once."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from nopair.data.files import make_folder, write_atomic
from nopair.device import release
from nopair.errors import OutputError
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.editors.base import Contestant

ABOUT: Final = "editor.json"


def make_outputs(
    editor: Contestant, items: Sequence[Item], folder: Path, told: Callable[[int], None]
) -> dict[str, str]:
    """Make what is not there yet. Returns why the others have no output, by place.

    `told` is called with the number of items done.

    Raises:
        OutputError: the folder holds outputs of an editor with other settings, or cannot be written.
        EndpointError: a server refuses us altogether, or is gone.
    """
    make_folder(folder)
    _same(editor, folder / ABOUT)
    waiting = [item for item in items if not editor.output(item, folder).is_file()]
    done = len(items) - len(waiting)
    problems: dict[str, str] = {}
    told(done)

    def tell(item: Item, problem: str | None) -> None:
        nonlocal done
        done += 1
        if problem is not None:
            problems[item.place] = problem
        told(done)

    editor.make(waiting, folder, tell)
    release()
    return problems


def _same(editor: Contestant, path: Path) -> None:
    wanted = json.loads(json.dumps({"name": editor.name} | dict(editor.about)))
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OutputError(f"{path}: is not JSON ({error}); remove {path.parent} to edit anew") from error
        changed = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        if changed:
            old, new = (values.get(changed[0]) for values in (found, wanted))
            raise OutputError(
                f"{path.parent}: holds outputs of {editor.name} with another {changed[0]} ({old}, now {new}); give "
                "this one another ,name= or remove the folder"
            )
    else:
        write_atomic(path, json.dumps(wanted, indent=2, ensure_ascii=False).encode("utf-8") + b"\n")
