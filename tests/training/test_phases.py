"""The two phases with a toy base and a scripted judge: what a step may depend on, and that a resumed run is the
same run."""

import math
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from rich.console import Console
from torch import Tensor

from nopair import precision as precision_module
from nopair.backbones.fake import ToyBackbone
from nopair.backbones.roles import FullRoles
from nopair.config import Recipe, load_recipe
from nopair.errors import CheckpointError
from nopair.judges.questions import VERSION
from nopair.judges.scripted import ScriptedJudge
from nopair.method.flow import levels
from nopair.training.keeping import CONTEXTS, KEPT
from nopair.training.lessons import LESSONS
from nopair.training.loop import run_phases
from nopair.training.parts import Draws, Parts, Piece
from nopair.training.phase import Phase
from nopair.training.phases import EditPhase, WarmupPhase
from nopair.training.sampling import Sampler
from nopair.types import EditBatch, Text, Velocity
from nopair.world.records import WorldSource

QUICK = [
    "threads=1",
    "warmup.batch=4",
    "npedit.batch=4",
    "logging.sample_scenes=2",
    "logging.every=1",
    "checkpoint.keep=9",
]


def make_recipe(*overrides: str) -> Recipe:
    steps = ("warmup.steps=3", "npedit.steps=4")
    return load_recipe("demo", [*QUICK, *steps, "npedit.redraw_weight=0.0", *overrides])


def make_parts(recipe: Recipe) -> Parts:
    torch.manual_seed(5)
    roles = FullRoles.of(ToyBackbone.build(seed=0))
    source = WorldSource(recipe.data.seed, held_out=False, nothing_share=recipe.data.nothing_share)
    schedule = levels(recipe.sampling.steps, 1.0)
    judge = ScriptedJudge((1.0, 0.0, 0.0))
    sampler = Sampler(roles.student, source.batch(range(2)), schedule, recipe.seed)
    return Parts(recipe, roles, judge, None, source, 3.0, schedule, sampler)


Begun = TypeVar("Begun", bound=Phase)


def begun(phase: Begun) -> Begun:
    phase.begin()
    return phase


def weights(phase: EditPhase | WarmupPhase, parts: Parts) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in parts.roles.trainable("student").items()}


