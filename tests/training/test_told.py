"""What each model is told, and at which times."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from nopair.backbones.fake import ToyBackbone
from nopair.method.flow import interpolate
from nopair.method.matching import query_times
from nopair.method.rollout import rollout, training_levels
from nopair.training.parts import Draws
from nopair.training.phases import EditPhase, WarmupPhase
from nopair.training.sft import SftPhase
from nopair.types import Text
from nopair.world.pairs import PairSource


def test_each_model_is_told_its_own_words_at_the_times_of_the_recipe(
    phases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student the instruction, teacher and fake score the edited caption, at samples noised as the draws say."""
    seen: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {"student": [], "teacher": [], "fake": []}
    velocity = ToyBackbone.velocity
    times = ("npedit.query_low=0.25", "npedit.query_high=0.75", "npedit.query_shift=3.0")
    redraw = ("npedit.redraw_weight=1.0", "npedit.redraw_context=none", "npedit.redraw_steps=1")
    once = ("npedit.guidance={default: 1.0}", "npedit.fake_steps=1")
    parts = phases.make_parts(phases.make_recipe("seed=3", *times, *redraw, *once))
    roles = {id(getattr(parts.roles, name).transformer): name for name in seen}

    def noted(self: ToyBackbone, noisy: Tensor, t: Tensor, text: Text, reference: Tensor | None = None) -> Tensor:
        seen[roles[id(self.transformer)]].append((noisy.detach(), t, text.features))
        return velocity(self, noisy, t, text, reference)

    student, batch = parts.roles.student, parts.source.batch(range(4))
    reference, told = student.encode_image(batch.reference), student.encode_text(batch.instructions)
    draws = Draws(3, "npedit", range(4), reference)
    noises, stop = torch.stack([draws.noise(), draws.noise()]), draws.integers(len(parts.levels)) + 1
    with torch.no_grad():
        made = rollout(
            lambda x, t: student.velocity(x, t, told, reference), noises, training_levels(parts.levels, stop)
        )
    queries = []
    low_and_high = parts.recipe.npedit.redraw_low, parts.recipe.npedit.redraw_high
    for low, high, shift in ((0.25, 0.75, 3.0), (*low_and_high, 1.0), (0.25, 0.75, 3.0)):
        t = query_times(draws.uniform(), low, high, shift)
        queries.append((interpolate(made, draws.noise(), t), t))
    monkeypatch.setattr(ToyBackbone, "velocity", noted)
    phases.begun(EditPhase(parts)).step(0)
    matched, redrawn, learnt = queries
    for name, expected in (("teacher", [matched, redrawn]), ("fake", [matched, learnt])):
        for (noisy, t, _), (wanted, time) in zip(seen[name], expected, strict=True):
            torch.testing.assert_close(noisy, wanted)
            torch.testing.assert_close(t, time)
    captions = student.encode_text(batch.edited_captions).features
    for name, words in (("student", told.features), ("teacher", captions), ("fake", captions)):
        assert all(torch.equal(features, words) for _, _, features in seen[name])


@pytest.mark.parametrize("phase", ["warmup", "sft"])
def test_flow_matching_asks_at_times_shifted_as_the_base_wants_and_shows_the_reference_clean(
    phases: ModuleType, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    parts = phases.make_parts(phases.make_recipe("seed=3", "warmup.target=reference", "sft.steps=1", "sft.batch=4"))
    pairs, toy = PairSource(0, 8, torch.device("cpu")), parts.roles.student
    if phase == "warmup":
        batch = parts.source.batch(range(4))
        goal, words = toy.encode_image(batch.reference), toy.encode_text(batch.captions)
    else:
        batch = pairs.batch(range(4))
        goal, words = toy.encode_image(batch.target), toy.encode_text(batch.instructions)
    reference = toy.encode_image(batch.reference)
    draws = Draws(3, phase, range(4), reference)
    t = query_times(draws.uniform(), 0.0, 1.0, parts.shift)
    noisy = interpolate(goal, draws.noise(), t)
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    velocity = ToyBackbone.velocity

    def noted(self: ToyBackbone, noisy: Tensor, t: Tensor, text: Text, reference: Tensor | None = None) -> Tensor:
        assert reference is not None
        seen.append((noisy, t, text.features, reference))
        return velocity(self, noisy, t, text, reference)

    monkeypatch.setattr(ToyBackbone, "velocity", noted)
    phases.begun(WarmupPhase(parts) if phase == "warmup" else SftPhase(parts, pairs)).step(0)
    (found,) = seen
    for one, wanted in zip(found, (noisy, t, words.features, reference), strict=True):
        torch.testing.assert_close(one, wanted, rtol=0, atol=0)
