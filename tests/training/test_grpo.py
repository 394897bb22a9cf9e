"""Flow-GRPO with a toy base and a scripted judge: on-policy where it must be, and a resumed run is the same run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console
from torch import Tensor

from nopair.backbones.roles import FullRoles
from nopair.judges.scripted import ScriptedJudge
from nopair.training import grpo as grpo_module
from nopair.training.grpo import GrpoPhase, _grouped, _repeated
from nopair.training.loop import run_phases
from nopair.training.parallel import ALONE
from nopair.training.parts import Parts
from nopair.types import Text

Make = Callable[..., tuple[Parts, GrpoPhase]]


@pytest.fixture
def make(sibling: Callable[[str], ModuleType]) -> Make:
    """A phase with a batch of 2 records and groups of 4, by overrides of its recipe."""
    toy = sibling("training/test_phases.py")

    def phase(*overrides: str) -> tuple[Parts, GrpoPhase]:
        settings = ("grpo.steps=3", "grpo.batch=2", "grpo.group=4", "grpo.lr=1e-3")
        parts = toy.make_parts(toy.make_recipe(*settings, *overrides))
        return parts, toy.begun(GrpoPhase(parts))

    return phase


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What every call of the surrogate is told: new minus old log-probabilities."""
    seen: list[Tensor] = []
    surrogate = grpo_module.clipped_surrogate

    def watched(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
        seen.append((new - old).detach())
        return surrogate(new, old, advantage, clip)

    monkeypatch.setattr(grpo_module, "clipped_surrogate", watched)
    return seen


@pytest.mark.parametrize("policy", ["renoise", "sde"])
def test_the_first_update_is_exactly_on_policy_and_the_next_is_not(
    make: Make, ratios: list[Tensor], policy: str
) -> None:
    _, phase = make(f"grpo.policy={policy}", "grpo.updates=2", "grpo.moves=3", "grpo.kl_weight=0.0")
    phase.step(0)
    first, second = torch.stack(ratios[:3]), torch.stack(ratios[3:])
    assert first.shape == second.shape == (3, 8)
    assert torch.equal(first, torch.zeros_like(first))
    assert float(second.abs().max()) > 0


def test_metrics_of_an_on_policy_step(make: Make) -> None:
    metrics = make()[1].step(0)
    assert metrics["ratio"] == 1
    assert metrics["clipped"] == 0
    assert metrics["kl"] == 0
    assert 0 <= metrics["reward"] <= 1
    assert {"reward_std", "no_spread", "judge_edit", "judge_identity", "grad_norm", "lr", "skipped"} <= metrics.keys()


def test_updates_move_away_from_the_policy_and_are_clipped(make: Make) -> None:
    metrics = make("grpo.updates=4", "grpo.clip_range=1e-6", "grpo.lr=1e-2")[1].step(0)
    assert metrics["ratio"] != 1
    assert metrics["clipped"] > 0
    assert metrics["kl"] > 0


def test_the_judge_and_the_decoder_get_no_gradient_and_the_student_does(make: Make) -> None:
    parts, phase = make("grpo.kl_weight=0.0")
    teacher = {name: value.clone() for name, value in parts.roles.teacher.transformer.state_dict().items()}
    before = {name: value.detach().clone() for name, value in parts.roles.trainable("student").items()}
    assert phase.step(0)["grad_norm"] > 0
    assert any(not torch.equal(before[name], value) for name, value in parts.roles.trainable("student").items())
    assert all(
        torch.equal(teacher[name], value) for name, value in parts.roles.teacher.transformer.state_dict().items()
    )


def test_groups_that_all_get_the_same_reward_move_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        count = len(arguments[1])
        return torch.full((count,), 0.3), torch.zeros(count, 2)

    monkeypatch.setattr(grpo_module, "reward", same)
    parts, phase = make()
    before = {name: value.detach().clone() for name, value in parts.roles.trainable("student").items()}
    metrics = phase.step(0)
    assert metrics["no_spread"] == 1
    assert metrics["grad_norm"] == 0
    assert all(torch.equal(before[name], value) for name, value in parts.roles.trainable("student").items())


def test_it_gets_more_reward(make: Make) -> None:
    parts, _ = make("grpo.steps=16", "grpo.batch=1", "grpo.lr=3e-3", "grpo.group=12", "grpo.kl_weight=0.0")
    lenient = ScriptedJudge((1.0, 0.0, 0.0), sharpness=3.0)  # a strict one tells all that a beginner makes apart from 0
    phase = GrpoPhase(dataclasses.replace(parts, judge=lenient))
    phase.begin()
    rewards = [phase.step(index)["reward"] for index in range(16)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.04


def test_a_sample_does_not_depend_on_its_batch(make: Make) -> None:
    _, phase = make()
    together, alone = phase._rollout([3, 5]), phase._rollout([5])
    torch.testing.assert_close(together.trajectory.states[:, 4:], alone.trajectory.states)
    torch.testing.assert_close(together.rewards[4:], alone.rewards)
    assert torch.equal(together.trained[4:], alone.trained)
    assert torch.equal(together.trajectory.states[0, 4:], alone.trajectory.states[0]), "the noise is the very same"


def test_samples_of_a_record_differ_in_noise_alone(make: Make) -> None:
    _, phase = make("grpo.moves=3")
    rollout = phase._rollout([3])
    starts = rollout.trajectory.states[0]
    assert len({one.numpy().tobytes() for one in starts}) == len(starts) == 4
    assert all(sorted(row.tolist()) == [0, 1, 2] for row in rollout.trained)


@pytest.mark.parametrize("std", ["group", "global"])
def test_accumulated_pieces_give_the_gradient_of_the_whole_batch(make: Make, std: str) -> None:
    found = [make("grpo.batch=4", f"grpo.accumulate={pieces}", f"grpo.std={std}")[1].step(0) for pieces in (1, 2, 4)]
    for metrics in found[1:]:
        for name in ("reward", "reward_std", "no_spread"):
            assert metrics[name] == pytest.approx(found[0][name], rel=1e-4)
        assert metrics["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=2e-3)


def test_a_global_spread_is_that_of_all_rewards(make: Make) -> None:
    rewards = torch.rand(5, 4)
    found = make("grpo.std=global")[1]._spread(rewards)
    assert found.shape == (1, 1)
    assert float(found) == pytest.approx(float(rewards.std(correction=0)))
    assert ALONE.world == 1


def test_the_divergence_is_from_the_phases_beginning(make: Make) -> None:
    _, phase = make("grpo.lr=1e-2", "grpo.kl_weight=0.1")
    kls = [phase.step(index)["kl"] for index in range(3)]
    assert kls[0] == 0 < kls[1]
    phase.begin()
    assert phase.step(0)["kl"] == 0


def test_it_goes_on_only_under_the_same_questions(make: Make) -> None:
    _, phase = make()
    state = phase.state()
    phase.load_state(state)
    with pytest.raises(ValueError, match=f"under the questions v0, and this nopair asks {state['questions']}"):
        phase.load_state(state | {"questions": "v0"})


def test_samples_of_a_record_stand_side_by_side_with_its_words(make: Make) -> None:
    parts, _ = make()
    batch = parts.source.batch([3, 5])
    both = _grouped(batch, 2)
    for name in ("instructions", "captions", "edited_captions", "categories", "subjects"):
        one, other = getattr(batch, name)
        assert getattr(both, name) == (one, one, other, other)
    assert torch.equal(both.reference, batch.reference[[0, 0, 1, 1]])
    text = Text(torch.randn(2, 3, 4), (3, 1), torch.randn(2, 5))
    repeated = _repeated(text, 2)
    assert repeated.lengths == (3, 3, 1, 1)
    assert repeated.pooled is not None
    assert torch.equal(repeated.features, text.features[[0, 0, 1, 1]])
    assert torch.equal(repeated.pooled, text.pooled[[0, 0, 1, 1]])


def test_noises_follow_the_recipes_seed(make: Make) -> None:
    first, same, other = (make(f"seed={seed}")[1]._rollout([3]).trajectory.states[0] for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_sde_has_the_noise_of_the_recipe(make: Make) -> None:
    little, much = (make("grpo.policy=sde", f"grpo.noise={noise}")[1]._rollout([3]) for noise in (0.1, 0.9))
    assert torch.equal(little.trajectory.states[0], much.trajectory.states[0])
    assert not torch.allclose(little.trajectory.states[1], much.trajectory.states[1], atol=1e-2)


def test_only_the_kinds_of_questions_of_the_recipe_are_rewarded(make: Make) -> None:
    metrics = make("npedit.questions=[identity]")[1].step(0)
    assert "judge_identity" in metrics
    assert "judge_edit" not in metrics


def test_advantages_are_bounded_as_the_recipe_says(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    surrogate = grpo_module.clipped_surrogate

    def watched(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
        seen.append(advantage)
        return surrogate(new, old, advantage, clip)

    monkeypatch.setattr(grpo_module, "clipped_surrogate", watched)
    make("grpo.advantage_limit=1e-5")[1].step(0)
    assert float(seen[0].abs().max()) == pytest.approx(1e-5)


def test_the_divergence_counts_by_its_weight(make: Make) -> None:
    """The first update is the same whatever the weight, as nothing has diverged yet."""
    one, other = (make("grpo.updates=2", "grpo.lr=1e-2", f"grpo.kl_weight={w}")[1].step(0) for w in (0.5, 3.0))
    assert one["kl"] == pytest.approx(other["kl"], rel=1e-5)
    assert one["kl"] > 0
    assert other["loss"] - one["loss"] == pytest.approx(2.5 * one["kl"], rel=1e-3)


@pytest.mark.parametrize(("moves", "pieces"), [(1, 1), (3, 2)])
def test_the_gradient_is_of_the_mean_over_trained_moves(
    make: Make, monkeypatch: pytest.MonkeyPatch, moves: int, pieces: int
) -> None:
    losses: list[float] = []
    backward = FullRoles.backward

    def noted(self: FullRoles, loss: Tensor, role: str) -> None:
        losses.append(loss.item())
        backward(self, loss, role)

    monkeypatch.setattr(FullRoles, "backward", noted)
    monkeypatch.setattr(grpo_module, "clipped_surrogate", lambda new, old, a, clip: 1.0 + 0 * new)
    metrics = make(f"grpo.moves={moves}", f"grpo.accumulate={pieces}")[1].step(0)
    assert len(losses) == moves * pieces
    assert sum(losses) == pytest.approx(metrics["loss"]) == 1.0


def test_the_student_is_left_with_the_average(make: Make) -> None:
    parts, phase = make("grpo.steps=2", "grpo.lr=1e-2", "grpo.ema=0.9")
    for index in range(2):
        phase.step(index)
    average = phase.weights()
    assert all(torch.equal(value, average[name]) for name, value in parts.roles.trainable("student").items())


@pytest.mark.parametrize("done", [2, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, make: Make, done: int) -> None:
    small = ("grpo.batch=1", "grpo.group=2", "grpo.moves=1")
    settings = (*small, "grpo.steps=5", "grpo.updates=2", "grpo.kl_weight=0.1", "checkpoint.every=2", "grpo.ema=0.5")
    console = Console(quiet=True)

    def after_an_earlier_phase() -> tuple[Parts, GrpoPhase]:
        """Its weights are in no recipe, so what the phase started from must be in the checkpoint."""
        parts, phase = make(*settings)
        with torch.no_grad():
            for value in parts.roles.trainable("student").values():
                value += 0.05
        return parts, phase

    parts, whole = after_an_earlier_phase()
    run_phases([whole], recipe=parts.recipe, directory=tmp_path / "whole", console=console)
    parts, cut = after_an_earlier_phase()
    run_phases([cut], recipe=parts.recipe, directory=tmp_path / "cut", console=console)
    for number in range(done + 1, 6):
        path = tmp_path / "cut" / "checkpoints" / f"checkpoint-{number}"
        if path.exists():
            path.rename(tmp_path / path.name)
    parts, resumed = make(*settings)
    run_phases([resumed], recipe=parts.recipe, directory=tmp_path / "cut", resume="latest", console=console)
    expected, found = whole.weights(), resumed.weights()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (tmp_path / "cut" / "metrics.jsonl").read_text().count("\n") == 5
