"""Importers take photo and instruction, never the edited photo, and mark what is missing; validate names all faults."""

import json
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nopair import cli
from nopair.data.importers import GPT, KINDS, PICO, import_dataset
from nopair.data.shards import Card, read_records, write_dataset
from nopair.data.validate import problems
from nopair.errors import ConfigError, DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (6 + number, 4), (80 * number, 0, 0)).save(folder / f"{number}.jpg")
    (folder / "edited.jpg").write_bytes(b"never opened")
    return folder


def of(kind: str, photos: Path) -> Path:
    """Three entries of a data set: a removal, one of a kind of its own, and one without its photo."""
    entries: list[dict[str, object]]
    if kind == PICO:
        entries = [
            {"open_image_input_url": "u", "text": "long", "summarized_text": "short", "output_image": "edited.jpg"},
            {"open_image_input_url": "u", "text": "long", "output_image": "edited.jpg", "edit_type": "odd"},
            {"open_image_input_url": "u", "text": "long", "output_image": "edited.jpg"},
        ]
        entries[0] |= {"edit_type": "Remove an existing object", "local_input_image": "0.jpg"}
        entries[1]["local_input_image"] = "1.jpg"
        (photos / "sft.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return photos
    if kind == GPT:
        entries = [
            {"id": 1, "input": f"{name}.jpg", "output": "edited.jpg", "instruction": "go", "task": task}
            for name, task in (("0", "remove"), ("1", "odd"), ("9", "add"))
        ]
        entries[1]["input_description"] = "a cat"
    else:
        entries = [
            {"id": 1, "input_image_path": f"{name}.jpg", "edit_instruction": "go", "edit_type": kind, "category": "cat"}
            for name, kind in (("0", "remove"), ("1", "odd"), ("9", "add"))
        ]
        entries[0] |= {"edited_caption": "no cat", "dataset_source": "pico-banana", "width": 6}
    file = photos / "list.json"
    file.write_text(json.dumps(entries))
    return file


@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_published_data_sets(kind: str, by_path: bool, photos: Path, tmp_path: Path) -> None:
    card = import_dataset(kind, of(kind, photos), tmp_path / "set", by_path=by_path)
    first, second = read_records(tmp_path / "set")
    assert first.category == "remove"
    assert second.category is None
    assert (first.width, second.width) == (6, 7)
    assert second.edited_caption is None
    assert second.caption == ("a cat" if kind == GPT else None)
    assert first.instruction == ("short" if kind == PICO else "go")
    assert first.licence == ("CC BY 4.0" if kind == GPT else "CC BY-NC-ND 4.0")
    assert (first.subject, first.edited_caption) == (("cat", "no cat") if kind == "npedit" else (None, None))
    assert (first.image.path is not None) == by_path
    assert card == Card.read(tmp_path / "set")
    assert card.dropped == {"photo cannot be read": 1}
    assert card.other_kinds == {"odd": 1}
    found = list(problems(tmp_path / "set"))
    assert all("is missing; nopair synthesize" in one for one in found)
    assert len(found) == sum(card.missing.values()) > 2


def test_own_photos_and_foreign_parquet(photos: Path, tmp_path: Path) -> None:
    line = {"instruction": "go", "caption": "a", "edited_caption": "b", "category": "add", "image": "0.jpg"}
    file = photos / "mine.jsonl"
    file.write_text(json.dumps(line) + "\n" + json.dumps(line | {"image": "edited.jpg"}) + "\n")
    card = import_dataset("photos", file, tmp_path / "set", licence="CC0")
    assert (card.records, card.licences, card.dropped) == (1, {"CC0": 1}, {"photo cannot be read": 1})
    assert not list(problems(tmp_path / "set"))
    shard = tmp_path / "set" / "data" / "train-00000.parquet"
    pq.write_table(pq.read_table(shard), tmp_path / "foreign.parquet")
    assert import_dataset("records", tmp_path / "foreign.parquet", tmp_path / "again").records == 1
    assert shard.read_bytes() == (tmp_path / "again" / "data" / "train-00000.parquet").read_bytes()


def test_a_dataset_is_not_rewritten_in_its_own_place(photos: Path, tmp_path: Path) -> None:
    """Its first new shards would take the place of the last old ones before those are read."""
    folder = tmp_path / "sets" / "set"
    import_dataset("npedit", of("npedit", photos), folder)
    records = [
        one.model_copy(update={"caption": "a", "edited_caption": "b", "category": "add"})
        for one in read_records(folder)
    ]
    write_dataset(folder, records)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for kind, path in (("records", folder), ("records", tmp_path / "sets"), ("photos", folder)):
        with pytest.raises(DataError, match="holds what is to be read; name another folder"):
            import_dataset(kind, path, folder)
    with pytest.raises(DataError, match="holds what is to be read"):
        import_dataset("records", folder / "data" / "train-00000.parquet", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_records_with_photos_of_their_own_are_moved_with_the_way_to_them(photos: Path, tmp_path: Path) -> None:
    first = tmp_path / "deep" / "first"
    import_dataset("npedit", of("npedit", photos), first, by_path=True)
    for number, source in enumerate((first, first / "data" / "train-00000.parquet", tmp_path / "deep")):
        again = tmp_path / f"again-{number}"
        import_dataset("records", source, again)
        assert all(
            (again / (record.image.path or "")).samefile(photos / f"{n}.jpg")
            for n, record in enumerate(read_records(again))
        )
    (photos / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"train-00000\.parquet, row 1: image: .*1\.jpg: no such image"):
        import_dataset("records", first, tmp_path / "late")


def test_records_of_an_unfinished_writer_are_not_imported_and_ids_are_unique(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sets" / "set"
    card = import_dataset("npedit", of("npedit", photos), folder)
    left = folder / ".nopair-244fc16402fdb509.part" / "data"
    left.mkdir(parents=True)
    shard = folder / "data" / "train-00000.parquet"
    (left / shard.name).write_bytes(shard.read_bytes())
    assert import_dataset("records", folder, tmp_path / "again").records == card.records
    assert import_dataset("records", tmp_path / "sets", tmp_path / "again").records == card.records
    (tmp_path / "sets" / "copy.parquet").write_bytes(shard.read_bytes())
    with pytest.raises(DataError, match=r"row 0: id: 'npedit/0' is that of .*copy\.parquet, row 0, too"):
        import_dataset("records", tmp_path / "sets", tmp_path / "again")


@pytest.mark.parametrize("kind", ["photos", "records"])
def test_by_path_is_for_published_data_sets(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--by-path.*not for {kind}; leave it out"):
        import_dataset(kind, tmp_path, tmp_path / "set", by_path=True)


def test_photos_are_found_from_behind_a_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "deep")
    folder = tmp_path / "link" / "set"
    import_dataset("npedit", of("npedit", photos), folder, by_path=True)
    assert all((folder / (record.image.path or "")).is_file() for record in read_records(folder))


def test_a_photo_that_claims_to_be_huge_is_left_out(photos: Path, tmp_path: Path) -> None:
    file = of(GPT, photos)
    header = struct.pack(">IIBBBBB", 2**20, 2**20, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body)) for tag, body in chunks
    )
    (photos / "1.jpg").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert import_dataset(GPT, file, tmp_path / "set").dropped == {"photo cannot be read": 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [None, "{", "[3]", '{"a": 1}', "[]"])
def test_lists_that_are_none(kind: str, text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError) as caught:
        import_dataset(kind, file, tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_validate_names_file_row_field_and_mend(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    import_dataset("npedit", of("npedit", photos), folder, by_path=True)
    good = [
        record.model_copy(update={"caption": "a", "edited_caption": "b", "category": "add"})
        for record in read_records(folder)
    ]
    write_dataset(folder, [good[0], good[1], good[0]])
    shard = folder / "data" / "train-00000.parquet"
    assert list(problems(folder)) == [
        f"{shard}, row 2: id: 'npedit/0' is that of {shard}, row 0, too; give each record its own"
    ]
    write_dataset(folder, [good[0].model_copy(update={"height": 9, "image_hash": "0" * 64}), good[1]])
    assert [one.partition(": ")[2].partition(":")[0] for one in problems(folder)] == ["image_hash", "height, width"]
    (photos / "0.jpg").write_bytes((photos / "0.jpg").read_bytes()[:200])
    assert f"{shard}, row 0: image: " in next(problems(folder))
    table = pq.read_table(shard)
    pq.write_table(table.set_column(6, "instruction", pa.array(["", "go"])), shard)
    found = list(problems(folder))
    assert len(found) == 1
    assert found[0].startswith(f"{shard}, row 0: instruction: ")
    assert list(problems(tmp_path / "nowhere"))


def test_validate_names_every_faulty_line_and_every_broken_photo(photos: Path, tmp_path: Path) -> None:
    line = {"image": "0.jpg", "instruction": "go", "caption": "a", "edited_caption": "b", "category": "add"}
    rows = [line, line | {"category": "ad"}, line, {"image": "0.jpg"}, line | {"image": "gone.jpg"}]
    file = photos / "mine.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), "{"]))
    found = list(problems(file))
    assert [one.partition(": ")[0] for one in found] == [f"{file}, line {number}" for number in (2, 4, 5, 6)]
    assert all(one.endswith("; correct the line, or take it out") for one in found)
    assert "category" in found[0]
    file.write_text("\n".join(json.dumps(line | {"image": name}) for name in ("0.jpg", "1.jpg")))
    assert not list(problems(file))
    (photos / "1.jpg").write_bytes((photos / "1.jpg").read_bytes()[:200])
    assert [one.startswith(f"{file}, row 1: image: ") for one in problems(file)] == [True]


def test_the_command_line(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["nopair", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    code, out, _ = run("data", "import", "npedit", of("npedit", photos), "-o", tmp_path / "set")
    assert code == 0
    assert "licences: CC BY-NC-ND 4.0 1, unknown 1" in out
    assert "left out: photo cannot be read 1" in out
    assert "kinds of edit without a category: odd 1" in out
    assert "- odd: 1" in (tmp_path / "set" / "README.md").read_text()
    code, out, err = run("data", "validate", tmp_path / "set")
    assert code == 2
    assert "row 0: caption: is missing" in out
    assert "problems, listed above" in err
    assert run("data", "validate", photos / "sft.jsonl")[0] == 2
    line = {"instruction": "go", "caption": "a", "edited_caption": "b", "category": "add", "image": "0.jpg"}
    (photos / "mine.jsonl").write_text(json.dumps(line))
    assert run("data", "validate", photos / "mine.jsonl")[:2] == (0, f"{photos / 'mine.jsonl'}: nothing is wrong\n")
    (photos / "mine.jsonl").write_text(json.dumps(line | {"image": "\ud83d.jpg"}))
    code, out, err = run("data", "validate", photos / "mine.jsonl")
    assert (code, "there is no image \N{REPLACEMENT CHARACTER}.jpg" in out) == (2, True)
    assert run("data", "import", "photos", photos / "mine.jsonl", "-o", tmp_path / "half")[0] == 2


def test_lines_may_begin_with_a_mark_have_no_subject_and_be_here(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"instruction": "go", "caption": "a", "edited_caption": "b", "category": "add", "subject": None}
    text = json.dumps(line | {"file_name": "0.jpg"})
    (photos / "metadata.jsonl").write_text(text, encoding="utf-8-sig")
    monkeypatch.chdir(photos)
    import_dataset("photos", Path(), tmp_path / "set")
    (record,) = read_records(tmp_path / "set")
    assert (record.source, record.id, record.subject) == ("photos", "photos/0", "")
