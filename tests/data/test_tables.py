"""Every form of a dataset gives the same photos and words; what is damaged or malformed is named."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nopair.data import parquet
from nopair.data.records import CATEGORIES, Photo, Record, measure
from nopair.data.shards import CARD, SHAPE, SHAPES, write_dataset
from nopair.data.tables import Shapes, Table, open_table
from nopair.data.validate import problems
from nopair.errors import DataError, ImageError

SIZES = ((6, 4), (3, 9), (8, 8), (5, 7), (4, 6))


def photo(number: int) -> bytes:
    buffer = io.BytesIO()
    width, height = SIZES[number % len(SIZES)]
    Image.new("RGB", (width, height), (number % 256, 0, 200)).save(buffer, format="PNG")
    return buffer.getvalue()


def ask(number: int) -> dict[str, str]:
    category = ("add", "remove", "style")[number % 3]
    return {
        "instruction": f"edit {number}",
        "caption": f"a cat {number}",
        "edited_caption": f"a hat {number}",
        "category": category,
        "subject": "cat",
    }


def record(number: int, **changes: object) -> Record:
    facts = measure(photo(number), "it")
    return Record(
        **{
            "id": f"r{number}",
            "image": Photo(bytes=photo(number)),
            "height": facts.height,
            "width": facts.width,
            "image_hash": facts.image_hash,
            "image_length": facts.image_length,
            "source": "mine",
            "licence": "CC0",
        }
        | ask(number)
        | changes
    )


def as_inside(folder: Path, count: int) -> Path:
    write_dataset(folder, map(record, range(count)), rows=3)
    return folder


def as_paths(folder: Path, count: int) -> Path:
    (folder / "photos").mkdir(parents=True)
    for number in range(count):
        (folder / "photos" / f"ä {number}.png").write_bytes(photo(number))
    # every third one inside
    write_dataset(
        folder,
        (record(n) if n % 3 == 2 else record(n, image=Photo(path=f"photos/ä {n}.png")) for n in range(count)),
        rows=4,
    )
    return folder


def lines(folder: Path, count: int, key: str) -> str:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        (folder / f"ä {number}.png").write_bytes(photo(number))
    return "".join(json.dumps(ask(number) | {key: f"ä {number}.png"}) + "\n" for number in range(count))


def as_lines(folder: Path, count: int) -> Path:
    (folder.parent / "lines.jsonl").write_text("", "utf-8")
    text = lines(folder, count, "image")
    (folder / "photos.jsonl").write_text(text, "utf-8")
    return folder / "photos.jsonl"


def as_imagefolder(folder: Path, count: int) -> Path:
    text = lines(folder, count, "file_name")
    (folder / "metadata.jsonl").write_text(text, "utf-8")
    return folder


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def as_tars(folder: Path, count: int) -> Path:
    folder.mkdir()
    for start in range(0, count, 4):
        with tarfile.open(folder / f"{start:04}.tar", "w") as tar:
            for number in range(start, min(start + 4, count)):
                add(tar, f"ä/{number:04}.json", json.dumps(ask(number)).encode())
                add(tar, f"ä/{number:04}.png", photo(number))
    return folder


FORMS: dict[str, Callable[[Path, int], Path]] = {
    "photos inside": as_inside,
    "photos by path": as_paths,
    "lines": as_lines,
    "imagefolder": as_imagefolder,
    "tars": as_tars,
}


def joined(table: Table) -> Shapes:
    """The shapes of all rows."""
    parts = list(table.shapes())
    columns = [[getattr(part, name) for part in parts] for name in ("heights", "widths", "categories")]
    return Shapes(*map(np.concatenate, columns))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(form: str, tmp_path: Path) -> None:
    table = open_table(FORMS[form](tmp_path / "set", 11))
    assert isinstance(table, Table)
    assert len(table) == 11
    shapes = joined(table)
    for number in reversed(range(11)):
        assert table.photo(number)[1] == photo(number)
        assert table.ask(number).model_dump() == ask(number)
        width, height = SIZES[number % len(SIZES)]
        assert (int(shapes.heights[number]), int(shapes.widths[number])) == (height, width)
        assert CATEGORIES[int(shapes.categories[number])] == ask(number)["category"]


@pytest.mark.parametrize("form", FORMS)
def test_what_the_files_tell_changes_with_any_of_them(form: str, tmp_path: Path) -> None:
    """Photos of their own, words, and shards: even where size and time are as before."""
    place = FORMS[form](tmp_path / "set", 5)
    state = open_table(place).state()
    assert open_table(place).state() == state
    unread = {"README.md"} | (
        {"ä 2.png"} if form == "photos by path" else set()
    )  # of which the record has a copy inside
    files = [path for path in (tmp_path / "set").rglob("*") if path.is_file() and path.name not in unread]
    assert len(files) >= {"photos inside": 4, "photos by path": 8, "tars": 2}.get(form, 6)
    for file in files:
        before = file.stat()
        file.write_bytes(file.read_bytes())
        while file.stat().st_ctime_ns == before.st_ctime_ns or file.stat().st_mtime_ns != before.st_mtime_ns:
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # until the system's clock has ticked
        other = open_table(place).state()
        assert other != state, file
        state = other


def test_a_photo_that_is_gone_is_another_state(tmp_path: Path) -> None:
    table = open_table(as_paths(tmp_path / "set", 3))
    whole = table.state()
    (tmp_path / "set" / "photos" / "ä 0.png").unlink()
    assert table.state() != whole


def test_many_row_groups_are_read_again_when_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUPS_KEPT", 2)
    monkeypatch.setattr(parquet, "SHARDS_KEPT", 1)
    table = open_table(as_inside(tmp_path, 20))
    for number in [*range(20), *reversed(range(20)), 3, 19, 3]:
        assert table.photo(number)[1] == photo(number)
        assert table.ask(number).instruction == f"edit {number}"


def test_groups_of_large_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nopair.data.shards.BYTES_OF_A_GROUP", 3 * len(photo(0)))
    table = open_table(write(tmp_path, 10))
    assert pq.ParquetFile(tmp_path / "data" / "train-00000.parquet").num_row_groups > 2
    assert [table.photo(number)[1] for number in range(10)] == [photo(number) for number in range(10)]


def write(folder: Path, count: int) -> Path:
    write_dataset(folder, map(record, range(count)))
    return folder


def test_a_photo_that_is_not_the_record_s(tmp_path: Path) -> None:
    folder = as_inside(tmp_path / "inside", 5)
    shard = folder / "data" / "train-00001.parquet"
    content = shard.read_bytes()
    assert content.count(photo(4)) == 1
    shard.write_bytes(content.replace(photo(4), photo(4)[:-20] + bytes(20)))
    table = open_table(folder)
    assert table.photo(3)[1] == photo(3)
    with pytest.raises(ImageError, match=r"train-00001\.parquet, row 1 \(r4\): is not the photo"):
        table.photo(4)
    folder = as_paths(tmp_path / "paths", 5)
    (folder / "photos" / "ä 0.png").write_bytes(photo(1))
    (folder / "photos" / "ä 1.png").unlink()
    table = open_table(folder)
    with pytest.raises(ImageError, match=r"ä 0\.png: is not the photo"):
        table.photo(0)
    with pytest.raises(ImageError, match=r"ä 1\.png: no such image"):
        table.photo(1)
    (tmp_path / "inside" / "data" / "train-00000.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00000\.parquet: is missing"):
        open_table(tmp_path / "inside")


def test_records_that_lack_words_are_told_at_once(tmp_path: Path) -> None:
    write_dataset(tmp_path, [record(0), record(1, caption=None), record(2, category=None, caption=None)])
    with pytest.raises(DataError, match=r"of its 3 records 1 lack category, 2 lack caption; nopair synthesize"):
        open_table(tmp_path)


def test_shards_that_others_have_written(tmp_path: Path) -> None:
    shard = write(tmp_path, 4) / "data" / "train-00000.parquet"
    pq.write_table(pq.read_table(shard), shard)
    with pytest.raises(DataError, match="was not written by nopair"):
        open_table(tmp_path)


def test_shapes_that_are_damaged(tmp_path: Path) -> None:
    """Told before an order is made of them, and by validate."""
    shapes = write(tmp_path, 5) / SHAPES
    whole = shapes.read_bytes()
    assert len(whole) == 5 * SHAPE.itemsize
    for content in (whole[:-1], whole[: -SHAPE.itemsize], whole + whole, bytes([whole[0] ^ 1]) + whole[1:], b""):
        shapes.write_bytes(content)
        with pytest.raises(DataError, match=r"shapes\.bin: is not what was written"):
            joined(open_table(tmp_path))
        assert f"{shapes}: is not what was written" in list(problems(tmp_path))[-1]
    shapes.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert "row 0: shapes.bin tells another size or category" in next(problems(tmp_path))
    shapes.unlink()
    with pytest.raises(DataError, match=r"shapes\.bin: is missing"):
        open_table(tmp_path)


def test_a_later_shard_is_opened_when_it_is_needed(tmp_path: Path) -> None:
    folder = as_inside(tmp_path, 7)
    later = folder / "data" / "train-00001.parquet"
    later.write_bytes(b"PAR1")
    table = open_table(folder)
    assert table.ask(0).instruction == "edit 0"
    with pytest.raises(DataError, match=r"train-00001\.parquet: is not a readable Parquet file"):
        table.ask(5)
    pq.write_table(pq.read_table(folder / "data" / "train-00000.parquet").slice(1), later)
    with pytest.raises(DataError, match=r"train-00001\.parquet: holds \d records, the card says"):
        table.ask(5)


def test_a_dataset_of_an_earlier_version(tmp_path: Path) -> None:
    card = json.loads((write(tmp_path, 3) / CARD).read_text())
    del card["shapes_hash"]
    (tmp_path / CARD).write_text(json.dumps(card | {"version": 1}))
    with pytest.raises(DataError, match="has version 1, expected 2; rewrite the dataset with nopair"):
        open_table(tmp_path)


def test_places_without_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no dataset"):
        open_table(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        open_table(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="not a readable uncompressed tar"):
        open_table(tmp_path / "none.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "holds no records"),
        ({"a.json": ask(0)}, "record a has no photo"),
        ({"a.png": b"x"}, "record a has no json"),
        ({"a.json": ask(0), "a.png": b"x", "a.jpg": b"x"}, "a.jpg: is a second photo"),
        ({"a.json": ask(0), "a.png": b"x", "a.edited.png": b"x"}, "a.edited.png: is neither"),
        ({"a.json": ask(0) | {"edited": "b"}, "a.png": b"x"}, "a.json: edited: unknown field"),
        ({"a.json": ask(1) | {"subject": ""}, "a.png": b"x"}, "a.json: a removal needs a subject"),
        (
            {"a.json": ask(1) | {"category": "free-form", "subject": " "}, "a.png": b"x"},
            "a.json: a free-form edit needs a",
        ),
        ({"a.json": b"{", "a.png": b"x"}, "a.json: Invalid JSON"),
        ({"a.json": b"[]", "a.png": b"x"}, "a.json: Input should be an object"),
    ],
)
def test_a_malformed_tar(members: dict[str, object], message: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in members.items():
            add(tar, name, content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(DataError) as caught:
        open_table(tmp_path / "a.tar")
    assert message in str(caught.value)


def test_a_tar_that_was_cut(tmp_path: Path) -> None:
    folder = as_tars(tmp_path / "set", 3)
    table = open_table(folder)
    tar = folder / "0000.tar"
    tar.write_bytes(tar.read_bytes()[:1600])
    with pytest.raises(ImageError, match="cut short"):
        table.photo(2)
