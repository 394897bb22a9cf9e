"""Attempts of all kinds at all edits: images of the world's size, and labels that the scenes bear out."""

import random

import pytest
import torch

from nopair.world.attempts import KINDS, Attempt, is_kept, make_attempt, other_than, seen_in
from nopair.world.edits import ALL_CATEGORIES, CATEGORIES, FREE_FORM, Edit, sample_edit
from nopair.world.oracle import DESCRIBED, score
from nopair.world.parse import parse
from nopair.world.render import render
from nopair.world.scenes import SIZE


def attempt(kind: str, edit: Edit, seed: int = 0) -> Attempt:
    return make_attempt(random.Random(seed), kind, edit, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("category", ALL_CATEGORIES)
@pytest.mark.parametrize("kind", list(KINDS))
def test_an_attempt_is_an_image_and_depends_on_its_seeds_alone(kind: str, category: str) -> None:
    edit = sample_edit(random.Random(3), category, held_out=True)
    one, same = attempt(kind, edit), attempt(kind, edit)
    assert one.image.shape == (3, SIZE, SIZE)
    assert one.image.min() >= 0
    assert one.image.max() <= 1
    assert torch.equal(one.image, same.image)
    assert (one.done, one.kept, one.shown) == (same.done, same.kept, same.shown)


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_right_and_unchanged_attempts_are_what_they_are_called(category: str) -> None:
    edit = sample_edit(random.Random(4), category, held_out=True)
    right, unchanged = attempt("right", edit), attempt("unchanged", edit)
    assert torch.equal(right.image, render(edit.target))
    assert torch.equal(unchanged.image, render(edit.source))
    assert (right.done, right.kept, unchanged.done, unchanged.kept) == (True, True, category == "nothing", True)


def test_labels_agree_with_the_oracle_reading_the_picture() -> None:
    rng = random.Random(5)
    for seed in range(40):
        edit = sample_edit(rng, rng.choice(CATEGORIES), held_out=True)
        wrong, over = attempt("wrong", edit, seed), attempt("over", edit, seed)
        assert score(edit, wrong.image).success == float(bool(wrong.done))
        if over.kept is False and edit.category != "background":
            assert score(edit, over.image).preservation < 1


def test_what_an_edit_leaves_open_may_change() -> None:
    edit = sample_edit(random.Random(2), "recolour", held_out=True)
    assert edit.cell is not None
    thing = edit.target.at(edit.cell)
    assert thing is not None
    assert is_kept(edit, edit.target)
    assert not is_kept(edit, edit.target.without(thing.cell))


def test_helpers() -> None:
    edit = sample_edit(random.Random(6), "remove", held_out=True)
    assert seen_in(edit.source, edit.subject) is not None
    assert seen_in(edit.target, edit.subject) is None
    assert {other_than(random.Random(seed), ("a", "b", "c"), "b") for seed in range(30)} == {"a", "c"}


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_a_nudged_attempt_is_not_preserved_by_the_oracle_either(category: str) -> None:
    """However slight: a step aside, another texture, or a blend in which the right thing has less than half."""
    rng = random.Random(8)
    for seed in range(25):
        edit = sample_edit(rng, category, held_out=True)
        got = attempt("nudged", edit, seed)
        assert got.kept is False
        assert score(edit, got.image).preservation < 0.97
        if got.done is not None and category != "nothing":
            assert score(edit, got.image).success == float(got.done)


def test_a_nudged_attempt_differs_in_one_attribute_of_one_thing() -> None:
    rng = random.Random(9)
    names = set()
    for seed in range(60):
        edit = sample_edit(rng, "background", held_out=True)
        (found,) = parse(attempt("nudged", edit, seed).image[None])
        pairs = [(thing, found.at(thing.cell)) for thing in edit.target.things]
        wrong = [
            (a, b, name)
            for a, b in pairs
            for name in (*DESCRIBED, "dx", "dy")
            if getattr(a, name) != getattr(b, name, None)
        ]
        assert len(wrong) == 1
        ((before, after, name),) = wrong
        names.add(name)
        if name in ("dx", "dy"):
            assert abs(getattr(before, name) - getattr(after, name)) == 2
    assert names == {"shape", "colour", "texture", "size", "dx", "dy"}


def test_attempts_at_a_new_scene_fail_in_every_way() -> None:
    rng = random.Random(10)
    labels: dict[str, set[tuple[bool | None, bool | None]]] = {kind: set() for kind in KINDS}
    for seed in range(40):
        edit = sample_edit(rng, FREE_FORM, held_out=True)
        for kind in KINDS:
            got = attempt(kind, edit, seed)
            labels[kind].add((got.done, got.kept))
            if got.shown is not None:
                marks = score(edit, got.image)
                assert (marks.success, marks.preservation > 0.99) == (float(bool(got.done)), got.kept)
    assert labels["right"] == {(True, True)}
    assert labels["unchanged"] == {(False, True)}
    assert labels["nudged"] == {(True, False)}
    assert labels["half"] == {(False, None), (False, True), (False, False)}
    assert labels["misshapen"] == labels["smeared"] == {(False, True), (False, False)}
    assert labels["wrong"] >= {(False, True), (False, False)}
    assert labels["over"] >= {(True, False), (False, True)}


def test_half_attempts_at_a_new_scene_lack_each_of_its_parts() -> None:
    """What an editor does that has learnt one part of the instruction: a judge must have seen it."""
    rng = random.Random(11)
    lacking = set()
    for seed in range(120):
        edit = sample_edit(rng, FREE_FORM, held_out=True)
        got = attempt("half", edit, seed)
        assert got.done is False
        assert score(edit, got.image).success == 0
        if got.shown is not None:
            shapes = {thing.shape for thing in got.shown.things}
            (asked,) = {thing.shape for thing in edit.target.things} - {edit.subject}
            ground = "new" if got.shown.background == edit.target.background else "old"
            lacking.add((ground, edit.subject in shapes, asked in shapes))
    assert lacking == {("new", True, False), ("new", False, True), ("old", True, True)}
