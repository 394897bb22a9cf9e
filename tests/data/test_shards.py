"""Datasets: what is written is read back, by us and by `datasets`; equal records give equal bytes; damage is named."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from nopair.data import shards
from nopair.data.records import CATEGORIES, NEEDED, Photo, Record, Score, Stage, measure
from nopair.data.shards import CARD, Card, read_records, write_dataset
from nopair.errors import DataError, ImageError, OutputError

STAGE = Stage(stage="caption", prompt_version="v1", engine="openai", model="a-model")


def png(width: int = 6, height: int = 4, shade: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (shade, 0, 200)).save(buffer, format=kind)
    return buffer.getvalue()


def record(number: int = 0, **changes: object) -> Record:
    content = png(shade=number % 256)
    facts = measure(content, "it")
    fields = {
        "id": f"r{number}",
        "image": Photo(bytes=content),
        "height": facts.height,
        "width": facts.width,
        "image_hash": facts.image_hash,
        "image_length": facts.image_length,
        "instruction": f"add a hat {number}",
        "caption": f"a cat {number}",
        "edited_caption": f"a cat {number} with a hat",
        "category": "add",
        "subject": "hat",
        "source": "mine",
        "licence": "CC0",
        "stages": (STAGE,),
        "scores": (Score(question="applicable", probability=0.75),),
    }
    return Record(**fields | changes)  # pyright: ignore


words = st.text(st.characters(codec="utf-8")).map(lambda text: f"w{text}")
records = st.builds(
    lambda **fields: record(**fields),
    id=words,
    instruction=words,
    caption=st.none() | words,
    edited_caption=st.none() | words,
    category=st.sampled_from([None, *(one for one in CATEGORIES if one != "nothing")]),
    subject=st.none() | words,
    licence=words,
    image=st.just(Photo(bytes=png())) | st.builds(Photo, path=words),
    stages=st.lists(st.builds(Stage, stage=words, prompt_version=words, engine=words, model=words)).map(tuple),
    scores=st.lists(st.builds(Score, question=words, probability=st.floats(0, 1))).map(tuple),
)


@settings(max_examples=20)
@given(written=st.lists(records, min_size=1, max_size=9), rows=st.integers(1, 4))
def test_what_is_written_is_read(written: list[Record], rows: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("dataset")
    card = write_dataset(folder, written, rows=rows)
    assert list(read_records(folder)) == written
    assert card == Card.read(folder)
    assert [shard.records for shard in card.shards][:-1] == [rows] * (len(card.shards) - 1)
    assert card.missing == {name: sum(name in one.missing for one in written) for name in NEEDED}
    assert card.records == len(written)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_records_give_equal_bytes_whatever_was_there(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", map(record, range(7)), rows=3, dropped={"small": 2})
    write_dataset(tmp_path / "b", map(record, range(90)), rows=2)
    for place in (tmp_path / "b", tmp_path / "b" / "data"):
        (place / ".nopair-244fc16402fdb509.part").touch()  # by a writer that was killed
    write_dataset(tmp_path / "b", map(record, range(7)), rows=3, dropped={"small": 2})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert Card.read(tmp_path / "a").dropped == {"small": 2}


def test_shards_end_by_bytes_too(tmp_path: Path) -> None:
    card = write_dataset(tmp_path, map(record, range(5)), size=2 * len(png()))
    assert card.records == 5
    many = shards.ROWS_OF_A_GROUP + 3
    write_dataset(tmp_path, map(record, range(many)))
    assert pq.ParquetFile(tmp_path / "data" / "train-00000.parquet").num_row_groups == 2
    assert [one.id for one in read_records(tmp_path)] == [f"r{n}" for n in range(many)]


def test_stock_datasets_reads_it(tmp_path: Path) -> None:
    from datasets import load_dataset

    write_dataset(tmp_path / "set", map(record, range(5)), rows=2)
    stream = load_dataset(str(tmp_path / "set"), split="train", streaming=True)
    rows = list(stream)
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", "r3", "r4"]
    assert rows[3]["image"].size == (6, 4)
    assert rows[0]["stages"] == [STAGE.model_dump()]


def test_an_interrupted_writer_leaves_what_was_there_and_may_start_again(tmp_path: Path) -> None:
    def cut() -> Iterator[Record]:
        yield from map(record, range(5))
        raise ImageError("lost")

    for before in (0, 3):
        if before:
            write_dataset(tmp_path, map(record, range(before)))
        there = contents(tmp_path)
        with pytest.raises(ImageError):
            write_dataset(tmp_path, cut(), rows=2)
        assert contents(tmp_path) == there
        assert not [path for path in tmp_path.rglob("*") if not before and path.is_dir()]
    with pytest.raises(DataError, match="no record"):
        write_dataset(tmp_path, [])
    assert len(list(read_records(tmp_path))) == 3
    write_dataset(tmp_path, map(record, range(4)), rows=2)
    assert len(list(read_records(tmp_path))) == 4


def test_a_writer_that_is_killed_while_it_swaps_leaves_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the old shards and half of the new ones are never taken for a dataset."""
    write_dataset(tmp_path, map(record, range(4)), rows=2)
    replaced: list[Path] = []

    def replace(self: Path, target: Path) -> None:
        if target.suffix == ".parquet" and target.parent == tmp_path / "data":
            if replaced:
                raise KeyboardInterrupt
            replaced.append(target)
        rename(self, target)

    rename = Path.replace
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, map(record, range(9)), rows=2)
    monkeypatch.undo()
    with pytest.raises(DataError, match=f"no {CARD}"):
        Card.read(tmp_path)
    write_dataset(tmp_path, map(record, range(9)), rows=2)
    assert len(list(read_records(tmp_path))) == 9


