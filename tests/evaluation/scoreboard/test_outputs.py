"""An output stands for the edit that it was made for, and for no other."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from nopair.data.images import save_image
from nopair.endpoints.server import Server
from nopair.errors import OutputError
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.benchmarks.load import load_benchmark
from nopair.evaluation.editors.base import Told, below
from nopair.evaluation.editors.load import load_contestant
from nopair.evaluation.scoreboard.outputs import make_outputs, waiting


class Toy:
    """Notes what it edits; `fails` are keys of items for which it has no output."""

    makes: ClassVar[bool] = True
    name = "toy"
    server: Server | None = None
    about: Mapping[str, Any] = {"kind": "toy"}

    def __init__(self, *fails: str) -> None:
        self.made: list[str] = []
        self.fails = fails

    def output(self, item: Item, folder: Path) -> Path:
        return below(item, folder)

    def make(self, items: Sequence[Item], folder: Path, told: Told) -> None:
        for item in items:
            self.made.append(item.instruction)
            if item.key in self.fails:
                told(item, "fails")
                continue
            below(item, folder).parent.mkdir(parents=True, exist_ok=True)
            save_image(torch.zeros(3, 4, 4), below(item, folder))
            told(item, None)


def made(items: Sequence[Item], folder: Path, *fails: str) -> list[str]:
    """What is edited now."""
    toy = Toy(*fails)
    make_outputs(toy, items, folder, lambda done: None)
    return toy.made


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    found = []
    for key in ("a", "b", "c"):
        save_image(torch.rand(3, 8, 8), tmp_path / f"{key}.png")
        found.append(Item(f"add/{key}", key, "add", "", f"add {key}", tmp_path / f"{key}.png"))
    return found


def test_an_output_is_made_once_and_anew_where_the_edit_is_another(items: list[Item], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert made(items, out) == ["add a", "add b", "add c"]
    assert made(items, out) == []
    other = [items[0], dataclasses.replace(items[1], instruction="remove b"), items[2]]
    assert waiting(Toy(), other, out).stale == {"add/b"}
    assert made(other, out) == ["remove b"]
    assert made(other, out) == []
    save_image(torch.rand(3, 8, 8), items[2].source)
    assert made(other, out) == ["add c"], "another image under the same name"
    assert made(other[:1], out) == made(other, out) == [], "what is left out for once is not forgotten"


def test_an_output_that_cannot_be_made_anew_is_gone(items: list[Item], tmp_path: Path) -> None:
    out = tmp_path / "out"
    made(items, out)
    other = dataclasses.replace(items[0], instruction="remove a")
    assert made([other], out, "a") == ["remove a"]
    assert not (out / "add/a.png").exists(), "the old one is of another edit"
    assert made(items[:1], out) == ["add a"]


def test_an_output_of_which_nothing_is_told_is_made_anew(items: list[Item], tmp_path: Path) -> None:
    out = tmp_path / "out"
    made(items, out)
    (out / "asked.json").unlink()
    assert waiting(Toy(), items, out).stale == {"add/a", "add/b", "add/c"}
    assert made(items, out) == ["add a", "add b", "add c"]
    for text in ("[]", "{"):
        (out / "asked.json").write_text(text)
        with pytest.raises(OutputError, match="to edit anew"):
            made(items, out)


def test_outputs_of_others_are_taken_as_they_are(items: list[Item], tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    made(items[:2], theirs)
    editor = load_contestant(f"outputs:{theirs}", "cpu")
    other = [dataclasses.replace(item, instruction="whatever") for item in items]
    left = waiting(editor, other, tmp_path / "out")
    assert ([item.key for item in left.items], left.stale) == (["c"], frozenset())
    make_outputs(editor, other, tmp_path / "out", lambda done: None)
    assert (theirs / "add/a.png").is_file()


def test_a_line_more_at_the_top_moves_no_output_to_another_edit(tmp_path: Path) -> None:
    """Lines without a key are called by their number."""
    for name in ("a", "b", "c"):
        save_image(torch.rand(3, 8, 8), tmp_path / f"{name}.png")
    lines = [json.dumps({"image": f"{name}.png", "instruction": f"add {name}"}) for name in ("a", "b")]
    file, out = tmp_path / "edits.jsonl", tmp_path / "out"

    def edited(*lines: str) -> list[str]:
        file.write_text("\n".join(lines))
        return made(load_benchmark(f"jsonl:{file}", tmp_path / "work").items, out)

    assert edited(*lines) == ["add a", "add b"]
    top = json.dumps({"image": "c.png", "instruction": "add c"})
    assert edited(top, *lines) == ["add c", "add a", "add b"]
