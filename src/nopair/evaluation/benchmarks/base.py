"""A benchmark: edits that are asked for, each with its image, and what of it could not be read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nopair.data.images import load_image
from nopair.errors import DataError, ImageError

_PART: Final = re.compile(r"[^\x00-\x1f/\\:]{1,120}")
"""A key, a category or a language that can be the name of a file."""

TWICE: Final = "is there twice; the first counts"
"""Why a second item of one name is left out."""


@dataclass(frozen=True, slots=True)
class Item:
    """One edit.

    Attributes:
        place: where its output lies below an editor's folder, in the benchmark's own layout and without suffix, such
            as "fullset/color_alter/en/0a1b". No two items of a benchmark have the same.
        key: the benchmark's own name of it.
        category: kind of edit; scores are averaged within it first.
        language: of the instruction ("en", "cn"), or "" where the benchmark has only one.
        instruction: what to change.
        source: file of the image before the edit.
        in_intersection: the benchmark's own mark of items that count in its smaller table; None if it has none.
        caption: what the result shows, for scorers that compare with words; "" if unknown.
        subject_images: photos of the subject that must reappear, for subject-driven benchmarks.
    """

    place: str
    key: str
    category: str
    language: str
    instruction: str
    source: Path
    in_intersection: bool | None = None
    caption: str = ""
    subject_images: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something in a benchmark's files that is no usable item, and why."""

    where: str
    why: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Items in the order of the files. `origin` says where they were read."""

    name: str
    origin: str
    items: tuple[Item, ...]
    left_out: tuple[LeftOut, ...]

    def only(self, languages: frozenset[str], per_category: int | None) -> "Benchmark":
        """The items of some languages (all, if none is named), at most `per_category` of each category and language.

        Raises:
            DataError: nothing is left.
        """
        counts: dict[tuple[str, str], int] = {}
        kept = []
        for item in self.items:
            group = (item.category, item.language)
            counts[group] = counts.get(group, 0) + 1
            if (not languages or item.language in languages) and (
                per_category is None or counts[group] <= per_category
            ):
                kept.append(item)
        if not kept:
            known = ", ".join(sorted({item.language or "(none)" for item in self.items}))
            raise DataError(f"{self.origin}: no item in the languages asked for; it has {known}")
        return Benchmark(self.name, self.origin, tuple(kept), self.left_out)


def collect(name: str, origin: str, found: Iterable[Item | LeftOut]) -> Benchmark:
    """Items that can be used, and those that cannot: broken images, second items of one name, blank instructions.

    Raises:
        DataError: no item can be used.
    """
    items: dict[str, Item] = {}
    left_out: list[LeftOut] = []
    for one in found:
        if isinstance(one, LeftOut):
            left_out.append(one)
            continue
        why = TWICE if one.place in items else _problem(one)
        if why is None:
            items[one.place] = one
        else:
            left_out.append(LeftOut(one.place, why))
    if not items:
        first = f": {left_out[0].where}: {left_out[0].why}" if left_out else ""
        raise DataError(f"{origin}: holds no usable item of {name} ({len(left_out)} left out{first}); check the folder")
    return Benchmark(name, origin, tuple(items.values()), tuple(left_out))


def not_a_name(*parts: str) -> str | None:
    """What is wrong with the first of some words that cannot be the name of a file; None if all can."""
    for part in parts:
        if not _PART.fullmatch(part) or part.strip(". ") == "":
            return f"{part[:120]!r} cannot be the name of a file"
    return None


def _problem(item: Item) -> str | None:
    if not item.instruction.strip():
        return "has no instruction"
    bad = not_a_name(item.key, item.category, *item.place.split("/"))
    if bad is not None:
        return bad
    for image in (item.source, *item.subject_images):
        try:
            load_image(image)
        except ImageError as error:
            return str(error)
    return None


def read_text(path: Path, what: str) -> str:
    """A text file of a benchmark.

    Raises:
        DataError: it is not there, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file; {what}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {what}") from error
