"""Edits of one's own: a JSON Lines file, or a folder of images with an instruction beside each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nopair.data.files import IMAGE_FORMATS, is_folder
from nopair.errors import DataError
from nopair.evaluation.benchmarks.base import Benchmark, Item, LeftOut, collect, read_text

_Words = Annotated[str, Field(min_length=1)]
LINES: Final = "jsonl"
FOLDER: Final = "folder"
OWN: Final = (LINES, FOLDER)
"""Names of benchmarks that are a user's."""
PLAIN: Final = "edit"
"""Category of items that name none."""


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    image: _Words
    instruction: _Words
    key: _Words | None = None
    category: _Words = PLAIN
    language: str = ""
    caption: str = ""


def read_lines(file: Path) -> Benchmark:
    """A line is {"image", "instruction", "key"?, "category"?, "language"?, "caption"?}, paths relative to the file.

    Without a key, an item is called by the number of its line.

    Raises:
        DataError: the file cannot be read, or has no usable line.
    """
    lines = read_text(file, "name a .jsonl file with an edit a line").split("\n")
    return collect(LINES, str(file), _from_lines(file, lines))


def _from_lines(file: Path, lines: list[str]) -> Iterator[Item | LeftOut]:
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        where = f"line {number}"
        try:
            line = _Line.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in problem["loc"])
            yield LeftOut(where, f"{key + ': ' if key else ''}{problem['msg']}")
            continue
        key = f"{number:05}" if line.key is None else line.key
        parts = [line.category, *([line.language] if line.language else []), key]
        yield Item(
            place="/".join(parts),
            key=key,
            category=line.category,
            language=line.language,
            instruction=line.instruction,
            source=file.parent / line.image,
            caption=line.caption,
        )


def read_folder(folder: Path) -> Benchmark:
    """Every image with a text file of its name beside it, which holds the instruction. A subfolder is a category.

    Raises:
        DataError: there is no such folder, or nothing usable in it.
    """
    if not is_folder(folder):
        raise DataError(f"{folder}: no such folder; check the path")
    return collect(FOLDER, str(folder), _from_folder(folder))


def _from_folder(folder: Path) -> Iterator[Item | LeftOut]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in IMAGE_FORMATS or any(part.startswith(".") for part in relative.parts):
            continue
        category = "-".join(relative.parts[:-1]) or PLAIN
        try:
            instruction = read_text(path.with_suffix(".txt"), "write the instruction into it")
        except DataError as error:
            yield LeftOut(str(relative), str(error))
            continue
        yield Item(
            place=f"{category}/{path.stem}",
            key=path.stem,
            category=category,
            language="",
            instruction=instruction.strip(),
            source=path,
        )
