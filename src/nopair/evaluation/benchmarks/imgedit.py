"""ImgEdit-Bench, single-turn (PKU-YuanGroup/ImgEdit): nine kinds of edit.

`basic_edit.json` maps a key to {"id": path of the image, "prompt", "edit_type"}; outputs are `<key>.png`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from nopair.errors import DataError
from nopair.evaluation.benchmarks.base import Benchmark, Item, LeftOut, collect, read_text

NAME: Final = "imgedit"
FILE: Final = "basic_edit.json"


def read(folder: Path, images: Path | None = None, listing: str = FILE) -> Benchmark:
    """The benchmark from `<folder>/<listing>`; image paths in it are relative to `images`, by default to `folder`.

    Raises:
        DataError: no such file, not of this form, or no usable item.
    """
    path = folder / listing
    text = read_text(path, f"name a folder that holds the benchmark's {FILE} and its images")
    try:
        pairs: Any = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}); copy it again") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise DataError(f"{path}: expected an object of items by key, as the benchmark has it; copy it again")
    return collect(NAME, str(folder), _items(pairs, folder if images is None else images))


def _items(pairs: list[tuple[str, Any]], images: Path) -> Iterator[Item | LeftOut]:
    """Of pairs, not of a dictionary, which would hide a key that is there twice."""
    for key, value in pairs:
        entry = dict(value) if isinstance(value, list) and all(isinstance(one, tuple) for one in value) else {}
        words = [entry.get(name) for name in ("id", "prompt", "edit_type")]
        if not all(isinstance(word, str) and word.strip() for word in words):
            yield LeftOut(f"key {key}", 'needs the words "id", "prompt" and "edit_type"')
            continue
        image, prompt, kind = map(str, words)
        yield Item(
            place=key, key=key, category=kind.strip().lower(), language="", instruction=prompt, source=images / image
        )
