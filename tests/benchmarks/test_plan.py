"""The benchmark of plans: what is measured is what was planned."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from nopair.config import Recipe, load_recipe
from nopair.training.run import compose


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("plan")


def step(recipe: Recipe) -> dict[str, float]:
    phase = compose(recipe).npedit
    phase.begin()
    return phase.step(0)


def test_no_step_of_random_weights_is_refused(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused step makes no moments, and then less is measured than planned."""
    monkeypatch.setitem(bench.SIZES, "little", (128, 1, 64))
    bench.build(tmp_path, "little")
    recipe = load_recipe("demo", bench.overrides(tmp_path, "full", 1))
    taken = step(recipe)
    bench.require_taken(taken)
    guarded = recipe.guard.model_copy(update={"max_grad_norm_spike": taken["fake_grad_norm"] / 2})
    refused = step(recipe.model_copy(update={"guard": guarded}))
    with pytest.raises(SystemExit, match="a step was refused"):
        bench.require_taken(refused)
