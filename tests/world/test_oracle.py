import random
from dataclasses import astuple, replace

import pytest
import torch
from torch import Tensor

from nopair.world.corruptions import blur, flatten_patterns, gaussian_noise, ghost, over_edit, shift_pattern, wrong_edit
from nopair.world.edits import ALL_CATEGORIES, FREE_FORM, Edit, random_edit, random_scene, sample_edit
from nopair.world.oracle import (
    Score,
    achieved,
    edited_cells,
    pixel_credit,
    score,
    score_batch,
    subject_identity,
    summarise,
)
from nopair.world.render import render, render_batch
from nopair.world.scenes import OBJECT_COLOURS, OFFSETS, PHASES, Scene, Thing

CHANGING = tuple(category for category in ALL_CATEGORIES if category != "nothing")


def _edits(category: str, count: int, seed: int = 0) -> list[Edit]:
    rng = random.Random(f"{category} {seed}")
    return [random_edit(rng, category, random_scene(rng)) for _ in range(count)]


def _mixed(count: int, seed: int = 0) -> list[Edit]:
    return [edit for category in ALL_CATEGORIES for edit in _edits(category, count, seed)]


def _targets(edits: list[Edit]) -> Tensor:
    return render_batch([edit.target for edit in edits])


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_the_exact_edit_gets_full_marks(category: str) -> None:
    edits = _edits(category, 100)
    for got in score_batch(edits, _targets(edits)):
        assert got.success == 1.0
        assert min(got.preservation, got.realism, got.overall) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("category", CHANGING)
def test_the_unchanged_image_has_no_success_and_is_preserved(category: str) -> None:
    edits = _edits(category, 60)
    for got in score_batch(edits, render_batch([edit.source for edit in edits])):
        assert (got.success, got.overall) == (0.0, 0.0)
        assert got.preservation == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_a_wrong_edit_has_no_success(category: str) -> None:
    edits, rng = _edits(category, 60), random.Random(1)
    for got in score_batch(edits, render_batch([wrong_edit(rng, edit) for edit in edits])):
        assert (got.success, got.overall) == (0.0, 0.0)


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_an_over_edit_is_not_preserved(category: str) -> None:
    edits, rng = _edits(category, 60), random.Random(2)
    for got in score_batch(edits, render_batch([over_edit(rng, edit) for edit in edits])):
        assert got.success == (category != "nothing")
        assert got.preservation == 0.0


def _with_other_nuisances(rng: random.Random, edit: Edit) -> Edit:
    """The same question with the answer's open nuisances drawn anew."""
    if edit.category == "background":
        ground = replace(edit.target.background, phase_x=rng.choice(PHASES), phase_y=rng.choice(PHASES))
        return replace(edit, target=replace(edit.target, background=ground))
    assert edit.cell is not None
    thing = edit.target.at(edit.cell)
    assert thing is not None
    return replace(edit, target=edit.target.with_thing(replace(thing, dx=rng.choice(OFFSETS), dy=rng.choice(OFFSETS))))


@pytest.mark.parametrize("category", ["add", "move", "background"])
def test_no_score_depends_on_what_the_instruction_leaves_open(category: str) -> None:
    edits, rng = _edits(category, 40), random.Random(3)
    outputs = gaussian_noise(_targets(edits), 0.1, torch.Generator().manual_seed(0))
    drawn_anew = [_with_other_nuisances(rng, edit) for edit in edits]
    for one, other in zip(score_batch(drawn_anew, outputs), score_batch(edits, outputs), strict=True):
        assert astuple(one) == pytest.approx(astuple(other), abs=1e-6)


def test_noise_blur_and_flatness_are_not_real() -> None:
    edits = _mixed(6)
    images, noise = _targets(edits), torch.Generator().manual_seed(0)
    clean = [got.realism for got in score_batch(edits, gaussian_noise(images, 0.02, noise))]
    assert min(clean) == 1.0
    for bad in (gaussian_noise(images, 0.1, noise), blur(images, 2.0), flatten_patterns([e.target for e in edits])):
        assert max(got.realism for got in score_batch(edits, bad)) < 0.5


