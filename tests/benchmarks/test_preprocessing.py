"""Judges' preparation of images at the published sizes: the table of docs/judges.md, and what it may not exceed."""

import importlib
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "judges.md"
JUDGES = ("llava-onevision-qwen2-7b-ov-hf", "InternVL3-8B-hf", "Qwen2.5-VL-7B-Instruct", "Qwen3-VL-8B-Instruct",
          "SmolVLM2-500M-Video-Instruct")  # fmt: skip


@pytest.fixture
def preprocessing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("preprocessing")


@pytest.mark.parametrize("judge", JUDGES)
def test_at_the_published_size_the_error_is_that_of_rounding(preprocessing: Any, judge: str) -> None:
    (name,) = [name for name in preprocessing.JUDGES if name.endswith(f"/{judge}")]
    family, processor = preprocessing.prepared(name)
    (row,) = [line for line in DOCS.read_text().splitlines() if line.startswith(f"| {judge} |")]
    largest, mean = (float(cell) for cell in row.split("|")[2:4])
    for kind in ("noise", "photo"):
        error = preprocessing.errors(family, processor, preprocessing.picture(kind, 683, 1024))
        assert error.max() <= largest + 0.01
        assert error.mean() <= mean + 0.01
    assert largest <= 1.5
    assert mean <= 0.35