def test_warmup_lowers_the_loss_and_hands_over_the_average() -> None:
    parts = make_parts(make_recipe("warmup.steps=30", "warmup.lr=1e-2", "warmup.lr_warmup_steps=0"))
    phase = begun(WarmupPhase(parts))
    losses = [phase.step(index)["loss"] for index in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    average = phase.state()["ema"]["average"]
    assert all(torch.equal(value, average[name]) for name, value in weights(phase, parts).items())


def test_a_lesson_is_the_reference_under_its_caption_or_the_teachers_estimate_under_the_instruction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = {}

    def doubled(reference: Tensor, edited: Velocity, described: Velocity, t: Tensor, noise: Tensor, width: float):
        seen["edited"], seen["described"] = edited(noise, t), described(noise, t)
        return torch.zeros_like(reference[:, :1]), 2 * reference

    monkeypatch.setattr("nopair.training.keeping.first_sight", doubled)
    parts = make_parts(make_recipe("npedit.preserve_time={default: 0.75}"))
    student, teacher, batch = parts.roles.student, parts.roles.teacher, parts.source.batch(range(4))
    reference = student.encode_image(batch.reference)
    plain, told = (LESSONS[name](parts, range(4)) for name in ("reference", "estimate"))
    assert torch.equal(plain.goal, reference)
    assert torch.equal(plain.text.features, student.encode_text(batch.captions).features)
    assert torch.equal(told.goal, 2 * reference)
    assert torch.equal(told.text.features, student.encode_text(batch.instructions).features)
    assert torch.equal(plain.reference, reference)
    assert torch.equal(told.reference, reference)
    noise, t = Draws(parts.recipe.seed, "warmup", range(4), reference).noise(), torch.full((4,), 0.75)
    for name, words in (("edited", batch.edited_captions), ("described", batch.captions)):
        assert torch.equal(seen[name], teacher.velocity(noise, t, teacher.encode_text(words)))


def test_warmup_learns_what_the_recipe_says() -> None:
    losses = [begun(WarmupPhase(make_parts(make_recipe(f"warmup.target={name}")))).step(0)["loss"] for name in LESSONS]
    assert losses[0] != losses[1]
    nothing = ("data.nothing_share=1.0", "data.categories=[nothing]", "warmup.target=estimate")
    lesson = LESSONS["estimate"](make_parts(make_recipe(*nothing)), range(4))
    assert torch.equal(lesson.goal, lesson.reference)


def test_only_the_student_and_the_fake_score_are_trained() -> None:
    parts = make_parts(make_recipe())
    before = {name: value.clone() for name, value in parts.roles.teacher.transformer.state_dict().items()}
    student, fake = weights(begun(EditPhase(parts)), parts), parts.roles.trainable("fake")
    fake_before = {name: value.detach().clone() for name, value in fake.items()}
    phase = begun(EditPhase(parts))
    phase.step(0)
    assert any(not torch.equal(student[name], value) for name, value in parts.roles.trainable("student").items())
    assert any(not torch.equal(fake_before[name], value) for name, value in fake.items())
    assert all(torch.equal(before[name], value) for name, value in parts.roles.teacher.transformer.state_dict().items())


def test_refused_steps_of_the_fake_score_are_counted() -> None:
    parts = make_parts(make_recipe("npedit.fake_steps=2"))
    phase = begun(EditPhase(parts))
    found = [phase.step(0)]
    spoilt = next(iter(parts.roles.trainable("fake").values())).register_hook(lambda gradient: gradient * math.nan)
    found.append(phase.step(1))
    spoilt.remove()
    found.append(phase.step(2))
    assert [metrics["fake_skipped"] for metrics in found] == [0, 2, 2]
    assert [math.isfinite(metrics["fake_grad_norm"]) for metrics in found] == [True, False, True]
    assert [metrics["skipped"] for metrics in found] == [0, 0, 0]


def test_accumulated_pieces_give_the_gradient_of_the_whole_batch() -> None:
    results = []
    for pieces in (1, 2, 4):
        parts = make_parts(make_recipe(f"npedit.accumulate={pieces}", "npedit.fake_steps=1", "npedit.betas=[0.9,0.95]"))
        phase = begun(EditPhase(parts))
        metrics = phase.step(0)
        results.append((metrics["total"], metrics["grad_norm"]))
    for total, norm in results[1:]:
        assert total == pytest.approx(results[0][0], rel=1e-4)
        assert norm == pytest.approx(results[0][1], rel=1e-3)


def test_draws_of_a_sample_do_not_depend_on_its_batch() -> None:
    like = torch.zeros(3, 2, 4, 4)
    together = Draws(0, "npedit", [5, 6, 7], like)
    alone = Draws(0, "npedit", [6], like[:1])
    assert torch.equal(together.noise()[1], alone.noise()[0])
    assert torch.equal(together.uniform()[1:2], alone.uniform())
    assert torch.equal(together.integers(4)[1:2], alone.integers(4))


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for bitsandbytes: its 8-bit AdamW has the moments of torch's."""
    package, optim = types.ModuleType("bitsandbytes"), types.ModuleType("bitsandbytes.optim")
    package.optim, optim.AdamW8bit = optim, torch.optim.AdamW  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    monkeypatch.setattr(precision_module.importlib.util, "find_spec", lambda name: name)


@pytest.mark.usefixtures("bitsandbytes")
def test_adamw8bit_is_given_what_adamw_is() -> None:
    found = {}
    for optimiser in ("adamw", "adamw8bit"):
        parts = make_parts(
            make_recipe(f"npedit.optimiser={optimiser}", "npedit.betas=[0.5,0.7]", "npedit.weight_decay=0.3")
        )
        phase = begun(EditPhase(parts))
        for index in range(2):  # a first step does not depend on the decay rates
            phase.step(index)
        found[optimiser] = weights(phase, parts)
    assert all(torch.equal(value, found["adamw8bit"][name]) for name, value in found["adamw"].items())


@pytest.mark.parametrize(
    ("optimiser", "fake_samples", "context", "target"),
    [
        ("adamw", "reused", "none", "estimate"),
        ("muon", "reused", "unedited", "reference"),
        ("adamw", "fresh", "unedited", "reference"),
    ],
)
@pytest.mark.parametrize("stop", ["warmup", "npedit"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, stop: str, optimiser: str, fake_samples: str, context: str, target: str
) -> None:
    def phases(recipe: Recipe) -> tuple[Parts, tuple[WarmupPhase, EditPhase]]:
        parts = make_parts(recipe)
        return parts, (WarmupPhase(parts), EditPhase(parts))

    console = Console(quiet=True)
    recipe = make_recipe(
        "checkpoint.every=2",
        f"warmup.optimiser={optimiser}",
        f"warmup.target={target}",
        f"npedit.optimiser={optimiser}",
        f"npedit.fake_samples={fake_samples}",
        f"npedit.context={context}",
        f"npedit.redraw_context={context}",
        "npedit.redraw_weight=0.5",
        "npedit.betas=[0.9,0.95]",
    )
    _parts, whole = phases(recipe)
    run_phases(whole, recipe=recipe, directory=tmp_path / "whole", resume=None, console=console)
    expected = {name: value.clone() for name, value in whole[1].weights().items()}

    _, first = phases(recipe)
    chosen = first[:1] if stop == "warmup" else first
    run_phases(chosen, recipe=recipe, directory=tmp_path / "cut", resume=None, console=console)
    if stop == "npedit":  # as if killed after the second step of the second phase
        for path in (tmp_path / "cut" / "checkpoints").glob("checkpoint-7"):
            path.rename(tmp_path / "lost")
    _, second = phases(recipe)
    run_phases(second, recipe=recipe, directory=tmp_path / "cut", resume="latest", console=console)
    found = second[1].weights()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_training_goes_on_only_under_the_same_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe("warmup.steps=0", "npedit.steps=1")

    def run(resume: str | None) -> None:
        phases = [EditPhase(make_parts(recipe))]
        run_phases(phases, recipe=recipe, directory=tmp_path, resume=resume, console=Console(quiet=True))

    with monkeypatch.context() as patch:
        patch.setattr("nopair.training.phases.VERSION", "v0")
        run(None)
    with pytest.raises(CheckpointError, match=f"checkpoint-1 .* the questions v0, and this nopair asks {VERSION}"):
        run("latest")


def test_a_checkpoint_that_does_not_tell_its_questions_is_taken_as_it_is() -> None:
    phase = begun(EditPhase(make_parts(make_recipe())))
    state = phase.state()
    assert state.pop("questions") == VERSION
    phase.load_state(state)


def test_do_nothing_samples_are_asked_for_identity_only() -> None:
    recipe = make_recipe("data.nothing_share=1.0", "data.categories=[nothing]", "npedit.reference_weight=1.0")
    metrics = begun(EditPhase(make_parts(recipe))).step(0)
    assert "judge_edit" not in metrics
    assert "judge_identity" in metrics
    assert metrics["reference"] > 0


def test_guidance_away_from_the_references_caption_has_nothing_to_say_where_nothing_is_asked() -> None:
    """Caption and edited caption are the same there, so the scale cannot matter; away from no words, it does."""

    def distance(negative: str, scale: float) -> float:
        data = ("data.nothing_share=1.0", "data.categories=[nothing]")
        guidance = (f"npedit.negative_prompt={negative}", f"npedit.guidance={{default: {scale}}}")
        return begun(EditPhase(make_parts(make_recipe(*data, *guidance)))).step(0)["dmd"]

    assert distance("null", 1.0) == pytest.approx(distance("null", 7.0), rel=1e-5)
    assert distance("''", 1.0) != pytest.approx(distance("''", 7.0), rel=1e-2)


def test_the_judge_moves_the_student_towards_its_answer() -> None:
    only_judge = ("npedit.dmd_weight=0.0", "npedit.judge_weight=1.0", "npedit.temperature_start=1.0")
    recipe = make_recipe("npedit.steps=60", "npedit.lr=1e-2", *only_judge)
    phase = begun(EditPhase(make_parts(recipe)))
    losses = [phase.step(index)["judge"] for index in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_judge_without_a_weight_only_watches(monkeypatch: pytest.MonkeyPatch, weight: float) -> None:
    """It keeps no activations, and says what it says with a weight."""
    parts = make_parts(make_recipe(f"npedit.judge_weight={weight}"))
    had_gradient: list[bool] = []

    def decode(self: ToyBackbone, latents: Tensor) -> Tensor:
        had_gradient.append(torch.is_grad_enabled())
        return decoded(self, latents)

    decoded = ToyBackbone.decode_latents
    monkeypatch.setattr(ToyBackbone, "decode_latents", decode)
    said = begun(EditPhase(parts)).step(0)
    assert had_gradient == [weight > 0]
    monkeypatch.undo()
    other = begun(EditPhase(make_parts(make_recipe("npedit.judge_weight=1.0")))).step(0)
    assert said["judge"] == other["judge"]


@pytest.mark.parametrize(("unroll", "calls"), [("one-step", 1), ("two-step", 2), ("full", 4)])
def test_a_sample_is_made_in_as_many_calls_as_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch, unroll: str, calls: int
) -> None:
    parts = make_parts(make_recipe(f"npedit.unroll={unroll}", "npedit.fake_steps=1"))
    seen: list[list[float]] = []
    velocity = ToyBackbone.velocity

    def counted(self: ToyBackbone, noisy: Tensor, t: Tensor, text: Text, reference: Tensor | None = None) -> Tensor:
        if reference is not None:  # the student's alone have one
            seen.append(t.tolist())
        return velocity(self, noisy, t, text, reference)

    monkeypatch.setattr(ToyBackbone, "velocity", counted)
    begun(EditPhase(parts)).step(0)
    assert len(seen) == calls
    assert seen[0] == [1.0] * 4
    if unroll == "full":
        assert [row[0] for row in seen] == pytest.approx(parts.levels.tolist())


@pytest.mark.parametrize(("fake_samples", "records"), [("reused", [2]), ("fresh", [2, 26, 27, 28])])
def test_the_fake_score_learns_from_the_steps_samples_or_from_new_ones_each_time(
    monkeypatch: pytest.MonkeyPatch, fake_samples: str, records: list[int]
) -> None:
    """Of 20 steps of four samples, the step 2; three fake-score steps."""
    setting = (f"npedit.fake_samples={fake_samples}", "npedit.steps=20", "npedit.fake_steps=3")
    parts = make_parts(make_recipe(*setting))
    asked: list[int] = []
    made: list[bool] = []
    batch, velocity = WorldSource.batch, ToyBackbone.velocity

    def noted(self: WorldSource, indices: Sequence[int]) -> EditBatch:
        assert list(indices) == [*range(indices[0], indices[0] + 4)]
        asked.append(indices[0] // 4)
        return batch(self, indices)

    def counted(self: ToyBackbone, noisy: Tensor, t: Tensor, text: Text, reference: Tensor | None = None) -> Tensor:
        if reference is not None:
            made.append(torch.is_grad_enabled())
        return velocity(self, noisy, t, text, reference)

    monkeypatch.setattr(WorldSource, "batch", noted)
    monkeypatch.setattr(ToyBackbone, "velocity", counted)
    begun(EditPhase(parts)).step(2)
    assert asked == records
    assert made == [True, True] + [False, False] * (len(records) - 1)


def test_without_identity_questions_only_the_edit_is_asked_for() -> None:
    metrics = begun(EditPhase(make_parts(make_recipe("npedit.questions=[edit]")))).step(0)
    assert "judge_edit" in metrics
    assert "judge_identity" not in metrics


def test_a_batch_with_nothing_to_learn_from_is_a_step_that_changes_nothing() -> None:
    """Only the edit is asked for, and nothing but the judge teaches; yet no record has an edit."""
    alone = ("npedit.questions=[edit]", "npedit.dmd_weight=0.0", "npedit.reference_weight=0.0")
    parts = make_parts(make_recipe("data.nothing_share=1.0", "data.categories=[nothing]", *alone))
    phase = begun(EditPhase(parts))
    before = weights(phase, parts)
    metrics = phase.step(0)
    assert (metrics["total"], metrics["grad_norm"], metrics["skipped"]) == (0, 0, 0)
    assert all(torch.equal(before[name], value) for name, value in weights(phase, parts).items())


def test_preservation_on_top_adds_its_distance_to_the_total() -> None:
    plain, held = (
        begun(EditPhase(make_parts(make_recipe(f"npedit.preservation_weight={weight}")))).step(0)
        for weight in (0.0, 2.0)
    )
    assert plain["preservation"] == held["preservation"] > 0
    assert held["total"] - plain["total"] == pytest.approx(2 * plain["preservation"], rel=1e-4)


def test_preserving_the_unedited_asks_the_teacher_under_both_captions_and_holds_back_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[float, Tensor]] = []
    velocity = ToyBackbone.velocity

    def noted(self: ToyBackbone, noisy: Tensor, t: Tensor, text: Text, reference: Tensor | None = None) -> Tensor:
        if not torch.is_grad_enabled() and reference is None:
            asked.append((t[0].item(), text.features))
        return velocity(self, noisy, t, text, reference)

    monkeypatch.setattr(ToyBackbone, "velocity", noted)
    setting = ("npedit.preservation_weight=2.0", "npedit.preserve_time={default: 0.625}", "npedit.fake_steps=1")
    counts, metrics = {}, {}
    for preserve in ("everywhere", "unedited"):
        asked.clear()
        parts = make_parts(make_recipe(*setting, f"npedit.preserve={preserve}"))
        metrics[preserve] = begun(EditPhase(parts)).step(0)
        counts[preserve] = len(asked)
    batch = parts.source.batch(range(4))
    at_reference = [features for t, features in asked if t == 0.625]
    expected = [parts.roles.teacher.encode_text(texts).features for texts in (batch.edited_captions, batch.captions)]
    assert counts["unedited"] == counts["everywhere"] + 2
    torch.testing.assert_close(at_reference, expected, rtol=0, atol=0)
    assert 0 < metrics["unedited"]["preservation"] < metrics["everywhere"]["preservation"]
    assert metrics["unedited"]["judge"] == metrics["everywhere"]["judge"]  # the same samples


def test_where_to_preserve_is_not_asked_if_it_has_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nopair.training.keeping.first_sight", lambda *_: pytest.fail("asked the teacher"))
    begun(EditPhase(make_parts(make_recipe("npedit.preservation_weight=0.0", "npedit.preserve=unedited")))).step(0)
    with pytest.raises(pytest.fail.Exception, match="asked the teacher"):
        begun(EditPhase(make_parts(make_recipe("npedit.preservation_weight=1.0", "npedit.preserve=unedited")))).step(0)


@pytest.mark.parametrize("fake_samples", ["reused", "fresh"])
def test_teacher_and_fake_score_see_what_stays_of_the_reference_and_the_student_all_of_it(
    monkeypatch: pytest.MonkeyPatch, fake_samples: str
) -> None:
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": [], "fake": []}
    velocity = ToyBackbone.velocity
    setting = ("npedit.context=unedited", "npedit.guidance={default: 2.0}", "npedit.fake_steps=1")
    parts = make_parts(make_recipe(*setting, f"npedit.fake_samples={fake_samples}"))
    roles = {id(getattr(parts.roles, name).transformer): name for name in seen}

    def noted(self: ToyBackbone, noisy: Tensor, t: Tensor, text: Text, reference: Tensor | None = None) -> Tensor:
        if reference is not None:
            seen[roles[id(self.transformer)]].append(reference)
        return velocity(self, noisy, t, text, reference)

    def half(reference: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        kept = torch.ones_like(reference[:, :1])
        kept[..., :2, :] = 0.49
        return kept, reference

    monkeypatch.setattr(ToyBackbone, "velocity", noted)
    monkeypatch.setattr("nopair.training.keeping.first_sight", half)
    begun(EditPhase(parts)).step(0)
    teacher = parts.roles.teacher
    pixels = parts.source.batch(range(4)).reference
    whole, grey = teacher.encode_image(pixels), teacher.encode_image(torch.full_like(pixels, 0.5))
    hole = torch.cat([grey[..., :2, :], whole[..., 2:, :]], dim=-2)
    assert len(seen["teacher"]) == 2  # under the edited caption and under what guidance leads away from
    assert len(seen["fake"]) == 2  # in the student's step and in its own
    assert all(torch.equal(reference, whole) for reference in seen["student"][:2])
    assert all(torch.equal(reference, hole) for reference in (*seen["teacher"], seen["fake"][0]))
    assert torch.equal(seen["fake"][1], hole) == (fake_samples == "reused")  # else a hole in other records


def test_where_nothing_is_asked_the_teacher_sees_the_whole_reference() -> None:
    parts = make_parts(make_recipe("data.nothing_share=1.0", "data.categories=[nothing]", "npedit.context=unedited"))
    piece = Piece.of(parts, "npedit", range(4))
    context = CONTEXTS["unedited"](parts.roles.teacher, parts.recipe.npedit, piece)
    assert context is not None
    assert torch.equal(context, piece.reference)


def test_the_teacher_redraws_the_samples_around_what_stays_if_that_has_a_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[float, Tensor]] = []
    velocity = ToyBackbone.velocity
    setting = ("npedit.redraw_context=unedited", "npedit.redraw_low=0.4375", "npedit.redraw_high=0.4375")

    def noted(self: ToyBackbone, noisy: Tensor, t: Tensor, text: Text, reference: Tensor | None = None) -> Tensor:
        if not torch.is_grad_enabled() and reference is not None:
            asked.append((t[0].item(), reference))
        return velocity(self, noisy, t, text, reference)

    monkeypatch.setattr(ToyBackbone, "velocity", noted)
    monkeypatch.setattr("nopair.training.keeping.first_sight", lambda y, *_: (torch.zeros_like(y[:, :1]), y))
    without = begun(EditPhase(make_parts(make_recipe(*setting, "npedit.redraw_steps=2")))).step(0)
    assert asked == []
    assert without["redraw"] == 0
    parts = make_parts(make_recipe(*setting, "npedit.redraw_steps=2", "npedit.redraw_weight=3.0"))
    found = begun(EditPhase(parts)).step(0)
    assert [t for t, _ in asked] == [0.4375, 0.21875]
    grey = parts.roles.teacher.encode_image(torch.full_like(parts.source.batch(range(4)).reference, 0.5))
    assert all(torch.equal(reference, grey) for _, reference in asked)
    assert found["dmd"] == without["dmd"]  # the same samples, asked about at the same times
    assert found["redraw"] > 0
    assert found["total"] == pytest.approx(without["total"] + 3 * found["redraw"], rel=1e-4)


def test_each_category_has_its_own_time_at_which_the_teacher_says_where_the_edit_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times: list[list[float]] = []
    monkeypatch.setattr(
        "nopair.training.keeping.first_sight", lambda y, _e, _d, t, *_: times.append(t.tolist()) or (y[:, :1], y)
    )
    parts = make_parts(make_recipe("npedit.preserve_time={default: 0.75, background: 0.5}"))
    piece = Piece.of(parts, "npedit", range(16))
    KEPT["unedited"](parts.roles.teacher, parts.recipe.npedit, piece)
    assert times == [[0.5 if name == "background" else 0.75 for name in piece.batch.categories]]
    assert "background" in piece.batch.categories