def test_an_image_without_detail_or_without_sense_is_never_a_success() -> None:
    edits = _mixed(8)
    images, noise = _targets(edits), torch.Generator().manual_seed(0)
    for bad in (
        blur(images, 4.0),
        blur(images, 6.0),
        torch.rand(images.shape, generator=noise),
        gaussian_noise(torch.full_like(images, 0.5), 0.3, noise),
        images.mean((2, 3), keepdim=True).expand_as(images),
    ):
        got = score_batch(edits, bad)
        assert [each.success for each in got] == [0.0] * len(edits)
        assert max(each.realism for each in got) < 0.2


@pytest.mark.parametrize("category", ["remove", "background", FREE_FORM])
def test_a_flat_patch_is_no_background(category: str) -> None:
    edits = _edits(category, 40)
    got = score_batch(edits, flatten_patterns([edit.target for edit in edits]))
    assert [each.success for each in got] == [0.0] * len(edits)


def test_half_an_edit_is_no_success() -> None:
    edits = [edit for category in ("recolour", "remove", "add", "move", FREE_FORM) for edit in _edits(category, 30)]
    halfway = ghost(render_batch([edit.source for edit in edits]), _targets(edits), 0.5)
    got = score_batch(edits, halfway)
    assert sum(each.success for each in got) / len(got) < 0.1


@pytest.mark.parametrize("category", [category for category in CHANGING if category not in ("background", FREE_FORM)])
def test_a_lost_pattern_is_not_preserved(category: str) -> None:
    edits, rng = _edits(category, 15), random.Random(4)
    flat = flatten_patterns([edit.target for edit in edits])
    shifted = render_batch([shift_pattern(rng, edit.target) for edit in edits])
    for got in score_batch(edits * 2, torch.cat([flat, shifted])):
        assert got.preservation < 0.3


def test_what_an_autoencoder_loses_costs_little() -> None:
    """Noise as strong as the error of a decoder at 30 dB."""
    edits = _mixed(10)
    outputs = gaussian_noise(_targets(edits), 10 ** (-30 / 20), torch.Generator().manual_seed(0))
    means = summarise(edits, score_batch(edits, outputs))
    assert means["success"] == 1.0
    assert min(means["preservation"], means["realism"], means["overall"]) > 0.95


def _thing_edit(category: str, **asked: str) -> Edit:
    ground = random_scene(random.Random(0)).background
    subject = Thing("circle", "red", "plain", "large", 0)
    other = Thing("square", "green", "striped", "large", 3, 2, 2)
    source = Scene(ground, (subject, other))
    return Edit(category, "", source, source.with_thing(replace(subject, **asked)), subject.noun, 0)


def test_a_change_of_the_edited_thing_that_was_not_asked_costs_its_share() -> None:
    edit = _thing_edit("recolour", colour="blue")
    resized = edit.target.with_thing(Thing("circle", "blue", "plain", "small", 0))
    got = score(edit, render(edit.target.with_thing(Thing("circle", "blue", "dotted", "large", 0, 2, -2))))
    assert got.success == 1.0
    assert got.preservation == pytest.approx((2 / 5) ** (1 / 3), abs=0.02)
    # The ring of background that a smaller thing bares was covered before, so it does not count.
    assert score(edit, render(resized)).preservation == pytest.approx((4 / 5) ** (1 / 3), abs=0.02)


def _one_of(category: str) -> Edit:
    """An edit of a large red circle at the top left, or that adds one."""
    asked = {
        "recolour": {"colour": "blue"},
        "replace": {"shape": "cross", "colour": "white"},
        "resize": {"size": "small"},
        "texture": {"texture": "dotted"},
    }
    if category in asked:
        return _thing_edit(category, **asked[category])
    edit = _thing_edit(category)
    without, subject = edit.source.without(0), edit.source.things[0]
    if category == "add":
        return replace(edit, source=without)
    return replace(edit, target=without.with_thing(replace(subject, cell=1)), cell=1)  # a move


OTHERWISE = {"shape": "triangle", "colour": "yellow", "texture": "striped", "size": "small", "dx": 2, "dy": -2}
ASKED_OF = {
    "recolour": ("shape", "colour"),
    "add": ("shape", "colour", "texture", "size"),
    "replace": ("shape", "colour"),
    "resize": ("shape", "size"),
    "move": ("shape", "colour"),
    "texture": ("shape", "texture"),
}


