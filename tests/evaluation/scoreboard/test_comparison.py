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
