"""Records of a dataset folder, any of them at any time, without holding or copying the dataset.

Opening reads the card; `shapes.bin` is read through once, to put the records in order. A shard's footer is read when a
row of it is asked for, and the last ones are kept. A row's words come with their row group's words, a few hundred rows.
Its photo, if inside, is fetched from its place in the file alone: `nopair.data.shards` keeps photos uncompressed, those
of a row group in one page, in which the last bytes are `length of photo (4 bytes), photo` of each row in turn. So the
lengths tell the places. A photo's SHA-256 is compared with its record's, so no other bytes can pass for it.

`datasets` reads the same files (a test shows it), but has to copy them all into its own format first to do this.
"""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, Final, Generic, TypeVar, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from nopair.data.files import read_part, read_photo
from nopair.data.records import problem_of
from nopair.data.shards import CARD, SHAPE, SHAPES, Card, opened, read_group
from nopair.data.tables import Ask, Shapes, state_of
from nopair.errors import DataError, ImageError

GROUPS_KEPT: Final = 64
"""Row groups whose words are kept in memory, some hundred kilobytes each."""
SHARDS_KEPT: Final = 64
"""Shards whose footers are kept in memory, some hundred kilobytes each."""
WORDS: Final = ["id", *Ask.model_fields, "image_hash", "image_length", "image.path"]
_SHAPES_AT_ONCE: Final = 2**16
K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Shard:
    """A file, its footer, the first row of each of its row groups, and where in the file the photos of each end."""

    path: Path
    footer: pq.FileMetaData
    firsts: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Words of a row group, and where each row's photo begins in the file."""

    words: pa.Table
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    """Where a row is: in which file, its number there, its row group, and its place in that."""

    path: Path
    number: int
    group: _Loaded
    place: int

    def __str__(self) -> str:
        return f"{self.path}, row {self.number}"


