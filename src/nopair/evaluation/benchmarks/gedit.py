"""GEdit-Bench (stepfun-ai/GEdit-Bench): eleven kinds of edit, in English and in Chinese.

Read from the parquet files that the hub has: columns `task_type`, `key`, `instruction`, `instruction_language` (en or
cn), `input_image`, `Intersection_exist`. Editors are shown `input_image`, as published outputs were made from.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from datasets import Features, Image, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from nopair.data.files import is_folder, make_folder, write_atomic
from nopair.data.images import load_image, save_image
from nopair.errors import DataError, ImageError
from nopair.evaluation.benchmarks.base import TWICE, Benchmark, Item, LeftOut, collect, not_a_name

NAME: Final = "gedit"
_COLUMNS: Final = ("task_type", "key", "instruction", "instruction_language", "input_image", "Intersection_exist")
_FETCH: Final = "hf download stepfun-ai/GEdit-Bench --repo-type dataset --local-dir FOLDER"


def read(folder: Path, work: Path) -> Benchmark:
    """The benchmark from a copy of the hub's folder. Its images are written below `work`, once.

    Raises:
        DataError: no parquet file, another schema, or no usable item.
        OutputError: `work` cannot be written.
    """
    return collect(NAME, str(folder), _items(folder, work))


def _items(folder: Path, work: Path) -> Iterator[Item | LeftOut]:
    seen: set[str] = set()
    for number, row in enumerate(_rows(folder), start=1):
        where = f"row {number}"
        words = {name: row[name] for name in _COLUMNS[:4]}
        blank = [name for name, value in words.items() if not isinstance(value, str) or not value.strip()]
        image = row["input_image"]
        if blank:
            yield LeftOut(where, f"has no {blank[0]}")
        elif not isinstance(image, dict) or not image.get("bytes"):
            yield LeftOut(f"{where}, key {words['key']}", "has no input_image")
        elif (bad := not_a_name(words["task_type"], words["instruction_language"], words["key"])) is not None:
            yield LeftOut(f"{where}, key {words['key'][:60]}", bad)
        else:
            place = f"fullset/{words['task_type']}/{words['instruction_language']}/{words['key']}"
            if place in seen:  # before its image takes the place of the first's
                yield LeftOut(place, TWICE)
                continue
            try:
                source = _extracted(image["bytes"], work, place)
            except ImageError as error:
                yield LeftOut(f"{where}, {place}", str(error))
                continue
            seen.add(place)
            flag = row["Intersection_exist"]
            yield Item(
                place=place,
                key=words["key"],
                category=words["task_type"],
                language=words["instruction_language"],
                instruction=words["instruction"],
                source=source,
                in_intersection=None if flag is None else bool(flag),
            )


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    files = sorted(str(path) for path in folder.rglob("*.parquet")) if is_folder(folder) else []
    if not files:
        raise DataError(f"{folder}: no parquet file of GEdit-Bench in it; fetch it with: {_FETCH}")
    try:
        rows: Any = load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)
        assert isinstance(rows, IterableDataset)
        features: Features | None = rows.features
        missing = [name for name in _COLUMNS if features is None or name not in features]
        if missing:
            raise DataError(f"{folder}: is not GEdit-Bench, column {missing[0]} is missing; fetch it with: {_FETCH}")
        yield from rows.select_columns(list(_COLUMNS)).cast_column("input_image", Image(decode=False))
    except (DatasetGenerationError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{folder}: cannot be read ({reason}); fetch it again with: {_FETCH}") from error


def _extracted(content: bytes, work: Path, place: str) -> Path:
    """The image as the benchmark's outputs have it beside them: `<place>_SRCIMG.png`.

    A file beside it holds the digest of what it was made from, so that another image of that name is not taken for it.
    """
    target = work / f"{place}_SRCIMG.png"
    origin = target.with_suffix(".sha256")
    digest = hashlib.sha256(content).hexdigest()
    if target.is_file() and origin.is_file() and origin.read_text(encoding="utf-8") == digest:
        return target
    make_folder(target.parent)
    raw = target.with_suffix(".raw")
    write_atomic(raw, content)
    try:
        pixels = load_image(raw)
    finally:
        raw.unlink()
    write_atomic(origin, b"")  # first: a run that ends here leaves an image without an origin, to be made anew
    save_image(pixels, target)
    write_atomic(origin, digest.encode("ascii"))
    return target
