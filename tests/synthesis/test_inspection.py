"""What is told of a dataset: counts, copies, leaks, and a page on which strangers' words stay words."""

import base64
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from nopair.cli import app
from nopair.data.records import Photo, Record, measure
from nopair.data.shards import read_records, write_dataset
from nopair.errors import DataError
from nopair.synthesis.inspect_command import _thumbnail, run_inspection, tables
from nopair.synthesis.inspection import inspect
from nopair.synthesis.items import Aside
from nopair.synthesis.journal import Journal
from nopair.synthesis.leaks import NEAR, Benchmark, picture_of, plain, read_benchmark
from nopair.synthesis.recipe import ScanConfig
from nopair.synthesis.scan import scan
from nopair.synthesis.write import counted

SCRIPT = "<script>alert(1)</script> make it \"red\" & 'bold' {{ 7 * 7 }}"


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **settings)
    return content.getvalue()


def record(number: int, content: bytes, instruction: str, category: str | None = "add", **more: Any) -> Record:
    measured = measure(content, "photo")
    return Record(
        id=str(number),
        image=Photo(bytes=content),
        height=measured.height,
        width=measured.width,
        image_hash=measured.image_hash,
        image_length=measured.image_length,
        instruction=instruction,
        category=category,  # pyright: ignore[reportArgumentType]
        source="tests",
        licence="CC0-1.0",
        **more,
    )


