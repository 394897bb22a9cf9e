"""A benchmark with outputs, and what a user asks of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nopair.data.images import save_image
from nopair.evaluation.scoreboard.command import Request

EVIL = 'add <script>alert(1)</script> & "hats"'
ITEMS = [
    {"key": "a", "category": "add", "language": "en", "instruction": EVIL},
    {"key": "b", "category": "add", "language": "en", "instruction": "add b"},
    {"key": "c", "category": "style", "language": "en", "instruction": "style c"},
    {"key": "d", "category": "style", "language": "cn", "instruction": "改变 d"},
]


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Four edits in two languages, one of them broken beside; and outputs of two editors, one of which lacks one."""
    lines = []
    for number, item in enumerate(ITEMS):
        save_image(torch.full((3, 16, 24), number / 10), tmp_path / f"{item['key']}.png")
        lines.append(json.dumps(item | {"image": f"{item['key']}.png"}))
        for editor in ("theirs", "others"):
            place = tmp_path / editor / item["category"] / item["language"] / f"{item['key']}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            if (editor, item["key"]) != ("others", "b"):
                save_image(torch.rand(3, 20, 20), place)
    lines.append(json.dumps({"image": "gone.png", "instruction": "x"}))
    (tmp_path / "edits.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.fixture
def request_of(bench: Path) -> Callable[..., Request]:
    def make(*judges: str, editors: tuple[str, ...] = ("theirs", "others"), **changes: Any) -> Request:
        settings: dict[str, Any] = {
            "benchmark": f"jsonl:{bench / 'edits.jsonl'}",
            "editors": tuple(f"outputs:{bench / name}" for name in editors),
            "judges": judges,
            "features": (),
            "scorer": None,
            "rubric": None,
            "languages": (),
            "per_category": None,
            "output": bench / "run",
            "device": "cpu",
            "dry_run": False,
            "command": "nopair evaluate …",
        }
        overrides = changes.pop("overrides", None)
        return Request(**settings | changes | ({} if overrides is None else {"editors": overrides}))

    return make
