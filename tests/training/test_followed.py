"""What a recipe says is done: keys whose neglect would leave every step looking sound."""

import dataclasses
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import Tensor

from nopair.backbones.fake import ToyBackbone
from nopair.errors import TrainingError
from nopair.judges.scripted import ScriptedJudge
from nopair.method.flow import guided
from nopair.training.asking import Answered, Questions, questions_about
from nopair.training.grpo import GrpoPhase
from nopair.training.keeping import KEPT
from nopair.training.optim import learning_rate
from nopair.training.parts import Draws, Parts, Piece
from nopair.training.phase import StudentPhase
from nopair.training.phases import EditPhase, WarmupPhase
from nopair.training.sampling import Sampler
from nopair.training.sft import SftPhase
from nopair.types import Text
from nopair.world.pairs import PairSource

PHASES: dict[str, Callable[[Parts], StudentPhase]] = {
    "warmup": WarmupPhase,
    "sft": lambda parts: SftPhase(parts, PairSource(0, 8, torch.device("cpu"))),
    "grpo": GrpoPhase,
    "npedit": EditPhase,
}


def test_draws_follow_the_seed_and_differ_between_phases() -> None:
    like = torch.zeros(1, 2, 4, 4)
    first, same, seed, phase, index = (
        Draws(*whose, like).noise()
        for whose in ((0, "npedit", [5]), (0, "npedit", [5]), (1, "npedit", [5]), (0, "grpo", [5]), (0, "npedit", [6]))
    )
    assert torch.equal(first, same)
    assert not any(torch.equal(first, other) for other in (seed, phase, index))


@pytest.mark.parametrize("name", PHASES)
def test_the_average_follows_the_student_and_is_what_sample_grids_show(
    phases: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small = (f"{name}.steps=50", f"{name}.batch=2", f"{name}.ema=0.75", f"{name}.lr=1e-2", f"{name}.lr_warmup_steps=0")
    parts = phases.make_parts(phases.make_recipe(*small))
    start = phases.weights(EditPhase(parts), parts)
    phase = phases.begun(PHASES[name](parts))
    phase.step(0)
    shown: list[dict[str, Tensor]] = []

    def grid(self: Sampler) -> Image.Image:
        shown.append(phases.weights(EditPhase(parts), parts))
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(Sampler, "grid", grid)
    own, average = phases.weights(EditPhase(parts), parts), phase.weights()
    phase.samples(0)
    assert any(not torch.equal(value, own[key]) for key, value in start.items())
    for key, value in start.items():
        torch.testing.assert_close(average[key], torch.lerp(value, own[key], 0.25))
        assert torch.equal(shown[0][key], average[key])
        assert torch.equal(parts.roles.trainable("student")[key], own[key])


def test_the_recipes_normaliser_is_the_one_used(phases: ModuleType) -> None:
    setting = ("npedit.redraw_weight=1.0", "npedit.redraw_context=none", "npedit.fake_steps=1")
    one, other = (
        phases.begun(EditPhase(phases.make_parts(phases.make_recipe(*setting, f"npedit.normaliser={name}")))).step(0)
        for name in ("per_sample", "per_pixel")
    )
    assert one["judge"] == other["judge"]  # the same samples
    assert one["dmd"] != pytest.approx(other["dmd"], rel=1e-2)
    assert one["redraw"] != pytest.approx(other["redraw"], rel=1e-2)


def test_the_judge_is_asked_what_the_recipe_says_at_the_temperature_of_the_step(phases: ModuleType) -> None:
    """Two of three steps apart; about a kind of edit that it is wrong about, for the wrong answer."""
    setting = ("npedit.temperature_start=0.2", "npedit.temperature_ramp=4", "npedit.inverted=[recolour]")
    parts = phases.make_parts(phases.make_recipe(*setting, "data.categories=[recolour]", "npedit.fake_steps=1"))
    phase = phases.begun(EditPhase(parts))
    seen: list[tuple[Questions, float]] = []
    ask = phase._ask

    def watched(reference: Tensor, edited: Tensor, questions: Questions, temperature: float) -> Answered:
        seen.append((questions, temperature))
        return ask(reference, edited, questions, temperature)

    phase._ask = watched
    for index in (0, 2):
        phase.step(index)
    assert [temperature for _, temperature in seen] == pytest.approx([0.2, 0.6])
    expected = questions_about(parts.source.batch(range(4)), inverted=("recolour",))
    assert seen[0][0] == expected
    assert not all(question.wants_yes for row in expected for question in row)


def test_a_bystander_is_asked_when_metrics_are_recorded_and_at_the_end(phases: ModuleType) -> None:
    parts = phases.make_parts(phases.make_recipe("logging.every=2", "npedit.steps=5", "npedit.fake_steps=1"))
    phase = phases.begun(EditPhase(dataclasses.replace(parts, bystander=ScriptedJudge((0.0, 0.0, 1.0)))))
    assert ["bystander_edit" in phase.step(index) for index in range(5)] == [False, True, False, True, True]


def test_the_recipes_width_says_how_much_of_an_edit_is_seen(phases: ModuleType) -> None:
    kept = []
    for width in (0.1, 1.0):
        parts = phases.make_parts(phases.make_recipe(f"npedit.preserve_width={width}", "data.nothing_share=0.0"))
        piece = Piece.of(parts, "npedit", range(4))
        kept.append(KEPT["unedited"](parts.roles.teacher, parts.recipe.npedit, piece).mean())
    assert kept[0] < kept[1] < 1


def test_the_fake_score_has_its_own_step_size(phases: ModuleType) -> None:
    parts = phases.make_parts(phases.make_recipe("npedit.lr=1e-2", "npedit.fake_lr=1e-9", "npedit.lr_warmup_steps=0"))
    before = {name: value.detach().clone() for name, value in parts.roles.trainable("fake").items()}
    student = phases.weights(EditPhase(parts), parts)
    phases.begun(EditPhase(parts)).step(0)
    for name, value in parts.roles.trainable("fake").items():
        torch.testing.assert_close(value.detach(), before[name], rtol=0, atol=1e-6)
    assert any((value - student[name]).abs().max() > 1e-3 for name, value in parts.roles.trainable("student").items())


def test_the_step_size_follows_the_recipes_schedule(phases: ModuleType) -> None:
    schedule = ("npedit.lr=1e-2", "npedit.lr_warmup_steps=2", "npedit.lr_final_fraction=0.1", "npedit.fake_steps=1")
    phase = phases.begun(EditPhase(phases.make_parts(phases.make_recipe(*schedule))))
    rates = [learning_rate(index, peak=1e-2, warmup_steps=2, total_steps=4, final_fraction=0.1) for index in range(4)]
    assert [phase.step(index)["lr"] for index in range(4)] == pytest.approx(rates)


def test_gradients_are_clipped_at_the_recipes_norm(phases: ModuleType) -> None:
    tiny = ("npedit.optimiser=adamw", "npedit.lr=1e-2", "npedit.lr_warmup_steps=0", "npedit.clip=1e-12")
    parts = phases.make_parts(phases.make_recipe(*tiny))
    phase = phases.begun(EditPhase(parts))
    before = phases.weights(phase, parts)
    phase.step(0)  # AdamW's own 1e-8 is then far more than the gradient
    for name, value in phases.weights(phase, parts).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-5)