@pytest.mark.parametrize("category", ASKED_OF)
@pytest.mark.parametrize("name", ["shape", "colour", "texture", "size", "dx", "dy"])
def test_an_edit_is_done_where_all_that_was_asked_is_right_whatever_else_is_not(category: str, name: str) -> None:
    edit = _one_of(category)
    assert edit.cell is not None
    thing = edit.target.at(edit.cell)
    assert thing is not None
    other = "large" if (category, name) == ("resize", "size") else OTHERWISE[name]
    scene = edit.target.with_thing(replace(thing, **{name: other}))
    assert achieved(edit, edit.target)
    assert achieved(edit, scene) == (name not in ASKED_OF[category])


STAYS = {
    "recolour": ("shape", "texture", "size", "dx", "dy"),
    "replace": ("texture", "size", "dx", "dy"),
    "resize": ("shape", "colour", "texture", "dx", "dy"),
    "move": ("shape", "colour", "texture", "size"),
    "texture": ("shape", "colour", "size", "dx", "dy"),
}


@pytest.mark.parametrize(("category", "name"), [(category, name) for category in STAYS for name in STAYS[category]])
def test_whatever_the_edited_thing_should_have_kept_costs_its_share(category: str, name: str) -> None:
    edit = _one_of(category)
    assert edit.cell is not None
    thing = edit.target.at(edit.cell)
    assert thing is not None
    got = score(edit, render(edit.target.with_thing(replace(thing, **{name: OTHERWISE[name]}))))
    count = len(STAYS[category])
    assert got.preservation == pytest.approx(((count - 1) / count) ** (1 / 3), abs=0.02)


def test_what_an_added_thing_of_another_size_covers_is_no_damage() -> None:
    edit = _thing_edit("add")
    small = replace(edit.source.things[0], size="small")
    edit = replace(edit, source=edit.source.without(0), target=edit.source.with_thing(small))
    got = score(edit, render(edit.source.with_thing(replace(small, size="large"))))
    assert (got.success, got.preservation) == (0.0, pytest.approx(1.0, abs=1e-3))


def test_things_may_be_further_off_than_a_background() -> None:
    """By less than 0.1 of their colours, which would cost a background half of its credit."""
    edit = _thing_edit("recolour", colour="blue")
    output = render(edit.target)
    own = (output != render(edit.target.without(3))).any(0)
    output[:, own] = (output[:, own] - 0.095).abs()
    assert score(edit, output).preservation == pytest.approx(1.0, abs=0.01)


def test_of_three_channels_the_worst_counts() -> None:
    wanted = torch.full((3, 1, 4), 0.5)
    output = wanted.clone()
    output[1, 0] += torch.tensor([0.0, 0.1, 0.2, 0.4])
    output[2] -= 0.05
    torch.testing.assert_close(pixel_credit(output, wanted, (0.1, 0.3)), torch.tensor([[1.0, 1.0, 0.5, 0.0]]))


def test_values_outside_the_range_are_scored_as_a_file_would_hold_them() -> None:
    edits = [_one_of(category) for category in ASKED_OF]
    outputs = 1.2 * torch.stack([render(edit.target) for edit in edits]) - 0.1
    assert outputs.max() > 1
    assert outputs.min() < 0
    assert score_batch(edits, outputs) == score_batch(edits, outputs.clamp(0, 1))


def test_a_nudged_thing_is_half_kept() -> None:
    edit = _thing_edit("recolour", colour="blue")
    one, both = (Thing("square", "green", "striped", "large", 3, *at) for at in ((0, 2), (0, 0)))
    assert 0.6 < score(edit, render(edit.target.with_thing(one))).preservation < 0.5 ** (1 / 3) + 0.01
    assert score(edit, render(edit.target.with_thing(both))).preservation == 0.0


