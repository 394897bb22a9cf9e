"""A set of photos with what to ask of each, whatever it is stored as: any row can be asked for at any time.

a folder with dataset.json          records in Parquet shards: the form for any size, see `nopair.data.parquet`
a folder with metadata.jsonl        Hugging Face's imagefolder, see `nopair.data.lines`
a .jsonl file                       a photo per line, see `nopair.data.lines`
a .tar file, or a folder of them    WebDataset, see `nopair.data.tars`
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer
from pydantic import BaseModel, ConfigDict, model_validator

from nopair.data.files import is_folder
from nopair.data.records import CATEGORIES, NO_SUBJECT, Category, Words, measure
from nopair.errors import DataError

METADATA: Final = "metadata.jsonl"
"""Of Hugging Face's imagefolder."""


class Ask(BaseModel):
    """What is asked of a photo, complete. `subject` is the noun of the object it is about; see `NO_SUBJECT`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    instruction: Words
    caption: Words
    edited_caption: Words
    category: Category
    subject: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> "Ask":
        if self.category in NO_SUBJECT and not self.subject.strip():
            raise ValueError(NO_SUBJECT[self.category])
        if self.category == "nothing" and self.edited_caption != self.caption:
            raise ValueError("to do nothing needs the same edited_caption and caption")
        return self


@dataclass(frozen=True, slots=True)
class Shapes:
    """Of some rows: size of the upright photo, and its category's number in `CATEGORIES`."""

    heights: Integer[np.ndarray, " row"]
    widths: Integer[np.ndarray, " row"]
    categories: Integer[np.ndarray, " row"]


@runtime_checkable
class Table(Protocol):
    """Rows of photos with what to ask of each, complete and in a fixed order. Threads may share it."""

    def __len__(self) -> int: ...

    def shapes(self) -> Iterator[Shapes]:
        """Sizes and categories of all rows, in order, some at a time.

        Raises:
            ImageError: a photo of which it is not known cannot be read.
            DataError: what is written about them is damaged.
        """
        ...

    def ask(self, row: int) -> Ask:
        """What to ask of the photo.

        Raises:
            DataError: it cannot be read; names file, row and field.
        """
        ...

    def photo(self, row: int) -> tuple[str, bytes]:
        """Its name for messages, and its file's bytes.

        Raises:
            ImageError: it cannot be read, or is not the photo that was written.
        """
        ...

    def state(self) -> str:
        """`state_of` all files that rows come from, photos among them: another one, if any row or photo may be another.

        Raises:
            DataError: it cannot be found out.
        """
        ...


def open_table(path: Path) -> Table:
    """The photos at `path`, of whatever kind it is.

    Raises:
        DataError: there is nothing of a known kind, or it is malformed, incomplete or empty.
    """
    from nopair.data.lines import LinesTable
    from nopair.data.parquet import ParquetTable
    from nopair.data.shards import CARD
    from nopair.data.tars import TarTable

    if not is_folder(path):
        return TarTable.read([path]) if path.suffix.lower() == ".tar" else LinesTable.read(path, "image")
    if (path / CARD).is_file():
        return ParquetTable.read(path)
    if (path / METADATA).is_file():
        return LinesTable.read(path / METADATA, "file_name")
    tars = sorted(path.glob("*.tar"))
    if tars:
        return TarTable.read(tars)
    raise DataError(f"{path}: holds no dataset; expected {CARD}, {METADATA} or .tar files in it")


def measured(table: Table) -> Iterator[Shapes]:
    """Shapes of a table that keeps none: every photo is read.

    Raises:
        ImageError: a photo cannot be read.
    """
    for row in range(len(table)):
        name, content = table.photo(row)
        facts = measure(content, name)
        category = category_number(table.ask(row).category)
        yield Shapes(np.array([facts.height]), np.array([facts.width]), np.array([category]))


def state_of(files: Iterable[Path]) -> str:
    """Hex digest of the files' names, sizes and times, without reading them; one that is not there counts as that.

    The time at which the system last saw a file change is among them, which no program can set back.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(file.absolute()) + b"\0")
        try:
            found = file.stat()
        except (OSError, ValueError):  # a name that no file can have
            digest.update(b"none\0")
        else:
            digest.update(f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0".encode("ascii"))
    return digest.hexdigest()


def category_number(category: str) -> int:
    """Its place in `CATEGORIES`."""
    return CATEGORIES.index(category)