def test_the_guard_skips_and_stops_where_the_recipe_says(phases: ModuleType) -> None:
    strict = ("guard.max_grad_norm_spike=1e-9", "guard.max_skipped=1")
    phase = phases.begun(EditPhase(phases.make_parts(phases.make_recipe(*strict))))
    assert phase.step(0)["skipped"] == 1
    with pytest.raises(TrainingError, match=r"npedit student: gradient norm .* above the limit"):
        phase.step(1)


@pytest.mark.parametrize(("unroll", "calls"), [("one-step", 1), ("two-step", 2), ("full", 4)])
def test_what_the_fake_score_sees_afresh_is_unrolled_as_the_recipe_says(
    phases: ModuleType, monkeypatch: pytest.MonkeyPatch, unroll: str, calls: int
) -> None:
    made: list[bool] = []
    velocity = ToyBackbone.velocity

    def noted(self: ToyBackbone, noisy: Tensor, t: Tensor, text: Text, reference: Tensor | None = None) -> Tensor:
        if reference is not None:  # the student's alone have one
            made.append(torch.is_grad_enabled())
        return velocity(self, noisy, t, text, reference)

    monkeypatch.setattr(ToyBackbone, "velocity", noted)
    fresh = ("npedit.fake_samples=fresh", "npedit.fake_steps=1", f"npedit.unroll={unroll}")
    phases.begun(EditPhase(phases.make_parts(phases.make_recipe(*fresh)))).step(0)
    assert made == [True] * calls + [False] * calls


def test_guidance_falls_evenly_to_the_share_that_the_recipe_leaves(
    monkeypatch: pytest.MonkeyPatch, phases: ModuleType
) -> None:
    seen: list[list[float]] = []
    teaching = "nopair.training.teaching"
    whole = guided
    monkeypatch.setattr(f"{teaching}.guided", lambda c, u, s: seen.append(s.tolist()) or whole(c, u, s))
    falling = ("npedit.guidance={default: 3.0, background: 2.0}", "npedit.guidance_final_fraction=0.5")
    parts = phases.make_parts(phases.make_recipe(*falling))
    phase = phases.begun(EditPhase(parts))
    for index in (0, 2):  # of 4 steps
        phase.step(index)
    for index, left, scales in zip((0, 2), (1.0, 0.75), seen, strict=True):
        names = parts.source.batch(range(index * 4, index * 4 + 4)).categories
        assert scales == pytest.approx([1 + left * (1.0 if name == "background" else 2.0) for name in names])


def test_without_guidance_the_teacher_is_asked_once(monkeypatch: pytest.MonkeyPatch, phases: ModuleType) -> None:
    asked = []
    velocity = ToyBackbone.velocity
    parts = phases.make_parts(phases.make_recipe("npedit.guidance={default: 1.0}"))

    def noted(self: ToyBackbone, noisy: Tensor, t: Tensor, text: Text, reference: Tensor | None = None) -> Tensor:
        asked.append(self.transformer is parts.roles.teacher.transformer)
        return velocity(self, noisy, t, text, reference)

    monkeypatch.setattr(ToyBackbone, "velocity", noted)
    plain = phases.begun(EditPhase(parts)).step(0)["dmd"]
    assert sum(asked) == 1
    nearly = phases.begun(EditPhase(phases.make_parts(phases.make_recipe("npedit.guidance={default: 1.000001}")))).step(
        0
    )["dmd"]
    assert plain == pytest.approx(nearly, rel=1e-4)