def test_a_vanished_or_an_invented_thing_is_no_preservation() -> None:
    edit = _thing_edit("recolour", colour="blue")
    invented = edit.target.with_thing(Thing("cross", "white", "plain", "small", 1))
    for scene in (edit.target.without(3), invented):
        got = score(edit, render(scene))
        assert (got.success, got.preservation) == (1.0, 0.0)


def test_damage_to_the_background_costs_in_proportion() -> None:
    edit = _thing_edit("recolour", colour="blue")
    output = render(edit.target)
    output[:, :32, 34::8] = 0.0
    background = (render(edit.target) == render(Scene(edit.target.background, ()))).all(0).sum()
    got = score(edit, output)
    assert got.success == 1.0
    assert got.preservation == pytest.approx((1 - 32 * 4 / int(background)) ** (1 / 3), abs=0.003)


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_achieved_agrees_with_the_pixels(category: str) -> None:
    rng = random.Random(5)
    for edit in _edits(category, 50):
        assert achieved(edit, edit.target)
        assert achieved(edit, edit.source) == (category == "nothing")
        assert not achieved(edit, wrong_edit(rng, edit))


def test_a_copied_thing_is_not_moved() -> None:
    for edit in _edits("move", 10):
        before = next(thing for thing in edit.source.things if thing.noun == edit.subject)
        assert score(edit, render(edit.target.with_thing(before))).success == 0.0


def test_edited_cells() -> None:
    expected = {"move": 2, "background": 0, "nothing": 0, FREE_FORM: 0}
    for edit in _mixed(5):
        assert len(edited_cells(edit)) == expected.get(edit.category, 1)


def test_a_thing_that_is_too_far_off_is_no_success_however_much_it_explains() -> None:
    edit = _thing_edit("recolour", colour="white", texture="striped")
    wanted = render(edit.target)
    assert achieved(edit, edit.target)
    for off, success in ((0.135, 1.0), (0.145, 0.0)):  # at every value; far less than 0.4 of the stripes' variance
        assert score(edit, torch.where(wanted < 0.5, wanted + off, wanted - off)).success == success


def test_a_recoloured_thing_of_the_wrong_colour_fails_for_every_colour() -> None:
    edit = _thing_edit("recolour", colour="blue")
    for colour in OBJECT_COLOURS:
        got = score(edit, render(edit.source.with_thing(Thing("circle", colour, "plain", "large", 0))))
        assert got.success == (colour == "blue")


def test_one_by_one_is_the_same_as_in_a_batch() -> None:
    edits = _mixed(2)
    outputs = gaussian_noise(_targets(edits), 0.1, torch.Generator().manual_seed(0))
    assert [score(edit, output) for edit, output in zip(edits, outputs, strict=True)] == score_batch(edits, outputs)


def test_scores_stay_in_range_whatever_the_image() -> None:
    edits = _mixed(3)
    noise = torch.Generator().manual_seed(0)
    for images in (5 * torch.randn(len(edits), 3, 64, 64, generator=noise), torch.zeros(len(edits), 3, 64, 64)):
        for got in score_batch(edits, images):
            for value in (got.success, got.preservation, got.realism, got.overall):
                assert 0.0 <= value <= 1.0


def test_held_out_edits_are_scored_alike() -> None:
    rng = random.Random(6)
    edits = [sample_edit(rng, category, held_out=True) for category in ALL_CATEGORIES for _ in range(5)]
    assert min(got.overall for got in score_batch(edits, _targets(edits))) == pytest.approx(1.0, abs=1e-6)


def test_wrong_numbers_and_sizes_are_refused() -> None:
    edits = _mixed(1)
    with pytest.raises(ValueError, match="10 edits but 1 outputs"):
        score_batch(edits, torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="64 x 64"):
        score(edits[0], torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match="not finite"):
        score(edits[0], torch.full((3, 64, 64), float("nan")))


def test_the_summary_weighs_categories_alike() -> None:
    edits = [*_edits("remove", 3), *_edits("add", 1)]
    scores = [Score(1.0, 0.5, 1.0, 0.5)] * 3 + [Score(0.0, 1.0, 0.0, 0.0)]
    means = summarise(edits, scores)
    assert (means["success"], means["preservation"], means["realism"], means["overall"]) == (0.5, 0.75, 0.5, 0.25)
    assert list(means["categories"]) == ["remove", "add"]
    assert means["categories"]["remove"] == {
        "success": 1.0, "preservation": 0.5, "realism": 1.0, "overall": 0.5, "count": 3
    }  # fmt: skip
    with pytest.raises(ValueError, match="at least one"):
        summarise([], [])