def test_a_dataset_can_be_written_again_from_itself(tmp_path: Path) -> None:
    write_dataset(tmp_path, map(record, range(7)), rows=2)
    write_dataset(tmp_path, read_records(tmp_path), rows=3)
    assert [one.id for one in read_records(tmp_path)] == [f"r{n}" for n in range(7)]


def test_files_of_others_are_neither_replaced_nor_removed(tmp_path: Path) -> None:
    """`data/train-*.parquet` is how the Hub wants everybody's shards."""
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    (hub / "data" / "train-00000-of-00001.parquet").write_bytes(b"theirs")
    (hub / "README.md").write_text("# Theirs")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("# Mine")
    alike = tmp_path / "alike"
    (alike / "data").mkdir(parents=True)
    (alike / CARD).write_text('{"version": 1, "shards": [{"path": "../mine/README.md"}]}')
    old = tmp_path / "old"
    write_dataset(old, map(record, range(2)), rows=1)
    (old / "data" / "train-00009.parquet").write_bytes(b"theirs")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder, name in ((hub, "data/train-00000-of"), (mine, "README"), (alike, CARD), (old, "data/train-00009")):
        with pytest.raises(OutputError, match=f"{folder}: holds {name}.*choose a new or an empty folder"):
            write_dataset(folder, [record()])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_beside_a_dataset_everything_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "rejected.jsonl").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("x")
    write_dataset(tmp_path, map(record, range(3)), rows=1)
    written = (tmp_path / "README.md").read_text()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "data" / "notes.txt").write_text("x")
    write_dataset(tmp_path, map(record, range(2)), rows=1)
    assert (tmp_path / "README.md").read_text() == written.replace("3", "2")
    assert not caplog.messages
    (tmp_path / "README.md").write_text(written + "\nTaken by my aunt.\n")
    write_dataset(tmp_path, [record()])
    assert (tmp_path / "README.md").read_text().endswith("aunt.\n")
    assert "stays as it is" in caplog.text
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        ["README.md", CARD, "a.png", "notes.txt", "notes.txt", "rejected.jsonl", "shapes.bin", "train-00000.parquet"]
    )


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record"):
        write_dataset(tmp_path, [])
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"mine\.txt"):
        write_dataset(tmp_path, [record()])
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot create"):
        write_dataset(tmp_path / "file", [record()])


def test_damage_is_named(tmp_path: Path) -> None:
    shard = tmp_path / "data" / "train-00000.parquet"

    def said(write: object = None) -> str:
        with pytest.raises(DataError) as caught:
            list(read_records(tmp_path))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    write_dataset(tmp_path, map(record, range(3)))
    table = pq.read_table(shard)
    pq.write_table(table.set_column(6, "instruction", pa.array(["a", " ", "c"])), shard)
    assert f"{shard}, row 1: instruction: " in said()
    pq.write_table(table.slice(1), shard)
    assert "holds 2 records, the card says 3" in said()
    pq.write_table(table.append_column("edited", pa.array(["a", "b", "c"])), shard)
    assert "other columns than records have (edited)" in said()
    shard.write_bytes(b"PAR1")
    assert "not a readable Parquet file" in said()
    shard.unlink()
    assert "is missing" in said()
    card = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps(card | {"version": 9}))
    assert "has version 9" in said()
    (tmp_path / CARD).write_text("{")
    assert "Invalid JSON" in said()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": Photo(path="a.png"), "height": 0}, "height"),
        ({"category": "hat"}, "category"),
        ({"category": "remove", "subject": " "}, "a removal needs a subject"),
        ({"category": "nothing"}, "to do nothing needs the same"),
        ({"caption": ""}, "caption"),
        ({"image_length": 3}, "image_length is 3"),
        ({"image_hash": "ab"}, "image_hash"),
        ({"edited": b"x"}, "edited"),
        ({"scores": (Score.model_construct(question="a", probability=2.0),)}, None),
    ],
)
def test_a_record_that_breaks_the_schema(changes: dict[str, object], message: str | None) -> None:
    if message is None:
        with pytest.raises(ValidationError):
            Score(question="a", probability=2.0)
        return
    with pytest.raises(ValidationError, match=message):
        record(**changes)


def test_a_photo_is_in_one_place() -> None:
    for wrong in ({}, {"bytes": b"x", "path": "a"}, {"path": "/a.png"}, {"bytes": b""}):
        with pytest.raises(ValidationError):
            Photo(**wrong)  # pyright: ignore


def test_measure_sees_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4)).save(buffer, format="JPEG", exif=exif)
    facts = measure(buffer.getvalue(), "it")
    assert (facts.height, facts.width) == (6, 4)
    assert (measure(png(), "it").height, measure(png(), "it").width) == (4, 6)
    for broken in (b"", b"hello", png()[:20]):
        with pytest.raises(ImageError, match=r"^it: "):
            measure(broken, "it")


def test_a_card_that_claims_more_records_than_its_shards_is_damaged(tmp_path: Path) -> None:
    write_dataset(tmp_path, [record(0), record(1)])
    card = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps(card | {"records": 3}))
    with pytest.raises(DataError, match=r"says 3 records, its shards 2; write the dataset again"):
        Card.read(tmp_path)
