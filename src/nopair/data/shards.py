"""A dataset folder: Parquet shards of records, and a card.

    data/train-00000.parquet, ...   the records, in order; `datasets.load_dataset(folder)` reads them, too
    shapes.bin                      of each record in order: height, width and category, see `SHAPE`
    dataset.json                    the card: version, shards with their numbers of records, counts
    README.md                       the same for people and for the Hub

Equal records give equal bytes. Every file is complete or absent, and the card is written last, so a folder with a card
is a whole dataset. Photos inside are kept uncompressed (they are PNG, JPEG or WebP already), each column chunk as one
page, so that a reader can fetch one photo of a shard without those around it: see `nopair.data.parquet`.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nopair.data.files import file_atomic, make_folder, remove_parts, scratch, write_atomic
from nopair.data.places import CARD, README, SHAPES, SWAP, check_dataset_folder, is_own_readme, own_shards, swap_of
from nopair.data.records import CATEGORIES, NEEDED, Photo, Record, Score, Sha256, Stage, problem_of
from nopair.errors import DataError, OutputError

_LOG: Final = logging.getLogger("nopair.data")

VERSION: Final = 2
SHAPE: Final = np.dtype([("height", "<i4"), ("width", "<i4"), ("category", "u1")])
"""A record in `shapes.bin`: what decides when it comes, so that a million records are put in order without their
shards. The category is its number in `CATEGORIES`, `NO_CATEGORY` if it has none."""
NO_CATEGORY: Final = 255
ROWS_OF_A_GROUP: Final = 256
BYTES_OF_A_GROUP: Final = 2**25
ROWS_OF_A_SHARD: Final = 10_000
BYTES_OF_A_SHARD: Final = 2**29


class Shard(BaseModel):
    """One file of a dataset, relative to its folder."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    path: str
    records: Annotated[int, Field(ge=1)]


