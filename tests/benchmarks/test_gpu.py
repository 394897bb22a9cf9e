"""The benchmark for GPUs, tried where there is none: the same code on the tiny models."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from nopair.config import load_recipe
from nopair.errors import MemoryShortError
from nopair.planning.plan import GIB, Plan, StagePlan


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("gpu")


def test_a_step_with_adapters_and_everything_recomputed(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    adapters = ["base.roles=lora", "base.lora={rank: 2, alpha: 2, targets: [to_q]}", "data.cache=cache"]
    switches = ["base.dtype=bfloat16", "base.checkpointing=true", "judge.checkpointing=true", "npedit.batch=1"]
    name, overrides = gpu.SIZES["tiny"]
    recipe = load_recipe(name, [*overrides, *adapters, *switches])
    planned = Plan(
        name, 1, {}, {}, (StagePlan("npedit student step", {"weights": GIB}, {"student": 4 * 10**12}),), (), {}
    )
    gpu.show(recipe, planned, 10**12, gpu.measure(recipe, torch.device("cpu"), 1), "a CPU", gpu.CARDS["h100"])
    printed = capsys.readouterr().out
    said = {
        part: (float(share), float(seconds))
        for part, share, seconds in re.findall(r"^  ([a-z, ]+?) +([\d.]+)%  ([\d.]+) s$", printed, re.MULTILINE)
    }
    for part in ("student", "fake score", "judge", "decoder"):
        assert said[part][1] > 0
        assert said[f"{part}, backward"][1] > 0
    assert said["teacher"][1] > 0
    assert "teacher, backward" not in said, "no gradient goes through the teacher"
    assert sum(share for share, _ in said.values()) == pytest.approx(100, abs=1)
    assert "planned 1.00 GiB" in printed
    counts = re.findall(r"([\d.]+) TFLOP a step, .* of 989$", printed, re.MULTILINE)
    assert counts == ["1", "4"]
    assert "mind:" not in printed


def test_a_gpu_that_is_too_small_and_none_are_told_in_one_line(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    planned = Plan("big", 1, {}, {}, (StagePlan("npedit student step", {"weights": 10 * GIB}, {}),), (), {})
    gpu.require_room(planned, 10 * GIB, 10 * GIB, "a card")
    with pytest.raises(MemoryShortError, match=r"^big needs 10.0 GiB, a card has 8.0; choose .*--recipe$"):
        gpu.require_room(planned, 0, 8 * GIB, "a card")
    with pytest.raises(MemoryShortError, match=r"^big needs 54.0 GiB for a base that is drawn before it is quantised,"):
        gpu.require_room(planned, 54 * GIB, 24 * GIB, "a card")
    assert gpu.drawn_bytes(load_recipe("demo", ["base.roles=lora", "base.dtype=bfloat16"])) < GIB
    with pytest.raises(SystemExit, match=r"^error: device cuda:99: there is no GPU 99"):
        gpu.main(["--device", "cuda:99"])


def test_cards_are_known_by_their_names(gpu: Any) -> None:
    assert gpu.card_of("NVIDIA H100 80GB HBM3") == gpu.CARDS["h100"]
    assert gpu.card_of("NVIDIA GeForce RTX 4090") == gpu.CARDS["rtx4090"]
    assert gpu.card_of("a CPU") is None
