"""Attempts of all kinds at all edits: images of the world's size, and labels that the scenes bear out."""

import random

import pytest
import torch

from nopair.world.attempts import KINDS, Attempt, is_kept, make_attempt, other_than, seen_in
from nopair.world.edits import CATEGORIES, Edit, sample_edit
from nopair.world.oracle import score
from nopair.world.render import render
from nopair.world.scenes import SIZE


def attempt(kind: str, edit: Edit, seed: int = 0) -> Attempt:
    return make_attempt(random.Random(seed), kind, edit, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("kind", list(KINDS))
def test_an_attempt_is_an_image_and_depends_on_its_seeds_alone(kind: str, category: str) -> None:
    edit = sample_edit(random.Random(3), category, held_out=True)
    one, same = attempt(kind, edit), attempt(kind, edit)
    assert one.image.shape == (3, SIZE, SIZE)
    assert one.image.min() >= 0
    assert one.image.max() <= 1
    assert torch.equal(one.image, same.image)
    assert (one.done, one.kept, one.shown) == (same.done, same.kept, same.shown)


@pytest.mark.parametrize("category", CATEGORIES)
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