# Free-form: the subject in a new scene --------------------------------------------------------------------------------


def _free_form() -> Edit:
    ground = random_scene(random.Random(0)).background
    subject, other = Thing("circle", "red", "striped", "large", 0), Thing("cross", "green", "plain", "small", 3)
    asked = replace(ground, pattern="dots" if ground.pattern != "dots" else "bars")
    target = Scene(asked, (replace(subject, cell=1), other))
    return Edit(FREE_FORM, "", Scene(ground, (subject,)), target, "circle", None)


def test_where_things_stand_in_a_new_scene_is_free() -> None:
    rng = random.Random(7)
    for edit in _edits(FREE_FORM, 40):
        cells = sorted(rng.sample(range(4), 2))
        things = rng.sample(edit.target.things, 2)
        moved = tuple(
            replace(thing, cell=cell, dx=rng.choice(OFFSETS), dy=rng.choice(OFFSETS))
            for thing, cell in zip(things, cells, strict=True)
        )
        shifted = replace(edit.target.background, phase_x=rng.choice(PHASES), phase_y=rng.choice(PHASES))
        got = score(edit, render(Scene(shifted, moved)))
        assert (got.success, got.preservation) == (1.0, pytest.approx(1.0, abs=1e-6))


@pytest.mark.parametrize(("name", "other"), [("colour", "blue"), ("texture", "dotted"), ("size", "small")])
def test_each_wrong_attribute_of_the_subject_costs_a_third_and_no_success(name: str, other: str) -> None:
    edit = _free_form()
    got = score(edit, render(edit.target.with_thing(replace(edit.target.things[0], **{name: other}))))
    assert got.success == 1.0
    assert got.preservation == pytest.approx(2 / 3, abs=1e-6)


def test_of_several_subjects_the_one_most_like_it_counts() -> None:
    ground, subject = random_scene(random.Random(0)).background, Thing("circle", "red", "striped", "large", 0)
    edit = Edit(FREE_FORM, "", Scene(ground, (subject,)), Scene(ground, (subject,)), "circle", None)
    unlike = Thing("circle", "blue", "plain", "small", 1)
    for things in ((subject, unlike), (replace(unlike, cell=0), replace(subject, cell=1))):
        assert subject_identity(edit, Scene(ground, things)) == 1.0


def test_another_thing_with_the_subjects_looks_is_not_the_subject() -> None:
    edit = _free_form()
    got = score(edit, render(edit.target.with_thing(replace(edit.target.things[0], shape="square"))))
    assert (got.success, got.preservation, got.overall) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("name", ["shape", "colour", "texture", "size"])
def test_the_other_thing_must_be_as_asked(name: str) -> None:
    edit = _free_form()
    wrong = {"shape": "square", "colour": "white", "texture": "dotted", "size": "large"}
    got = score(edit, render(edit.target.with_thing(replace(edit.target.things[1], **{name: wrong[name]}))))
    assert (got.success, got.preservation) == (0.0, pytest.approx(1.0, abs=1e-6))


def test_a_new_scene_holds_what_was_asked_and_no_more() -> None:
    edit = _free_form()
    subject, other = edit.target.things
    for scene in (
        edit.target.with_thing(Thing("square", "white", "plain", "small", 2)),
        edit.target.with_thing(replace(subject, cell=2)),
        edit.target.without(other.cell),
        replace(edit.target, background=edit.source.background),
    ):
        got = score(edit, render(scene))
        assert (got.success, got.preservation) == (0.0, pytest.approx(1.0, abs=1e-6))


def test_a_damaged_subject_is_not_the_same() -> None:
    edit = _free_form()
    noisy = gaussian_noise(render(edit.target)[None], 0.3, torch.Generator().manual_seed(0))
    got = score(edit, noisy[0])
    assert got.preservation < 0.6
    assert got.realism == 0.0
