"""The demo, cut short: all that it promises to write is there and readable."""

import json
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from torch.nn import functional

from nopair.editor import Editor
from nopair.errors import Interrupted, OutputError
from nopair.evaluation import demo as module
from nopair.training import loop
from nopair.training.phase import Phase
from nopair.training.signals import StopRequest

SHORT = [
    "threads=1",
    "warmup.steps=2",
    "warmup.batch=2",
    "npedit.steps=2",
    "npedit.batch=2",
    "logging.every=1",
    "logging.sample_scenes=2",
]


def test_a_short_demo_writes_editor_report_picture_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_CATEGORY", 1)
    monkeypatch.setattr(module, "SHOWN", 1)
    output = tmp_path / "demo"
    for _ in range(2):  # a second demo replaces the first
        module.demo(output, 0, SHORT)
    results = json.loads((output / "results.json").read_text())
    assert set(results) >= {"before", "after", "cost", "scenes", "seed"}
    for side in ("before", "after"):
        assert set(results[side]) >= {"success", "preservation", "realism", "overall", "categories"}
        assert len(results[side]["categories"]) == 9
    assert set(results["cost"]) == {"seconds", "flops", "peak_memory_bytes"}
    assert results["cost"]["flops"] > 1e9
    assert results["scenes"] == 9
    Image.open(output / "grid.png").verify()
    assert "<svg" in (output / "report.html").read_text()
    Editor.load(output / "editor")


@pytest.mark.parametrize("kind", ["folder", "file", "half a run"])
def test_a_demo_removes_nothing_but_an_earlier_demo(tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "training"
    if kind != "file":
        mine.mkdir()
        mine /= "recipe.yaml" if kind == "half a run" else "years.txt"
    mine.write_text("of work")
    with pytest.raises(OutputError, match="training: is no earlier run"):
        module.demo(tmp_path, 0, SHORT)
    assert mine.read_text() == "of work"
    assert list(tmp_path.iterdir()) == [tmp_path / "training"]


def test_a_demo_that_cannot_remove_the_earlier_one_says_so(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "checkpoints").mkdir(parents=True)
    (elsewhere / "recipe.yaml").write_text("")
    (tmp_path / "training").symlink_to(elsewhere)
    with pytest.raises(OutputError, match="training: cannot be removed"):
        module.demo(tmp_path, 0, SHORT)
    assert (elsewhere / "recipe.yaml").is_file()


def test_a_stopped_demo_promises_only_what_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "stop_on_signals", lambda: nullcontext(StopRequest(signal.SIGINT)))
    with pytest.raises(Interrupted):
        module.demo(tmp_path, 0, SHORT)
    said = capsys.readouterr().out
    assert "stopped after warmup step 1; run the same command again to start anew" in said
    assert "--resume" not in said


def test_a_place_that_is_no_editors_is_told_before_the_demo_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "editor").mkdir()
    (tmp_path / "editor" / "mine.txt").write_text("")
    monkeypatch.setattr(module, "compose", pytest.fail)
    with pytest.raises(OutputError, match="editor: holds other files"):
        module.demo(tmp_path, 0, SHORT)


def test_an_editor_that_cannot_be_written_costs_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(editor: Editor, folder: Path) -> None:
        raise OutputError(f"{folder}: no space")

    monkeypatch.setattr(module, "PER_CATEGORY", 1)
    monkeypatch.setattr(Editor, "save", full)
    with pytest.raises(OutputError, match="no space"):
        module.demo(tmp_path, 0, SHORT)
    assert {path.name for path in tmp_path.iterdir()} == {"training", "grid.png", "report.html", "results.json"}


class Attending:
    """A phase whose step is nothing but attention."""

    name, steps = "attending", 3

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def step(self, index: int) -> dict[str, float]:
        queries = torch.ones(1, 2, 8, 4)
        functional.scaled_dot_product_attention(queries, queries, queries)
        return {}

    def state(self) -> dict[str, object]:
        return {}

    def load_state(self, state: object) -> None: ...

    def samples(self, index: int) -> None: ...


def test_attention_is_among_the_operations_that_are_counted() -> None:
    of_a_product = 2 * (2 * 8 * 8 * 4)
    assert module._flops([cast(Phase, Attending())]) == Attending.steps * 2 * of_a_product