class Card(BaseModel):
    """What a dataset says about itself. `missing` counts the records that lack a field of `nopair.data.records.NEEDED`;
    `dropped` counts what did not become a record, by reason; `other_kinds` the records without a category whose data
    set names their kind of edit, by that name. `shapes_hash` is the SHA-256 of `shapes.bin`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: int = VERSION
    records: int
    shapes_hash: Sha256
    shards: tuple[Shard, ...]
    categories: Mapping[str, int]
    missing: Mapping[str, int]
    licences: Mapping[str, int]
    sources: Mapping[str, int]
    dropped: Mapping[str, int] = {}
    other_kinds: Mapping[str, int] = {}

    @classmethod
    def read(cls, folder: Path) -> "Card":
        """The card of a dataset folder.

        Raises:
            DataError: it is missing, damaged, or of another version.
        """
        path = folder / CARD
        try:
            content = path.read_bytes()
            _require_version(path, content)
            card = cls.model_validate_json(content)
        except FileNotFoundError:
            raise DataError(f"{folder}: is not a whole dataset (no {CARD}); finish writing it first") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        except ValidationError as error:
            raise DataError(f"{path}: {problem_of(error)}; write the dataset again") from error
        if card.records != (held := sum(shard.records for shard in card.shards)):
            raise DataError(f"{path}: says {card.records} records, its shards {held}; write the dataset again")
        return card


def write_dataset(
    folder: Path,
    records: Iterable[Record],
    *,
    dropped: Mapping[str, int] | None = None,
    other_kinds: Mapping[str, int] | None = None,
    rows: int = ROWS_OF_A_SHARD,
    size: int = BYTES_OF_A_SHARD,
) -> Card:
    """Write records, in order, as a dataset, in place of one that was there, which stays as it is until the new one is
    complete. Holds one row group in memory at a time. A README that somebody has changed stays as it is.

    Args:
        dropped, other_kinds: see `Card`; read when the records have ended.
        rows: most records of a shard.
        size: bytes of photos after which a shard is ended.

    Raises:
        OutputError: it cannot be written, or `folder` holds files of others; see `check_dataset_folder`.
        DataError: there are no records.
    """
    check_dataset_folder(folder)
    make_folder(folder)
    for place in (folder, folder / "data"):
        remove_parts(place)
    with scratch(folder) as part:
        make_folder(part / "data")
        shards: list[Shard] = []
        with file_atomic(part / SHAPES) as file:
            counts = _Counts(file)
            remaining = _Peekable(counts.of(records))
            while remaining.more():
                path = part / "data" / f"train-{len(shards):05}.parquet"
                shards.append(Shard(path=f"data/{path.name}", records=_write_shard(path, remaining, rows, size)))
        if not shards:
            raise DataError(f"{folder}: there is no record to write; see what was dropped and why")
        _put_in_place(folder, part, shards)
    card = Card(
        records=sum(shard.records for shard in shards),
        shapes_hash=counts.shapes_hash.hexdigest(),
        shards=tuple(shards),
        categories=_sorted(counts.categories),
        missing={name: counts.missing[name] for name in NEEDED},
        licences=_sorted(counts.licences),
        sources=_sorted(counts.sources),
        dropped=_sorted(dropped or {}),
        other_kinds=_sorted(other_kinds or {}),
    )
    _write_cards(folder, card)
    return card


def _put_in_place(folder: Path, part: Path, shards: Sequence[Shard]) -> None:
    """Move all but the card from `part`, in place of what was there. Without a card it is no dataset until the end."""
    old, new = own_shards(folder) or frozenset(), {shard.path for shard in shards}
    write_atomic(folder / SWAP, swap_of(old | new))
    try:
        (folder / CARD).unlink(missing_ok=True)
        (folder / "data").mkdir(exist_ok=True)
        for name in (*(shard.path for shard in shards), SHAPES):
            (part / name).replace(folder / name)
        for stale in old - new:
            (folder / stale).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}); check the rights and write again"
        ) from error


def _write_cards(folder: Path, card: Card) -> None:
    """For people, and last for programs."""
    if is_own_readme(folder / README):
        write_atomic(folder / README, _readme(card).encode())
    else:
        _LOG.warning("%s: is not as nopair wrote it, so it stays as it is; its counts may be old", folder / README)
    write_atomic(folder / CARD, card.model_dump_json(indent=1).encode() + b"\n")
    (folder / SWAP).unlink()


def shape_of(record: Record) -> np.ndarray:
    """The record in `shapes.bin`, a scalar of `SHAPE`."""
    category = NO_CATEGORY if record.category is None else CATEGORIES.index(record.category)
    return np.array((record.height, record.width, category), SHAPE)


def read_records(folder: Path) -> Iterator[Record]:
    """All records of a dataset, in order, a row group in memory at a time.

    Raises:
        DataError: the folder is not a dataset, or a record is wrong; names file, row and field.
    """
    for shard in Card.read(folder).shards:
        path = folder / shard.path
        row = 0
        with opened(path) as file:
            for group in range(file.num_row_groups):
                for tree in read_group(path, file, group).to_pylist():
                    yield parse(tree, f"{path}, row {row}")
                    row += 1
        if row != shard.records:
            raise DataError(f"{path}: holds {row} records, the card says {shard.records}; write the dataset again")


def opened(path: Path, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A shard, with its footer, which is read if it is not given.

    Raises:
        DataError: it cannot be read, or has other columns than records have.
    """
    try:
        file = pq.ParquetFile(path, metadata=footer)
    except FileNotFoundError:
        raise DataError(f"{path}: is missing; copy the dataset again") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: is not a readable Parquet file ({_line(error)}); copy the dataset again") from error
    found, wanted = set(file.schema_arrow.names), set(Record.model_fields)
    if found != wanted:
        names = ", ".join(sorted(found ^ wanted))
        file.close()
        raise DataError(f"{path}: has other columns than records have ({names}); import it with nopair data import")
    return file


