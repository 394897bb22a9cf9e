"""What may be in a folder that a dataset is written to, so that nothing of anybody else is replaced or removed.

Ours are the shards that a card names, `shapes.bin`, the card and the README; beside them lies what a synthesis keeps.
While shards are put in place there is no card: `SWAP` names them then, so that a writer that was killed can go on.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nopair.data.files import is_folder
from nopair.errors import OutputError

CARD: Final = "dataset.json"
README: Final = "README.md"
SHAPES: Final = "shapes.bin"
WORK: Final = "journal"
"""Folder within the dataset for what need not be done or paid again. Training does not read it."""
REJECTED: Final = "rejected.jsonl"
"""What a synthesis set aside."""
SWAP: Final = ".nopair-shards.json"
_HIDDEN: Final = ".nopair-"
_SHARD: Final = re.compile(r"data/train-\d{5,}\.parquet")
_README: Final = re.compile(
    r"---\n\{\"configs\": .*\}\n---\n\n# Photos and what to ask of them\n\n\d+ records [^\n]* made with nopair\.\n"
    r"(\n## [^\n]+\n\n(- [^\n]*: \d+\n)*)*"
)


def check_dataset_folder(folder: Path) -> None:
    """Find out now, and not after the work is done, that no dataset can be written there.

    Raises:
        OutputError: it holds files of others where a dataset's would be, or cannot be read.
    """
    if not is_folder(folder):
        return
    ours = own_shards(folder)
    try:
        there = sorted(path.name for path in folder.iterdir())
        shards = sorted(path.name for path in (folder / "data").iterdir()) if is_folder(folder / "data") else []
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read ({error.strerror}); choose another place") from error
    others = [f"data/{name}" for name in shards if not name.startswith(_HIDDEN) and f"data/{name}" not in (ours or ())]
    if ours is None:
        others += [name for name in there if name in (CARD, SHAPES)]
        others += [] if is_own_readme(folder / README) else [README]
    else:
        others = [name for name in others if Path(name).match("train-*.parquet")]
    if others:
        raise OutputError(f"{folder}: holds {others[0]}, which is not of a dataset; choose a new or an empty folder")


def own_shards(folder: Path) -> frozenset[str] | None:
    """The shards, relative to the folder, that a dataset of ours has there; None if there is none."""
    named = [names for file in (CARD, SWAP) if (names := _named(folder / file)) is not None]
    return frozenset().union(*named) if named else None


def swap_of(shards: Iterable[str]) -> bytes:
    """What `SWAP` holds while those are put in place."""
    return json.dumps({"version": 0, "shards": [{"path": path} for path in sorted(shards)]}).encode()


def is_own_readme(path: Path) -> bool:
    """Whether a README is as we write it, of whatever dataset, or not there."""
    try:
        return _README.fullmatch(path.read_text(encoding="utf-8")) is not None
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def is_hidden(path: Path) -> bool:
    """Whether it is in what a writer of ours has not finished, or is such a file."""
    return any(part.startswith(_HIDDEN) for part in path.parts)


def _named(file: Path) -> list[str] | None:
    """The shards that a card of any version names; None if it is no card of ours."""
    try:
        tree = json.loads(file.read_bytes())
        names = [shard["path"] for shard in tree["shards"]]
        ours = isinstance(tree["version"], int) and all(_SHARD.fullmatch(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return names if names and ours else None
