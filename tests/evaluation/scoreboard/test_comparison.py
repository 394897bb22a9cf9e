"""`nopair compare`: which runs and editors are named, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from nopair.errors import ConfigError, DataError
from nopair.evaluation.scoreboard.comparison import compare_runs


def write_run(folder: Path, marks: dict[str, float], **judge: Any) -> Path:
    """An evaluation of two edits by the judge `toy`. `marks` are by editor."""
    folder.mkdir(parents=True)
    facts = {"benchmark": {"name": "jsonl"}, "scorer": {"name": "viescore", "measures": ["O"]}}
    told = facts | {"judges": [{"name": "toy", "version": "toy", **judge}]}
    (folder / "results.json").write_text(json.dumps(told), encoding="utf-8")
    common = {"judge": "toy", "category": "add", "language": "en", "in_intersection": None, "problems": []}
    lines = [
        json.dumps(common | {"editor": editor, "place": place, "marks": {"O": mark}})
        for editor, mark in marks.items()
        for place in ("a", "b")
    ]
    (folder / "samples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def compared(capsys: pytest.CaptureFixture[str], first: object, second: object) -> list[dict[str, Any]]:
    compare_runs(str(first), str(second), as_json=True)
    return json.loads(capsys.readouterr().out)


def test_names_of_editors_and_folders_may_hold_colons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"tiny:editor": 4.0, "mine": 6.0})
    other = write_run(tmp_path / "run:b", {"tiny:editor": 5.0, "mine": 8.0})
    odd = write_run(tmp_path / "later: 2", {"only": 7.0})
    assert compared(capsys, f"{run}:tiny:editor", f"{run}:mine")[0]["difference"] == 2.0
    assert compared(capsys, f"{run}:mine", odd)[0]["difference"] == 1.0
    assert compared(capsys, f"{run}:mine", f"{odd}:only")[0]["difference"] == 1.0
    with pytest.raises(ConfigError, match="has no editor b:mine; it holds tiny:editor, mine"):
        compare_runs(f"{other}:mine", str(odd), as_json=False)  # the first folder from the left that is an evaluation
    with pytest.raises(DataError, match="name the folder of an evaluation"):
        compare_runs(f"{tmp_path}/nowhere:tiny:editor", str(odd), as_json=False)


def test_another_model_under_a_judges_name_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    marks = {"mine": 4.0}
    april = write_run(tmp_path / "april", marks, answered_as=["toy-04"])
    again = write_run(tmp_path / "again", marks, answered_as=["toy-04"])
    june = write_run(tmp_path / "june", marks, answered_as=["toy-04", "toy-06"])
    unknown = write_run(tmp_path / "unknown", marks)
    (row,) = compared(capsys, april, june)
    assert row["mind"] == [
        f"toy has answered as toy-04 in {april} and as toy-04, toy-06 in {june}: perhaps not one judge, so the "
        "difference may be between judges"
    ]
    for other in (again, unknown):
        assert [row["mind"] for row in compared(capsys, april, other)] == [[]]
    small = write_run(tmp_path / "small", marks, longest_side=512)
    (row,) = compared(capsys, again, small)
    assert row["mind"] == [
        f"toy was shown images as they are in {again} and images of at most 512 pixels in {small}: of larger ones, "
        "marks may differ for that"
    ]
    compare_runs(str(april), str(june), as_json=False)
    assert "mind: toy has answered as toy-04 in" in " ".join(capsys.readouterr().out.split())
    compare_runs(str(april), str(again), as_json=False)
    assert "mind:" not in capsys.readouterr().out