def read_group(path: Path, file: pq.ParquetFile, group: int, columns: list[str] | None = None) -> pa.Table:
    """One row group of a shard. Raises DataError: it is damaged."""
    try:
        return file.read_row_group(group, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: row group {group} is damaged ({_line(error)}); copy the dataset again") from error


def parse(tree: dict[str, Any], where: str) -> Record:
    """A record from a row as Arrow gives it.

    Raises:
        DataError: it breaks the schema; begins with `where`, then the field.
    """
    try:
        return Record(
            **tree
            | {
                "image": Photo(**tree["image"]),
                "stages": tuple(Stage(**stage) for stage in tree["stages"]),
                "scores": tuple(Score(**score) for score in tree["scores"]),
            }
        )
    except ValidationError as error:
        raise DataError(f"{where}: {problem_of(error)}; mend the record or leave it out") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: is not a record ({error}); import it with nopair data import") from error


@cache
def schema() -> pa.Schema:
    """Arrow's schema of records, with the types by which `datasets` knows them."""
    from datasets import Features, Image, List, Value

    text, number = Value("string"), Value("int32")
    columns = {
        "image": Image(decode=True),
        **dict.fromkeys(("height", "width", "image_length"), number),
        "stages": List(dict.fromkeys(Stage.model_fields, text)),
        "scores": List({"question": text, "probability": Value("float64")}),
    }
    return Features({name: columns.get(name, text) for name in Record.model_fields}).arrow_schema


# Writing --------------------------------------------------------------------------------------------------------------


class _Counts:
    """What the card tells, counted while records go by, whose shapes go into a file."""

    def __init__(self, shapes: BinaryIO) -> None:
        self.shapes = shapes
        self.shapes_hash = hashlib.sha256()
        self.categories: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.licences: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()

    def of(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if record.category is not None:
                self.categories[record.category] += 1
            self.missing.update(record.missing)
            self.licences[record.licence] += 1
            self.sources[record.source] += 1
            shape = shape_of(record).tobytes()
            self.shapes.write(shape)
            self.shapes_hash.update(shape)
            yield record


class _Peekable:
    """Records, with a look at whether there is one more."""

    def __init__(self, records: Iterator[Record]) -> None:
        self._records = records
        self._next: Record | None = next(records, None)

    def more(self) -> bool:
        return self._next is not None

    def take(self) -> Record:
        assert self._next is not None, "the caller looked"
        taken, self._next = self._next, next(self._records, None)
        return taken


def _write_shard(path: Path, records: _Peekable, rows: int, size: int) -> int:
    """Fill one shard; the number of its records."""
    written, stored = 0, 0
    with file_atomic(path) as file, pq.ParquetWriter(file, schema(), **_layout()) as writer:
        while records.more() and written < rows and stored < size:
            group: list[Record] = []
            held = 0
            while records.more() and len(group) < min(ROWS_OF_A_GROUP, rows - written) and held < BYTES_OF_A_GROUP:
                record = records.take()
                group.append(record)
                held += len(record.image.bytes or b"")
            writer.write_table(pa.Table.from_pylist([record.model_dump() for record in group], schema=schema()))
            written, stored = written + len(group), stored + held
    return written


@cache
def _layout() -> dict[str, Any]:
    """How the columns are stored: photos as they are and in one page per group, words that repeat as a dictionary."""
    stages = [f"stages.list.element.{name}" for name in Stage.model_fields]
    scores = [f"scores.list.element.{name}" for name in Score.model_fields]
    flat = [name for name in Record.model_fields if name not in ("image", "stages", "scores")]
    leaves = ["image.path", *flat, *stages, *scores]
    return {
        "compression": {"image.bytes": "NONE"} | dict.fromkeys(leaves, "ZSTD"),
        "use_dictionary": ["category", "source", "licence", *stages, scores[0]],
        "data_page_size": 2**30,
        "write_statistics": False,
    }


def _require_version(path: Path, card: bytes) -> None:
    try:
        version = json.loads(card)["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # which is told in better words when the card is read
    if version != VERSION:
        raise DataError(
            f"{path}: has version {version}, expected {VERSION}; rewrite the dataset with nopair data import records"
        )


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _readme(card: Card) -> str:
    """The card for people, with what the Hub wants to know in front."""
    tables = {"Categories": card.categories, "Missing": card.missing, "Licences": card.licences}
    tables |= {"Sources": card.sources, "Dropped": card.dropped, "Other kinds of edit": card.other_kinds}
    front = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}]
    }
    lines = ["---", json.dumps(front), "---", "", "# Photos and what to ask of them", ""]
    lines += [f"{card.records} records for training an image editor without before/after pairs; made with nopair.", ""]
    for title, counts in tables.items():
        if counts:
            lines += [f"## {title}", "", *(f"- {name}: {count}" for name, count in counts.items()), ""]
    return "\n".join(lines)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