@final
class ParquetTable:
    """A `nopair.data.tables.Table` of a dataset folder. What it holds in memory does not grow with the records."""

    def __init__(self, folder: Path, card: Card) -> None:
        self._folder = folder
        self._card = card
        self._firsts = [0, *accumulate(shard.records for shard in card.shards)]
        self._shards = _Recent[int, _Shard](SHARDS_KEPT, self._open)
        self._groups = _Recent[tuple[int, int], _Loaded](GROUPS_KEPT, self._load)

    @classmethod
    def read(cls, folder: Path) -> "ParquetTable":
        """Open a dataset: its card is read, and that its files are there; the first of them is opened.

        Raises:
            DataError: it is damaged or of another schema, or records lack what training needs.
        """
        card = Card.read(folder)
        lacking = ", ".join(f"{count} lack {name}" for name, count in card.missing.items() if count)
        if lacking:
            raise DataError(f"{folder}: of its {card.records} records {lacking}; nopair synthesize can write it")
        for file in (SHAPES, *(shard.path for shard in card.shards)):
            if not (folder / file).is_file():
                raise DataError(f"{folder / file}: is missing; copy the dataset again")
        table = cls(folder, card)
        table._shards[0]
        return table

    def __len__(self) -> int:
        return self._card.records

    def shapes(self) -> Iterator[Shapes]:
        """See `Table.shapes`."""
        path = self._folder / SHAPES
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while content := file.read(_SHAPES_AT_ONCE * SHAPE.itemsize):
                    digest.update(content)
                    rows = np.frombuffer(content[: len(content) // SHAPE.itemsize * SHAPE.itemsize], SHAPE)
                    yield Shapes(rows["height"], rows["width"], rows["category"])
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); copy the dataset again") from error
        if digest.hexdigest() != self._card.shapes_hash:
            raise DataError(f"{path}: is not what was written with the records; copy the dataset again")

    def ask(self, row: int) -> Ask:
        """See `Table.ask`."""
        found = self._locate(row)
        tree = {name: found.group.words[name][found.place].as_py() for name in Ask.model_fields}
        try:
            return Ask(**tree)
        except ValidationError as error:
            raise DataError(f"{found}: {problem_of(error)}; mend the record or leave it out") from error

    def photo(self, row: int) -> tuple[str, bytes]:
        """See `Table.photo`."""
        found = self._locate(row)
        words, place = found.group.words, found.place
        fields: dict[str, Any] = {name: words[name][place].as_py() for name in ("id", "image_hash", "image")}
        path = fields["image"]["path"]
        if path is not None:
            name = str(self._folder / path)
            content = read_photo(self._folder / path)
        else:
            name = f"{found} ({fields['id']})"
            content = read_part(found.path, found.group.starts[place], words["image_length"][place].as_py(), name)
        if hashlib.sha256(content).hexdigest() != fields["image_hash"]:
            raise ImageError(f"{name}: is not the photo that the record was made from; copy the dataset again")
        return name, content

    def state(self) -> str:
        """See `Table.state`. Reads the places of photos that are files of their own."""
        return state_of(self._files())

    def _files(self) -> Iterator[Path]:
        yield from (self._folder / name for name in (CARD, SHAPES))
        for told in self._card.shards:
            path = self._folder / told.path
            yield path
            with opened(path) as file:
                for group in range(file.num_row_groups):
                    places = read_group(path, file, group, ["image.path"])["image"].combine_chunks().field("path")
                    yield from (self._folder / place for place in places.drop_null().to_pylist())

    def _locate(self, row: int) -> _Row:
        number = bisect_right(self._firsts, row) - 1
        shard = self._shards[number]
        within = row - self._firsts[number]
        group = bisect_right(shard.firsts, within) - 1
        return _Row(shard.path, within, self._groups[number, group], within - shard.firsts[group])

    def _open(self, number: int) -> _Shard:
        told = self._card.shards[number]
        path = self._folder / told.path
        with opened(path) as file:
            footer = file.metadata
        if footer.num_rows != told.records:
            raise DataError(
                f"{path}: holds {footer.num_rows} records, the card says {told.records}; write the dataset again"
            )
        groups = [footer.row_group(one) for one in range(footer.num_row_groups)]
        firsts = accumulate((group.num_rows for group in groups[:-1]), initial=0)
        return _Shard(path, footer, tuple(firsts), tuple(_end_of_photos(path, group) for group in groups))

    def _load(self, which: tuple[int, int]) -> _Loaded:
        shard, group = self._shards[which[0]], which[1]
        with opened(shard.path, shard.footer) as file:
            words = read_group(shard.path, file, group, WORDS)
        paths = words["image"].combine_chunks().field("path").to_pylist()
        lengths = words["image_length"].to_pylist()
        taken = [4 + length if path is None else 0 for path, length in zip(paths, lengths, strict=True)]
        ends = [shard.ends[group] - sum(taken) + upto for upto in accumulate(taken)]
        return _Loaded(words, tuple(end - length for end, length in zip(ends, lengths, strict=True)))


class _Recent(Generic[K, T]):
    """What was asked for last, at most `count`; the rest is made again. Threads may share it."""

    def __init__(self, count: int, make: Callable[[K], T]) -> None:
        self._count = count
        self._make = make
        self._kept: OrderedDict[K, T] = OrderedDict()
        self._lock = Lock()

    def __getitem__(self, key: K) -> T:
        with self._lock:
            found = self._kept.pop(key, None)
        if found is None:  # two threads may make the same one, which does no harm
            found = self._make(key)
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > self._count:
                self._kept.popitem(last=False)
        return found


def _end_of_photos(path: Path, group: Any) -> int:
    """Where the photos inside a row group end in the file."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "image.bytes":
            if column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
                raise DataError(f"{path}: was not written by nopair; rewrite it with nopair data import records")
            return column.data_page_offset + column.total_compressed_size
    raise DataError(f"{path}: has no column image.bytes; import it with nopair data import")
