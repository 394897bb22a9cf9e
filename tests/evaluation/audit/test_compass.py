"""The gradient of a judge in closed form: its angle to any way is known beforehand, and so is where following leads."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nopair.backbones.fake import ToyBackbone
from nopair.errors import JudgeError
from nopair.evaluation.audit.cases import LabelledCase, shapes_cases
from nopair.evaluation.audit.compass import PIXELS, Space, Starts, bearings, climb, latents_of, starts_of
from nopair.evaluation.audit.summary import ascents, directions
from nopair.judges.scripted import ScriptedJudge
from nopair.types import Question

CPU = torch.device("cpu")
GOAL = (0.8, 0.5, 0.2)
JUDGE = ScriptedJudge(GOAL, tolerance=0.2, sharpness=50.0)
"""At a grey image its gradient is the same at every pixel: up in red, down in blue."""
SPACES = [PIXELS, latents_of(ToyBackbone.build(seed=0))]


def coloured(*colour: float, size: int = 4) -> Tensor:
    return torch.tensor(colour).view(3, 1, 1).repeat(1, size, size)


GREY = coloured(0.5, 0.5, 0.5)


def case(target: Tensor | None, *, category: str = "dye", instruction: str = "dye it") -> LabelledCase:
    reference = torch.full_like(GREY if target is None else target, 0.5)
    return LabelledCase(reference, reference, instruction, category, "hat", False, True, target)


def start(*targets: Tensor) -> Starts:
    [starts] = starts_of([case(t, instruction=f"{i}") for i, t in enumerate(targets)], 99, 99, CPU)
    return starts


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_cosines_are_those_of_the_closed_form(space: Space) -> None:
    half = GREY.clone()
    half[0, :2] += 0.3  # one of three colours, on half of the pixels, and the gradient has two
    ways = (coloured(*GOAL), coloured(0.2, 0.5, 0.8), coloured(0.5, 0.9, 0.5), half, GREY.clone())
    found = bearings(JUDGE, start(*ways), space)
    for bearing, cosine in zip(found, (1.0, -1.0, 0.0, 0.5), strict=False):
        assert bearing.edit == pytest.approx(cosine, abs=1e-5)
        assert bearing.loss == pytest.approx(cosine, abs=1e-5), "at an unedited image, identity pulls nowhere"
    assert (found[-1].edit, found[-1].loss) == (None, None), "a target that is the reference is no direction"


def test_removal_ascends_towards_no() -> None:
    [starts] = starts_of([case(coloured(*GOAL), category="remove")], 1, 1, CPU)
    assert bearings(JUDGE, starts, PIXELS)[0].edit == pytest.approx(1.0)


def test_a_gradient_of_zero_has_no_direction_and_is_left_out() -> None:
    content = ScriptedJudge((0.5, 0.5, 0.5))
    found = bearings(content, start(coloured(*GOAL)), PIXELS)
    assert found[0].edit is None
    assert directions(found).all.edit is None
    mixed = directions([*found, replace(found[0], edit=0.5)])
    assert mixed.all.edit is not None
    assert (mixed.all.edit.count, mixed.all.edit.mean) == (1, 0.5)
    [ended] = climb(content, start(coloured(*GOAL)), PIXELS, 3)
    assert ended.before == ended.after


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_ascending_a_good_compass_arrives_and_a_bad_one_does_not(space: Space) -> None:
    there, sideways = climb(JUDGE, start(coloured(*GOAL), coloured(0.5, 0.8, 0.5)), space, 8)
    assert there.before.distance == pytest.approx((0.18 / 3) ** 0.5, abs=1e-5)
    assert there.after.distance < 0.5 * there.before.distance
    assert (there.before.judge_edit, there.after.judge_edit) == (False, True)
    assert there.before.judge_identity is True
    assert sideways.after.distance > sideways.before.distance
    assert (there.before.success, there.after.preservation) == (None, None), "no oracle outside the shapes world"


def test_one_step_is_as_long_as_the_way() -> None:
    [ended] = climb(JUDGE, start(coloured(0.5, 0.6, 0.5)), PIXELS, 1)
    assert ended.after.distance == pytest.approx(2**0.5 * ended.before.distance, abs=1e-5), "at right angles to it"
    [ended] = climb(JUDGE, start(coloured(0.6, 0.5, 0.4)), PIXELS, 1)
    assert ended.after.distance == pytest.approx(0, abs=1e-5)


def test_samples_do_not_see_each_other() -> None:
    targets = (coloured(*GOAL), coloured(0.2, 0.3, 0.4), coloured(0.9, 0.9, 0.1))
    together = climb(JUDGE, start(*targets), PIXELS, 4)
    for target, ended in zip(targets, together, strict=True):
        [alone] = climb(JUDGE, start(target), PIXELS, 4)
        assert alone.after.distance == pytest.approx(ended.after.distance, abs=1e-6)


def test_the_oracle_stands_beside_the_judge_in_the_shapes_world() -> None:
    cases = [case for case in shapes_cases(0, 1) if case.category in ("recolour", "remove", "nothing")]
    starts = starts_of(cases, 5, 8, CPU)
    assert [each.categories for each in starts] == [("recolour", "remove")], "nothing has no edit to ascend to"
    climbed = ascents("pixels", 2, climb(JUDGE, starts[0], PIXELS, 2))
    assert set(climbed.categories) == {"recolour", "remove"}
    assert climbed.all.count == 2
    assert climbed.all.success is not None
    assert climbed.all.preservation is not None
    assert (climbed.all.success.before, climbed.all.preservation.before) == (0.0, 1.0)


def test_each_edit_is_a_start_once_and_categories_have_a_limit() -> None:
    colours = [coloured(value / 10, 0.5, 0.5) for value in range(5)]
    cases = [
        *(case(colour, instruction=f"{i}") for i, colour in enumerate(colours)),
        case(colours[0], instruction="0"),
        case(None, instruction="no target", category="other"),
        case(coloured(0.1, 0.1, 0.1, size=8), instruction="larger", category="other"),
        case(colours[1], instruction="nothing", category="nothing"),
    ]
    found = starts_of(cases, 4, 3, CPU)
    assert [each.categories for each in found] == [("dye",) * 3, ("dye",), ("other",)]
    assert [len(each.references) for each in found] == [3, 1, 1]
    assert all(each.edits is None for each in found)


class Red:
    """Wants edits red, and everything else blue."""

    def yes_minus_no(self, reference: Tensor, edited: Tensor, questions: Sequence[Sequence[Question]]) -> Tensor:
        return torch.stack([edited[:, 0].mean(dim=(1, 2)), edited[:, 2].mean(dim=(1, 2))], dim=1)


def test_the_edit_question_is_heard_apart_from_the_whole_loss() -> None:
    [found] = bearings(Red(), start(coloured(0.8, 0.5, 0.5)), PIXELS)
    assert found.edit == pytest.approx(1.0)
    assert found.loss == pytest.approx(0.5**0.5, abs=1e-5), "both questions weigh the same where both log-odds are 0.5"


class Broken:
    """Its gradient is no number."""

    def yes_minus_no(self, reference: Tensor, edited: Tensor, questions: Sequence[Sequence[Question]]) -> Tensor:
        return (edited.mean(dim=(1, 2, 3)) * torch.nan)[:, None].expand(-1, 2)


def test_a_gradient_that_is_no_number_is_an_error() -> None:
    with pytest.raises(JudgeError, match="gradient"):
        bearings(Broken(), start(coloured(*GOAL)), PIXELS)
