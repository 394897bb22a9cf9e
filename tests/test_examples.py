"""The examples run and do what they say; the method in one file computes what `nopair.method` computes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from nopair import method

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def twin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("method_in_one_file", EXAMPLES / "method_in_one_file.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_editor_learns_without_pairs(twin: ModuleType) -> None:
    """At about half of its default effort: copying before, editing after."""
    torch.manual_seed(0)
    base = twin.pretrain(750)
    student = twin.warm_up(base, 250)
    before = twin.score(student)
    after = twin.score(twin.train(base, student, 500))
    assert before["kept"] > 0.9
    assert before["edited"] < 0.15
    assert after["edited"] > 0.7
    assert after["kept"] > 0.9
    assert after["success"] > 0.5


def test_it_prints_the_scores_of_every_stage(twin: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    twin.main(effort=0.01)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("  edited")[0].strip() for row in rows] == ["warmed up", "trained", "only judge", "only DMD"]


def flat(x: Tensor) -> Tensor:
    return x.flatten(-3)


def vector_field(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(x) + t[:, None]


def other_vector_field(x: Tensor, t: Tensor) -> Tensor:
    return torch.cos(x) * t[:, None]


def field(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(x) + t[:, None, None, None]


def other_field(x: Tensor, t: Tensor) -> Tensor:
    return torch.cos(x) * t[:, None, None, None]


def test_it_computes_what_the_package_computes(twin: ModuleType) -> None:
    x, noise = torch.randn(2, 6, 4, 1, 1)
    t = torch.linspace(0.1, 1.0, 6)
    torch.testing.assert_close(twin.LEVELS, method.levels(twin.STEPS, twin.SHIFT))
    torch.testing.assert_close(
        twin.query_times(t.clone()), method.query_times(t, low=0.02, high=0.98, shift=twin.SHIFT)
    )
    noises = torch.randn(2, 6, 4, 1, 1)
    levels = method.training_levels(twin.LEVELS, torch.tensor([1, 2, 3, 4, 1, 2]))
    torch.testing.assert_close(
        twin.rollout(vector_field, flat(noises), levels), flat(method.rollout(field, noises, levels))
    )
    torch.testing.assert_close(
        twin.denoising_loss(flat(x), vector_field, t, flat(noise)), method.denoising_loss(x, field, t, noise)
    )
    torch.testing.assert_close(
        twin.dmd_loss(flat(x), vector_field, other_vector_field, t, flat(noise)),
        method.dmd_loss(x, field, other_field, t, noise, method.per_sample),
    )
    torch.testing.assert_close(
        twin.guided(vector_field, other_vector_field, 3.0)(flat(x), t),
        flat(method.guided(field(x, t), other_field(x, t), torch.full((6,), 3.0))),
    )
    answers, wants_yes, asked = torch.randn(6, 3), torch.rand(6, 3) > 0.5, torch.rand(6, 3) > 0.5
    torch.testing.assert_close(
        twin.judge_loss(answers, wants_yes, asked, 0.3), method.judge_loss(answers, wants_yes, asked, 0.3)
    )
