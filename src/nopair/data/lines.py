"""JSON Lines: a photo per line, its file's path relative to the lines' file. All lines are held in memory.

A line is {"image", "instruction", "caption", "edited_caption", "category", "subject"?}; in the metadata.jsonl of
Hugging Face's imagefolder, `file_name` takes the place of `image`. There is no key for an edited image, and an unknown
key is an error.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from nopair.data.files import read_photo
from nopair.data.records import problem_of
from nopair.data.tables import Ask, Shapes, measured, state_of
from nopair.errors import DataError


@dataclass(frozen=True, slots=True)
class LinesTable:
    """A `nopair.data.tables.Table` of a file's lines."""

    file: Path
    asks: tuple[Ask, ...]
    photos: tuple[str, ...]

    @classmethod
    def read(cls, file: Path, key: Literal["image", "file_name"]) -> "LinesTable":
        """Read the lines; the photos themselves are read when they are asked for. `key` names the photo in a line.

        Raises:
            DataError: the file cannot be read or is empty, a line is malformed, or names an image that is not there.
        """
        found = [_parse(file, number, row, key) for number, row in _rows(file)]
        if not found:
            raise DataError(f"{file}: is empty; give a .jsonl file with a photo per line")
        return cls(file, tuple(ask for ask, _ in found), tuple(photo for _, photo in found))

    def __len__(self) -> int:
        return len(self.asks)

    def shapes(self) -> Iterator[Shapes]:
        """See `Table.shapes`. Reads the header of every photo."""
        return measured(self)

    def ask(self, row: int) -> Ask:
        """See `Table.ask`."""
        return self.asks[row]

    def photo(self, row: int) -> tuple[str, bytes]:
        """See `Table.photo`."""
        path = self.file.parent / self.photos[row]
        return str(path), read_photo(path)

    def state(self) -> str:
        """See `Table.state`."""
        return state_of([self.file, *(self.file.parent / photo for photo in self.photos)])


def faults(file: Path, key: Literal["image", "file_name"]) -> Iterator[str]:
    """What is wrong with each line, in order; nothing if `LinesTable.read` takes them all."""
    try:
        rows = _rows(file)
    except DataError as error:
        yield str(error)
        return
    for number, row in rows:
        try:
            _parse(file, number, row, key)
        except DataError as error:
            yield f"{error}; correct the line, or take it out"


def _rows(file: Path) -> list[tuple[int, str]]:
    try:
        rows = file.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(f"{file}: no such file or folder; check the path (docs/data.md has the forms)") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); give a .jsonl file with a photo per line") from None
    return [(number, row) for number, row in enumerate(rows, 1) if row.strip()]


def parse_ask(text: str | bytes, where: str, key: str | None = None) -> tuple[Ask, str]:
    """What a line asks, and the text under `key`, if there should be one.

    Raises:
        DataError: it is malformed.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: Invalid JSON ({error})") from None
    if not isinstance(tree, dict):
        raise DataError(f"{where}: Input should be an object")
    if tree.get("subject", "") is None:  # null says that it is missing
        del tree["subject"]
    named = tree.pop(key, None) if key is not None else ""
    if not isinstance(named, str) or (key is not None and not named):
        raise DataError(f"{where}: {key}: should be the path of a photo")
    try:
        return Ask.model_validate(tree), named
    except ValidationError as error:
        raise DataError(f"{where}: {problem_of(error)}") from None


def _parse(file: Path, number: int, row: str, key: str) -> tuple[Ask, str]:
    where = f"{file}, line {number}"
    ask, photo = parse_ask(row, where, key)
    try:
        there = (file.parent / photo).is_file()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise DataError(f"{where}: there is no image {photo}; paths are relative to {file.name}")
    return ask, photo
