"""What of a benchmark is in a dataset: its pictures, however scaled or compressed, and its instructions.

A benchmark is a folder in any of the forms they come in (GEdit-Bench, ImgEdit and their like): image files, Parquet or
Arrow files with pictures inside, and JSON, JSON Lines or tables with instructions.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from nopair.data.files import IMAGE_FORMATS, is_folder
from nopair.data.images import decode_image, to_pillow
from nopair.errors import DataError, ImageError
from nopair.synthesis.fingerprint import Fingerprint

NEAR: Final = 6
"""Differing bits up to which two pictures count as one."""
_INSTRUCTIONS: Final = frozenset({"instruction", "instructions", "prompt", "edit_prompt", "edit_instruction"})
"""Names of fields that hold what a benchmark asks for."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Pictures by fingerprint, and instructions as `plain` makes them. `unreadable` counts pictures that are none."""

    name: str
    pictures: tuple[Fingerprint, ...]
    instructions: frozenset[str]
    unreadable: int

    @property
    def told(self) -> str:
        """What was looked for: "nothing of it is there" is worth as much as was read."""
        lost = f", {self.unreadable} pictures unreadable" if self.unreadable else ""
        return f"{self.name}: {len(self.pictures)} pictures and {len(self.instructions)} instructions read{lost}"


def plain(instruction: str) -> str:
    """An instruction's words alone, in small letters: two that differ in spaces, case or full stops are one."""
    return " ".join(re.findall(r"\w+", instruction.casefold()))


def picture_of(content: bytes) -> Fingerprint | None:
    """The fingerprint of an image file's bytes, seen as a photo that is scanned; None if it is none."""
    try:
        return Fingerprint.of(to_pillow(decode_image(content, "the picture")))
    except ImageError:
        return None


def read_benchmark(folder: Path) -> Benchmark:
    """A benchmark's pictures and instructions.

    Raises:
        DataError: there is no such folder, or it holds neither pictures nor instructions, or a file of it is damaged.
    """
    if not is_folder(folder):
        raise DataError(f"{folder}: no such folder of a benchmark; check the path")
    pictures: list[Fingerprint] = []
    words: set[str] = set()
    unreadable = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for content, instruction in _cells(path):
            if content is not None:
                found = picture_of(content)
                unreadable += found is None
                pictures += [] if found is None else [found]
            if instruction is not None and plain(instruction):
                words.add(plain(instruction))
    if not pictures and not words:
        raise DataError(f"{folder}: holds no pictures and no instructions; give the folder of a benchmark")
    return Benchmark(folder.resolve().name, tuple(pictures), frozenset(words), unreadable)


def _cells(path: Path) -> Iterator[tuple[bytes | None, str | None]]:
    """Pictures and instructions in one file, one or the other at a time."""
    suffix = path.suffix.lower()
    try:
        if suffix in IMAGE_FORMATS:
            yield path.read_bytes(), None
        elif suffix == ".json":
            yield from ((None, text) for text in _texts(json.loads(path.read_text(encoding="utf-8"))))
        elif suffix == ".jsonl":
            for line in filter(str.strip, path.read_text(encoding="utf-8").split("\n")):
                yield from ((None, text) for text in _texts(json.loads(line)))
        elif suffix in (".parquet", ".arrow"):
            for batch in _batches(path):
                for row in batch.to_pylist():
                    yield from ((None, text) for text in _texts(row))
                    yield from ((content, None) for content in _contents(row))
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({str(error).partition(chr(10))[0]}); copy it again") from None


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.suffix.lower() == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=64)
    else:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            yield from stream


def _texts(tree: Any, name: str = "") -> Iterator[str]:
    """Every text under a field of `_INSTRUCTIONS`, however deep."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _texts(value, str(key))
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value, name)
    elif isinstance(tree, str) and name.casefold() in _INSTRUCTIONS:
        yield tree


def _contents(tree: Any) -> Iterator[bytes]:
    """Whatever is bytes, however deep: pictures stand alone, beside their names, or in lists of such."""
    if isinstance(tree, bytes):
        yield tree
    elif isinstance(tree, dict):
        yield from (content for value in tree.values() for content in _contents(value))
    elif isinstance(tree, list):
        yield from (content for value in tree for content in _contents(value))
