"""Supervised fine-tuning with a toy base: it learns the answers it is shown, and resumes to the same bits."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

from nopair.training.loop import run_phases
from nopair.training.parts import Parts
from nopair.training.sft import SftPhase
from nopair.world.pairs import PairSource


@pytest.fixture
def make(sibling: Callable[[str], ModuleType]) -> Callable[..., tuple[Parts, SftPhase]]:
    """A phase on a few pairs, by overrides of its recipe."""
    toy = sibling("training/test_phases.py")

    def phase(*overrides: str) -> tuple[Parts, SftPhase]:
        parts = toy.make_parts(toy.make_recipe("sft.batch=4", *overrides))
        return parts, toy.begun(SftPhase(parts, PairSource(0, parts.recipe.sft.pairs, torch.device("cpu"))))

    return phase


def test_it_learns_its_pairs_and_hands_over_the_average(make: Callable[..., tuple[Parts, SftPhase]]) -> None:
    parts, phase = make("sft.steps=30", "sft.pairs=4", "sft.lr=1e-2", "sft.ema=0.5")
    losses = [phase.step(index)["loss"] for index in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    student, average = parts.roles.trainable("student"), phase.weights()
    assert all(torch.equal(value.detach(), average[name]) for name, value in student.items())


def test_the_target_is_what_it_learns(make: Callable[..., tuple[Parts, SftPhase]]) -> None:
    """With the answers turned into the references, the same step has another loss."""
    _, phase = make("sft.steps=1")
    honest = phase.step(0)["loss"]
    _, other = make("sft.steps=1")
    pairs = other._pairs

    class Copies:
        def batch(self, indices: list[int]) -> object:
            batch = pairs.batch(indices)
            return type(batch)(batch.reference, batch.reference, batch.instructions)

    other._pairs = Copies()
    assert other.step(0)["loss"] != honest


def test_accumulated_pieces_give_the_gradient_of_the_whole_batch(make: Callable[..., tuple[Parts, SftPhase]]) -> None:
    found = [make("sft.steps=1", f"sft.accumulate={pieces}")[1].step(0) for pieces in (1, 2, 4)]
    for metrics in found[1:]:
        assert metrics["loss"] == pytest.approx(found[0]["loss"], rel=1e-4)
        assert metrics["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=1e-3)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, make: Callable[..., tuple[Parts, SftPhase]]) -> None:
    console = Console(quiet=True)
    results = []
    for name, halves in (("whole", [True]), ("cut", [False, True])):
        for last in halves:
            parts, phase = make("sft.steps=5", "checkpoint.every=2", "sft.ema=0.5")
            resume = "latest" if len(halves) > 1 and last else None
            run_phases([phase], recipe=parts.recipe, directory=tmp_path / name, resume=resume, console=console)
            if not last:  # as if killed after the second step
                for number in (4, 5):
                    (tmp_path / name / "checkpoints" / f"checkpoint-{number}").rename(tmp_path / f"lost-{number}")
        results.append({key: value.clone() for key, value in phase.weights().items()})
    assert all(torch.equal(value, results[1][key]) for key, value in results[0].items())
