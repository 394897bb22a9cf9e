"""A dataset that lacks words gets them: nothing else changes, nothing is paid twice, what fails is aside."""

import asyncio
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nopair.cli import app
from nopair.data.places import WORK
from nopair.data.records import Photo, Record, measure
from nopair.data.shards import Card, read_records, write_dataset
from nopair.data.validate import problems
from nopair.errors import ConfigError, DataError, OutputError, UnavailableError
from nopair.synthesis.complete import complete
from nopair.synthesis.journal import Journal
from nopair.synthesis.recipe import load_synthesis
from nopair.synthesis.run import Work
from nopair.synthesis.write import read_rejected

FULL = {"caption": "Blocks.", "edited_caption": "Red blocks.", "category": "colour", "subject": "block"}
ROWS: dict[str, tuple[int, dict[str, str]]] = {
    "whole": (1, FULL),
    "bare": (1, {}),
    "same photo": (1, {"category": "style"}),
    "removal": (2, {"category": "remove"}),
    "captioned": (3, {"caption": "Blocks.", "category": "add"}),
    "no subject": (3, {name: word for name, word in FULL.items() if name != "subject"}),
    "half": (4, {"edited_caption": "Kept.", "subject": "kept"}),
    "nothing": (5, {"category": "nothing"}),
    "zoom": (2, {}),
}
"""By id, the photo's number and the words that are there."""


def rows(toy: ModuleType, *, by_path: Path | None = None) -> Iterator[Record]:
    for name, (number, words) in ROWS.items():
        buffer = io.BytesIO()
        toy.scene(number).save(buffer, "PNG")
        facts = measure(buffer.getvalue(), name)
        photo = Photo(bytes=buffer.getvalue())
        if by_path is not None:
            (by_path / f"{number}.png").write_bytes(buffer.getvalue())
            photo = Photo(path=f"../{by_path.name}/{number}.png")
        measured = {name: getattr(facts, name) for name in ("height", "width", "image_hash", "image_length")}
        told: dict[str, Any] = {"instruction": f"do {name}", "source": "there", "licence": "CC0", **words}
        yield Record(id=name, image=photo, **measured, **told)


@pytest.fixture
def source(toy: ModuleType, tmp_path: Path) -> Path:
    """The records as a dataset."""
    write_dataset(tmp_path / "source", rows(toy), dropped={"no instruction": 2}, other_kinds={"Zoom in": 1})
    return tmp_path / "source"


def run(source: Path, dataset: Path, recipe: Path, until: Any = "write") -> str:
    out = io.StringIO()
    asyncio.run(complete(source, dataset, load_synthesis(recipe), Console(file=out, width=1000), until))
    return out.getvalue()