@pytest.fixture(scope="module")
def dataset(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five records of four photos, one of them a copy; one question twice; two kinds of edit and one unknown."""
    folder = tmp_path_factory.mktemp("inspected") / "set"
    first, second, third = (encoded(toy.scene(seed)) for seed in (1, 2, 3))
    copy = encoded(toy.scene(1).resize((120, 100)), "JPEG", quality=80)
    aside = [Aside("scan", "too small", "<b>.png"), Aside("scan", "too small", "b")]
    write_dataset(
        folder,
        [
            record(0, first, "add a hat", caption="a", edited_caption="b", subject="hat"),
            record(1, first, "Add a HAT."),
            record(2, second, "remove the very red hat", "remove", subject="hat"),
            record(3, copy, SCRIPT, None),
            record(4, third, "add a big blue boat to the lake"),
        ],
        dropped=counted(aside),
    )
    return folder


def benchmark(tmp_path: Path, **files: bytes) -> Benchmark:
    folder = tmp_path / "bench"
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return read_benchmark(folder)


def test_everything_is_counted(dataset: Path) -> None:
    found = inspect(dataset, [], 10, 0)
    assert {name: kind.records for name, kind in found.kinds.items()} == {
        "all": 5,
        "add": 3,
        "not given": 1,
        "remove": 1,
    }
    assert (found.photos, found.near_photos, found.unreadable, found.twice) == (4, 1, 0, 1)
    add = found.kinds["add"]
    assert (add.shortest, add.median, add.longest) == (3, 3, 8)
    assert add.distinct == pytest.approx(2 / 3)
    assert add.pairs == pytest.approx(8 / 11)
    assert found.rejected == {"scan: too small": 2}
    assert found.missing == {"caption": 4, "category": 1, "edited_caption": 4, "subject": 3}
    assert not found.leaks


def test_a_sample_is_fair_to_rare_kinds_and_follows_the_seed(dataset: Path) -> None:
    taken = inspect(dataset, [], 3, 0).samples
    assert sorted(one.record.category or "" for one in taken) == ["", "add", "remove"]
    assert taken == inspect(dataset, [], 3, 0).samples
    assert len(inspect(dataset, [], 100, 0).samples) == 5


def test_a_picture_of_a_benchmark_is_found_though_it_was_scaled_and_compressed(
    toy: ModuleType, dataset: Path, tmp_path: Path
) -> None:
    other = encoded(toy.scene(2).resize((200, 170)), "JPEG", quality=60)
    known = benchmark(tmp_path, a__jpg=other, b__png=encoded(toy.scene(77)), c__png=b"broken")
    assert known.unreadable == 1
    found = inspect(dataset, [known], 1, 0)
    assert found.leaked == {("bench", "picture"): 1}
    assert [leak.record for leak in found.leaks] == ["2"]


def test_what_was_read_of_a_benchmark_is_told_and_pictures_are_found_in_lists(
    toy: ModuleType, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nested = tmp_path / "nested"
    nested.mkdir()
    row = {"prompt": "fly", "images": [{"bytes": encoded(toy.scene(2)), "path": None}, {"bytes": b"cut", "path": None}]}
    pq.write_table(pa.Table.from_pylist([row]), nested / "a.parquet")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.json").write_text('{"instruction": "fly"}')
    run_inspection(dataset, [nested, tmp_path / "words"], tmp_path / "page.html", 1, 0)
    said, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    for told in (
        "nested: 1 pictures and 1 instructions read, 1 pictures unreadable",
        "words: 0 pictures and 1 instructions read",
    ):
        assert told in said
        assert told in page
    assert "1 records have a picture of nested" in said
    assert "othing of what was read" not in said + page
    run_inspection(dataset, [tmp_path / "words"], tmp_path / "page.html", 1, 0)
    assert "nothing of what was read is in it" in capsys.readouterr().out
    assert "Nothing of what was read is in it." in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("kind", ["clear", "half", "16 bits"])
def test_a_picture_of_a_benchmark_is_seen_as_the_scan_sees_a_photo(toy: ModuleType, tmp_path: Path, kind: str) -> None:
    """On white where it is transparent, and with all its bits."""
    image = toy.scene(5).convert("L") if kind == "16 bits" else toy.scene(5).convert("RGBA")
    if kind == "16 bits":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    else:
        image.paste((0, 0, 0, 0), (0, 0, 96 if kind == "clear" else 40, 30))
    (tmp_path / "photos").mkdir()
    image.save(tmp_path / "photos" / "a.png")
    with Journal(tmp_path / "scan.jsonl") as journal:
        (photo,) = scan(tmp_path / "photos", ScanConfig(min_side=8), journal, tmp_path / "kept").photos
    seen, kept = (picture_of(path.read_bytes()) for path in (tmp_path / "photos" / "a.png", photo.file))
    assert seen is not None
    assert kept is not None
    assert seen.near(kept, NEAR)


def test_what_an_import_left_out_is_told(toy: ModuleType, dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "imported", read_records(dataset), dropped={"no such image": 7})
    assert inspect(tmp_path / "imported", [], 1, 0).rejected == {"no such image": 7}


@pytest.mark.parametrize("form", ["json", "jsonl", "parquet"])
def test_an_instruction_of_a_benchmark_is_found_in_whatever_form_it_comes(
    toy: ModuleType, dataset: Path, tmp_path: Path, form: str
) -> None:
    row = {"instruction": "add a hat!", "task_type": "remove the very red hat"}
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row | {"input_image": {"bytes": encoded(toy.scene(3)), "path": None}}]), table)
    contents = {
        "json": json.dumps({"1": row, "2": {"prompt": ["nothing like it"]}}).encode(),
        "jsonl": (json.dumps(row) + "\n\n").encode(),
        "parquet": table.getvalue(),
    }
    found = inspect(dataset, [benchmark(tmp_path, **{f"a__{form}": contents[form]})], 1, 0)
    wanted = {("bench", "instruction"): 2}
    assert found.leaked == (wanted | {("bench", "picture"): 1} if form == "parquet" else wanted)
    assert {leak.record for leak in found.leaks if leak.what == "instruction"} == {"0", "1"}


@pytest.mark.parametrize("files", [{}, {"a__txt": b"x"}, {"a__json": b"{"}, {"a__parquet": b"x"}, {"a__arrow": b"x"}])
def test_what_is_no_benchmark_is_an_error(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(DataError, match="bench"):
        benchmark(tmp_path, **files)


def test_instructions_are_one_whatever_their_case_and_stops() -> None:
    assert plain("  Add a\tHAT!") == plain("add a hat") != plain("add a cap")


def test_the_command_prints_tables_and_writes_a_page_that_runs_nothing(
    toy: ModuleType, dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "GEdit").mkdir()
    (tmp_path / "GEdit" / "a.png").write_bytes(encoded(toy.scene(2)))
    page = tmp_path / "page.html"
    asked = ["data", "inspect", str(dataset), "--benchmark", str(tmp_path / "GEdit"), "-o", str(page)]
    result = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert result.exit_code == 0
    for words in ("scan: too small", "not given", "mind: 1 records have a picture of GEdit", "1 records ask the same"):
        assert words in result.output
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; make it &#34;red&#34; &amp; &#39;bold&#39; {{ 7 * 7 }}" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert text.count("data:image/jpeg;base64,") == 5
    assert "http" not in text.replace("http-equiv", "")


def test_the_page_shows_photos_upright_and_with_all_their_bits() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.new("RGB", (300, 100), (9, 9, 9)), "JPEG", exif=exif)
    grey = encoded(Image.fromarray(np.full((40, 40), 20000, np.uint16)))
    shown = [Image.open(io.BytesIO(base64.b64decode(_thumbnail(one).partition(",")[2]))) for one in (turned, grey)]
    assert shown[0].size == (100, 300)
    assert np.asarray(shown[1]).mean() == pytest.approx(20000 / 257, abs=2)
    assert _thumbnail(turned[:200]) == "data:,"


def test_names_that_look_like_markup_are_printed_as_they_are(dataset: Path) -> None:
    found = inspect(dataset, [], 1, 0)
    out = io.StringIO()
    for table in tables(found):
        Console(file=out).print(table)
    assert "scan: too small" in out.getvalue()
