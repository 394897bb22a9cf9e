"""The committed results of studies: the page made of them, and what they promise to hold."""

import datetime
import importlib
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from nopair.evaluation.studies.catalogue import STUDIES
from nopair.evaluation.studies.report import heads

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docs" / "results").glob("*.json"))
MEASURES = ("success", "preservation", "realism", "overall", "judge_edit", "judge_identity")
STUDY_KEYS = {"study", "question", "claim", "configurations", "edits", "scenes_seed", "command", "date", "machine"}
OWN_KEYS = {"name", "seeds", "failed", "updates", "seconds", "spread", "runs"}
ORIGIN = {"seconds", "processor_seconds", "machine", "version", "date"}

each = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_page_of_results_is_made_of_the_committed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a study: `python benchmarks/results.py > docs/results.md`."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page = importlib.import_module("results").page()
    assert page == (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == [
        name for name in STUDIES if name in {path.stem for path in FILES}
    ]


def test_there_are_results_and_each_is_of_a_study_that_there_is() -> None:
    assert FILES
    assert {path.stem for path in FILES} <= set(STUDIES), "the page would leave them out"


@each
def test_a_result_says_what_it_promises_to(path: Path) -> None:
    found = read(path)
    assert found.keys() >= STUDY_KEYS
    assert found["study"] == path.stem
    assert found["command"].startswith(f"nopair study {path.stem}")
    assert "--quick" not in found["command"], "of quick runs nothing can be learnt"
    for day in found["date"].split(" to "):
        assert datetime.date.fromisoformat(day)
    assert found["machine"]
    assert found["edits"] > 0
    assert len({one["name"] for one in found["configurations"]}) == len(found["configurations"]) > 1
    for one in found["configurations"]:
        assert one.keys() >= OWN_KEYS
        assert len(set(one["seeds"])) == len(one["seeds"]) > 0
        assert len(one["runs"]) == len(one["seeds"]) - one["failed"]
        assert {run["seed"] for run in one["runs"]} <= set(one["seeds"])
        assert one["updates"] >= 0
        assert ("processor_seconds" in one) == ("processor s" in heads(found))
        if "processor_seconds" in one:
            assert all(run.keys() >= ORIGIN for run in one["runs"])


@each
def test_means_and_spreads_are_those_of_the_single_runs(path: Path) -> None:
    for one in read(path)["configurations"]:
        if not one["runs"]:
            assert not set(MEASURES) & one.keys(), "of no run there is no mean"
            continue
        assert one["spread"].keys() == set(MEASURES)
        for measure in MEASURES:
            values = [run[measure] for run in one["runs"]]
            assert all(0 <= value <= 1 for value in values)
            assert one[measure] == pytest.approx(statistics.fmean(values), abs=1e-12)
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            assert one["spread"][measure] == pytest.approx(spread, abs=1e-12)
        for price in {"seconds", "processor_seconds"} & one["runs"][0].keys():
            taken = [run[price] for run in one["runs"]]
            assert one[price] == (None if None in taken else pytest.approx(statistics.fmean(taken)))
