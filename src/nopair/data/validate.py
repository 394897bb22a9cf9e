"""Everything that is wrong with a dataset, one line each: file, row, field and what to do."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nopair.data.files import is_folder, read_photo
from nopair.data.images import decode_image
from nopair.data.lines import faults
from nopair.data.records import Record
from nopair.data.shards import CARD, SHAPE, SHAPES, Card, opened, parse, read_group, shape_of
from nopair.data.tables import METADATA, open_table
from nopair.errors import DataError, ImageError, NopairError

_REWRITE: Final = "rewrite the dataset with nopair data import records"


def problems(path: Path) -> Iterator[str]:
    """Problems of a dataset in any form. Every photo is decoded, unless lines are faulty: then those are told alone.
    Records are held one row group at a time.

    Records that lack words are problems, too, as they cannot be trained on.
    """
    try:
        if is_folder(path) and (path / CARD).is_file():
            yield from _of_records(path)
        else:
            yield from _of_table(path)
    except NopairError as error:
        yield str(error)


def _of_table(path: Path) -> Iterator[str]:
    named = _faulty_lines(path)
    if named:
        yield from named
        return
    table = open_table(path)
    for row in range(len(table)):
        try:
            name, content = table.photo(row)
            decode_image(content, name)
        except ImageError as error:
            yield f"{path}, row {row}: image: {error}"


def _faulty_lines(path: Path) -> list[str]:
    """All of them, where the dataset is lines; opening it would tell the first only."""
    if is_folder(path):
        metadata = path / METADATA
        return list(faults(metadata, "file_name")) if metadata.is_file() else []
    return list(faults(path, "image")) if path.suffix.lower() != ".tar" else []


def _of_records(folder: Path) -> Iterator[str]:
    card = Card.read(folder)
    shapes = _Shapes(folder)
    ids: dict[bytes, str] = {}  # short digests: a million ids are some hundred megabytes otherwise
    for shard in card.shards:
        path = folder / shard.path
        row = 0
        with opened(path) as file:
            for group in range(file.num_row_groups):
                for tree in read_group(path, file, group).to_pylist():
                    where = f"{path}, row {row}"
                    row += 1
                    shape = shapes.next()
                    try:
                        record = parse(tree, where)
                    except DataError as error:
                        yield str(error)
                        continue
                    yield from _of_record(folder, record, where)
                    if shape != shape_of(record).tobytes():
                        yield f"{where}: {SHAPES} tells another size or category; {_REWRITE}"
                    first = ids.setdefault(hashlib.blake2b(record.id.encode(), digest_size=8).digest(), where)
                    if first is not where:
                        yield f"{where}: id: {record.id!r} is that of {first}, too; give each record its own"
        if row != shard.records:
            yield f"{path}: holds {row} records, the card says {shard.records}; write the dataset again"
    if shapes.digest() != card.shapes_hash:
        yield f"{folder / SHAPES}: is not what was written with the records; {_REWRITE}"


class _Shapes:
    """`shapes.bin`, a record after the other."""

    def __init__(self, folder: Path) -> None:
        self._content = memoryview((folder / SHAPES).read_bytes() if (folder / SHAPES).is_file() else b"")
        self._place = 0

    def next(self) -> bytes:
        self._place += SHAPE.itemsize
        return bytes(self._content[self._place - SHAPE.itemsize : self._place])

    def digest(self) -> str:
        return hashlib.sha256(self._content).hexdigest()


def _of_record(folder: Path, record: Record, where: str) -> Iterator[str]:
    for name in record.missing:
        yield f"{where}: {name}: is missing; nopair synthesize can write it"
    try:
        path = record.image.path
        content = read_photo(folder / path) if path is not None else record.image.bytes or b""
        pixels = decode_image(content, "the photo" if path is None else str(folder / path))
    except ImageError as error:
        yield f"{where}: image: {error}"
        return
    if hashlib.sha256(content).hexdigest() != record.image_hash:
        yield f"{where}: image_hash: is not that of the photo; copy the photo again, or import it again"
    if pixels.shape[1:] != (record.height, record.width):
        found = "x".join(map(str, pixels.shape[1:]))
        yield f"{where}: height, width: the photo is {found}, not {record.height}x{record.width}; import it again"