def contents(dataset: Path) -> dict[str, str]:
    files = (path for path in sorted(dataset.rglob("*")) if path.is_file() and WORK not in path.parts)
    return {path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_is_missing_is_written_and_nothing_else_changes(
    toy: ModuleType, endpoint_server: ModuleType, source: Path, tmp_path: Path
) -> None:
    before = {record.id: record for record in read_records(source)}
    untouched = contents(source)
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        said = run(source, tmp_path / "done", toy.recipe(tmp_path, server.url))
    after = {record.id: record for record in read_records(tmp_path / "done")}
    assert list(after) == [name for name in ROWS if name != "zoom"]
    assert after["whole"] == before["whole"]
    for name, record in after.items():
        assert not record.missing
        for field in Record.model_fields:
            had = getattr(before[name], field)
            assert had is None or field == "stages" or getattr(record, field) == had, (name, field)
    assert after["removal"].subject == after["no subject"].subject == "block"
    assert after["bare"].category == "add"
    assert after["half"].category == "add"
    assert after["nothing"].caption == after["nothing"].edited_caption is not None
    told = {name: [(stage.stage, stage.prompt_version) for stage in record.stages] for name, record in after.items()}
    captioned, filled = ("caption", "caption-1"), ("fill", "fill-1")
    assert told["bare"] == told["removal"] == [captioned, filled]
    assert (told["captioned"], told["nothing"], told["no subject"]) == ([filled], [captioned], [filled])
    assert [(one.stage, one.reason, one.name) for one in read_rejected(tmp_path / "done")] == [
        ("fill", "no kind of edit that nopair knows", "zoom")
    ]
    assert Card.read(tmp_path / "done").dropped == {"fill: no kind of edit that nopair knows": 1, "no instruction": 2}
    assert not list(problems(tmp_path / "done"))
    assert contents(source) == untouched
    assert len([one for one in server.asked if "describe photos" in one.system]) == 4, "each photo once"
    assert len(server.asked) == 4 + 7
    for words in (
        "8 of 9 records lack words",
        "caption: at most 4 answers",
        "fill: at most 7 answers",
        "up to 3 times that",
        "8 records in",
    ):
        assert words in said


def test_equal_answers_give_equal_bytes_and_no_answer_is_paid_twice(
    toy: ModuleType, endpoint_server: ModuleType, source: Path, tmp_path: Path
) -> None:
    """Stopped after each answer in turn; a server that fails in every way; stage after stage."""
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        run(source, tmp_path / "once", toy.recipe(tmp_path, server.url))
        whole = len(server.asked)
    once = contents(tmp_path / "once")
    model, allowed = toy.Model(endpoint_server), 0

    def script(asked: Any) -> Any:
        return model(asked) if len(server.answered) < allowed else endpoint_server.Fail(500)

    with endpoint_server.serve(script) as server:
        one = {"engine__attempts": 1, "engine__concurrency": 1}
        changes = {f"{stage}__{name}": value for stage in ("caption", "propose") for name, value in one.items()}
        recipe = toy.recipe(tmp_path, server.url, **changes)
        while allowed < whole:
            with pytest.raises(UnavailableError):
                run(source, tmp_path / "stopped", recipe)
            assert not (tmp_path / "stopped" / "dataset.json").exists()
            allowed += 1
        run(source, tmp_path / "stopped", recipe)
        assert len(server.answered) == whole
    assert contents(tmp_path / "stopped") == once
    with endpoint_server.serve(toy.flaky(toy.Model(endpoint_server), endpoint_server)) as server:
        recipe = toy.recipe(tmp_path, server.url)
        for until in ("scan", "caption", "propose", "verify", "write", "write"):
            run(source, tmp_path / "staged", recipe, until)
        assert len(server.answered) == whole
    assert contents(tmp_path / "staged") == once


def test_one_run_at_a_time_and_what_a_killed_one_left_unfinished_is_removed(
    toy: ModuleType, source: Path, tmp_path: Path
) -> None:
    recipe = toy.recipe(tmp_path, "http://127.0.0.1:9")  # a survey asks nobody
    run(source, tmp_path / "new", recipe, "scan")
    kept = sorted((tmp_path / "new").rglob("*.jpg"))
    left = kept[0].parent / ".nopair-0123456789abcdef.part"
    left.write_bytes(b"half a photo")
    with Journal(Work(tmp_path / "new" / WORK).answers), pytest.raises(OutputError, match="another run"):
        run(source, tmp_path / "new", recipe, "scan")
    assert left.exists(), "it may be the other run's"
    run(source, tmp_path / "new", recipe, "scan")
    assert not left.exists()
    assert sorted((tmp_path / "new").rglob("*.jpg")) == kept


def test_photos_by_path_stay_where_they_are_and_broken_ones_are_aside(
    toy: ModuleType, endpoint_server: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    write_dataset(tmp_path / "source", rows(toy, by_path=tmp_path / "photos"))
    whole = (tmp_path / "photos" / "2.png").read_bytes()
    (tmp_path / "photos" / "2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos" / "5.png").unlink()
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        run(tmp_path / "source", tmp_path / "deep" / "done", toy.recipe(tmp_path, server.url))
    done = list(read_records(tmp_path / "deep" / "done"))
    assert [record.id for record in done] == ["whole", "bare", "same photo", "captioned", "no subject", "half"]
    assert {record.image.path for record in done} == {f"../../photos/{number}.png" for number in (1, 3, 4)}
    assert not list(problems(tmp_path / "deep" / "done"))
    aside = [(one.name, one.reason) for one in read_rejected(tmp_path / "deep" / "done")]
    assert aside == [("removal", "not the photo that the record was made from"), ("nothing", "not readable")]
    assert Card.read(tmp_path / "deep" / "done").dropped == {"no caption for the photo": 3}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"category": "sepia"}, "kind of edit not asked for"),
        ({"object": ""}, "no object for remove"),
        ({"category": "free-form", "object": ""}, "no object for free-form"),
        ({"edited_caption": ""}, "answer not of the form asked for"),
        ({"more": 1}, "answer not of the form asked for"),
    ],
)
def test_answers_that_cannot_be_used(
    toy: ModuleType, endpoint_server: ModuleType, source: Path, tmp_path: Path, answer: dict[str, Any], reason: str
) -> None:
    model = toy.Model(endpoint_server)

    def script(asked: Any) -> Any:
        said = model(asked)
        return model.say(json.loads(said.text) | answer) if "complete the notes" in asked.system else said

    with endpoint_server.serve(script) as server:
        run(source, tmp_path / "done", toy.recipe(tmp_path, server.url))
    assert reason in {one.reason for one in read_rejected(tmp_path / "done")}
    assert not list(problems(tmp_path / "done"))


def test_an_instruction_that_gives_orders_stays_data(
    toy: ModuleType, endpoint_server: ModuleType, source: Path, tmp_path: Path
) -> None:
    records = [
        record.model_copy(update={"instruction": toy.INJECTION, "caption": None, "edited_caption": None})
        for record in read_records(source)
    ]
    write_dataset(source, records)
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        run(source, tmp_path / "done", toy.recipe(tmp_path, server.url))
    asked = [one for one in server.asked if "complete the notes" in one.system]
    assert len({one.system for one in asked}) == 1
    assert all(json.loads(one.text)["instruction"] == toy.INJECTION for one in asked)
    assert not [one for one in asked if set("<>|[]`\u202e\n") & set(one.text)]


def test_by_the_command_line(toy: ModuleType, endpoint_server: ModuleType, source: Path, tmp_path: Path) -> None:
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        recipe = str(toy.recipe(tmp_path, server.url))
        asked = ["synthesize", str(source), "-o", str(tmp_path / "done"), "--recipe", recipe]
        assert CliRunner().invoke(app, asked, catch_exceptions=False).exit_code == 0
        with pytest.raises(ConfigError, match="--ray is for photos"):
            CliRunner().invoke(app, [*asked, "--ray", "2"], catch_exceptions=False)
        with pytest.raises(ConfigError, match="another folder"):
            run(source, source / ".." / "source", Path(recipe))
    assert CliRunner().invoke(app, ["data", "validate", str(tmp_path / "done")], catch_exceptions=False).exit_code == 0


def test_records_that_share_an_id(toy: ModuleType, tmp_path: Path) -> None:
    write_dataset(tmp_path / "source", [*rows(toy), *rows(toy)])
    with pytest.raises(DataError, match="share ids"):
        run(tmp_path / "source", tmp_path / "done", toy.recipe(tmp_path, "http://127.0.0.1:9/v1"), "scan")
