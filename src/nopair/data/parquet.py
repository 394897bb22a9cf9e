"""Records of a dataset folder, any of them at any time, without holding or copying the dataset.

Opening reads the shards' footers and three narrow columns. A row's words come with their row group's words, a few
hundred rows. Its photo, if inside, is fetched from its place in the file alone: `nopair.data.shards` keeps photos
uncompressed, those of a row group in one page, in which the last bytes are `length of photo (4 bytes), photo` of each
row in turn. So the lengths tell the places. A photo's SHA-256 is compared with its record's, so no other bytes can pass
for it.

`datasets` reads the same files (a test shows it), but has to copy them all into its own format first to do this.
"""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from nopair.data.files import read_part, read_photo
from nopair.data.records import CATEGORIES, problem_of
from nopair.data.shards import Card, opened, read_group
from nopair.data.tables import Ask, Shapes
from nopair.errors import DataError, ImageError

GROUPS_KEPT: Final = 64
"""Row groups whose words are kept in memory, some hundred kilobytes each."""
WORDS: Final = ["id", *Ask.model_fields, "image_hash", "image_length", "image.path"]


@dataclass(frozen=True, slots=True)
class _Shard:
    """A file, its first row in the dataset, and its footer, which is not read again for every row group."""

    path: Path
    first: int
    footer: pq.FileMetaData


@dataclass(frozen=True, slots=True)
class _Group:
    """A row group: the shard it is in, its number there, its first row in the dataset, and where its photos end in the
    file."""

    shard: "_Shard"
    number: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Words of a row group, and where each row's photo begins in the file."""

    words: pa.Table
    starts: tuple[int, ...]


@final
class ParquetTable:
    """A `nopair.data.tables.Table` of a dataset folder."""

    def __init__(self, folder: Path, groups: tuple[_Group, ...], shapes: Shapes) -> None:
        self._folder = folder
        self._groups = groups
        self._firsts = [group.first for group in groups]
        self._shapes = shapes
        self._loaded: OrderedDict[int, _Loaded] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def read(cls, folder: Path) -> "ParquetTable":
        """Open a dataset.

        Raises:
            DataError: it is damaged or of another schema, or records lack what training needs.
        """
        card = Card.read(folder)
        lacking = ", ".join(f"{count} lack {name}" for name, count in card.missing.items() if count)
        if lacking:
            raise DataError(f"{folder}: of its {card.records} records {lacking}; nopair synthesize can write it")
        groups: list[_Group] = []
        shapes: list[Shapes] = []
        row = 0
        for shard in card.shards:
            path = folder / shard.path
            with opened(path) as file:
                opened_shard = _Shard(path, row, file.metadata)
                for number in range(file.num_row_groups):
                    found = file.metadata.row_group(number)
                    groups.append(_Group(opened_shard, number, row, _end_of_photos(path, found)))
                    row += found.num_rows
                try:
                    shapes.append(_shapes(path, file.read(["height", "width", "category"], use_threads=False)))
                except (OSError, pa.ArrowException) as error:
                    raise DataError(f"{path}: damaged ({error}); copy the dataset again") from error
        if row != card.records:
            raise DataError(f"{folder}: holds {row} records, its card says {card.records}; write the dataset again")
        return cls(folder, tuple(groups), _joined(shapes))

    def __len__(self) -> int:
        return len(self._shapes.heights)

    def shapes(self) -> Shapes:
        """See `Table.shapes`."""
        return self._shapes

    def ask(self, row: int) -> Ask:
        """See `Table.ask`."""
        group, place, loaded = self._locate(row)
        tree = {name: loaded.words[name][place].as_py() for name in Ask.model_fields}
        try:
            return Ask(**tree)
        except ValidationError as error:
            raise DataError(f"{_where(group, place)}: {problem_of(error)}; mend the record or leave it out") from error

    def photo(self, row: int) -> tuple[str, bytes]:
        """See `Table.photo`."""
        group, place, loaded = self._locate(row)
        fields: dict[str, Any] = {name: loaded.words[name][place].as_py() for name in ("id", "image_hash", "image")}
        path = fields["image"]["path"]
        if path is not None:
            name = str(self._folder / path)
            content = read_photo(self._folder / path)
        else:
            name = f"{_where(group, place)} ({fields['id']})"
            content = read_part(
                group.shard.path, loaded.starts[place], loaded.words["image_length"][place].as_py(), name
            )
        if hashlib.sha256(content).hexdigest() != fields["image_hash"]:
            raise ImageError(f"{name}: is not the photo that the record was made from; copy the dataset again")
        return name, content

    def _locate(self, row: int) -> tuple[_Group, int, _Loaded]:
        number = bisect_right(self._firsts, row) - 1
        group = self._groups[number]
        with self._lock:
            loaded = self._loaded.pop(number, None)
        if loaded is None:  # two threads may load the same one, which does no harm
            loaded = _load(group)
        with self._lock:
            self._loaded[number] = loaded
            while len(self._loaded) > GROUPS_KEPT:
                self._loaded.popitem(last=False)
        return group, row - group.first, loaded


def _where(group: _Group, place: int) -> str:
    return f"{group.shard.path}, row {group.first + place - group.shard.first}"


def _load(group: _Group) -> _Loaded:
    with opened(group.shard.path, group.shard.footer) as file:
        words = read_group(group.shard.path, file, group.number, WORDS)
    paths = words["image"].combine_chunks().field("path").to_pylist()
    lengths = words["image_length"].to_pylist()
    taken = [4 + length if path is None else 0 for path, length in zip(paths, lengths, strict=True)]
    ends = [group.end - sum(taken) + upto for upto in accumulate(taken)]
    return _Loaded(words, tuple(end - length for end, length in zip(ends, lengths, strict=True)))


def _end_of_photos(path: Path, group: Any) -> int:
    """Where the photos inside a row group end in the file."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "image.bytes":
            if column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
                raise DataError(f"{path}: was not written by nopair; rewrite it with nopair data import records")
            return column.data_page_offset + column.total_compressed_size
    raise DataError(f"{path}: has no column image.bytes; import it with nopair data import")


def _joined(parts: Sequence[Shapes]) -> Shapes:
    return Shapes(
        np.concatenate([part.heights for part in parts]),
        np.concatenate([part.widths for part in parts]),
        np.concatenate([part.categories for part in parts]),
    )


def _shapes(path: Path, table: pa.Table) -> Shapes:
    categories = table["category"].combine_chunks().dictionary_encode()
    unknown = set(categories.dictionary.to_pylist()) - set(CATEGORIES)
    if unknown or categories.null_count:
        raise DataError(f"{path}: holds unknown categories ({unknown or 'missing'}); see nopair data validate")
    codes = np.array([CATEGORIES.index(name) for name in categories.dictionary.to_pylist()], np.uint8)
    heights, widths = (table[name].to_numpy() for name in ("height", "width"))
    return Shapes(heights, widths, codes[categories.indices.to_numpy()])
