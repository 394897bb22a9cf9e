import random

import pytest
import torch

from nopair.world.corruptions import (
    blur,
    flatten_patterns,
    gaussian_noise,
    ghost,
    over_edit,
    paste,
    shift_pattern,
    wrong_edit,
)
from nopair.world.edits import ALL_CATEGORIES, FREE_FORM, Edit, random_edit, random_scene
from nopair.world.oracle import achieved, edited_cells, edited_things
from nopair.world.render import render_batch
from nopair.world.scenes import Scene, Thing, caption


def _scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [random_scene(rng) for _ in range(count)]


def _edits(category: str, count: int) -> list[Edit]:
    rng = random.Random(category)
    return [random_edit(rng, category, random_scene(rng)) for _ in range(count)]


def test_noise_is_as_strong_as_asked_and_repeatable() -> None:
    images = torch.full((4, 3, 64, 64), 0.5)
    one, two = (gaussian_noise(images, 0.1, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)
    assert float((one - images).std()) == pytest.approx(0.1, rel=0.05)
    loud = gaussian_noise(images, 2.0, torch.Generator().manual_seed(7))
    assert (float(loud.min()), float(loud.max())) == (0.0, 1.0)


def test_blur_keeps_the_mean_and_loses_detail() -> None:
    images = render_batch(_scenes(4))
    soft, softer = blur(images, 1.0), blur(images, 3.0)
    assert torch.allclose(softer.mean((2, 3)), images.mean((2, 3)), atol=0.02)
    assert (softer.var((2, 3)) < soft.var((2, 3))).all()
    assert (soft.var((2, 3)) < images.var((2, 3))).all()
    flat = torch.full((1, 3, 64, 64), 0.25)
    assert torch.allclose(blur(flat, 2.0), flat, atol=1e-5)


def test_blur_is_symmetric() -> None:
    point = torch.zeros(1, 3, 65, 65)
    point[:, :, 32, 32] = 1.0
    spread = blur(point, 1.5)
    for same in (spread.flip(2), spread.flip(3), spread.transpose(2, 3)):
        assert torch.allclose(same, spread, atol=1e-7)
    assert float(spread.sum()) == pytest.approx(3.0, rel=1e-4)


def test_a_ghost_lies_between() -> None:
    one, two = render_batch(_scenes(3)), render_batch(_scenes(3, seed=1))
    assert torch.equal(ghost(one, two, 0.0), one)
    assert torch.allclose(ghost(one, two, 1.0), two)
    assert torch.allclose(ghost(one, two, 0.25), 0.75 * one + 0.25 * two, atol=1e-6)


def test_a_patch_is_pasted_from_the_same_place() -> None:
    images, others = torch.zeros(6, 3, 64, 64), torch.rand(6, 3, 64, 64) + 0.1
    pasted = paste(images, others, 20, torch.Generator().manual_seed(0))
    changed = (pasted != images).all(1)
    assert torch.equal(changed.sum((1, 2)), torch.full((6,), 400))
    assert torch.equal(pasted[changed[:, None].expand_as(pasted)], others[changed[:, None].expand_as(pasted)])
    assert float(images.sum()) == 0.0, "the images given stay as they are"
    assert len({tuple(row.nonzero()[0].tolist()) for row in changed}) > 1


def test_an_erased_pattern_leaves_one_colour_and_the_things() -> None:
    scenes = _scenes(12)
    flat = flatten_patterns(scenes)
    for scene, image, original in zip(scenes, flat, render_batch(scenes), strict=True):
        bare = flatten_patterns([Scene(scene.background, ())])[0]
        assert torch.equal(bare, bare[:, :1, :1].expand_as(bare))
        ground = render_batch([Scene(scene.background, ())])[0]
        things = (original - ground).abs().amax(0) > 0.3
        assert float((image - original).abs().amax(0)[things].mean()) < 0.05
        assert float((image - original).abs().amax(0)[~things].min()) < 0.2


def test_a_shifted_pattern_has_the_same_name_and_another_look() -> None:
    rng = random.Random(0)
    for scene in _scenes(40):
        shifted = shift_pattern(rng, scene)
        assert caption(shifted) == caption(scene)
        one, two = render_batch([scene, shifted])
        assert not torch.equal(one, two)


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_a_wrong_edit_is_a_change_but_not_the_asked_one(category: str) -> None:
    rng = random.Random(0)
    for edit in _edits(category, 60):
        scene = wrong_edit(rng, edit)
        assert not achieved(edit, scene)
        assert caption(scene) != caption(edit.source)
        if category != "move":
            assert len({thing.shape for thing in scene.things}) == len(scene.things), "nouns stay clear"


def test_wrong_backgrounds_are_wrong_in_pattern_only_and_in_colour_only_too() -> None:
    rng = random.Random(0)
    ways = set()
    for edit in _edits("background", 80):
        found, wanted = wrong_edit(rng, edit).background, edit.target.background
        ways.add((found.pattern == wanted.pattern, found.colour == wanted.colour))
    assert ways >= {(True, False), (False, True)}


def test_a_wrong_move_may_leave_the_thing_behind() -> None:
    rng = random.Random(0)
    copies = 0
    for edit in _edits("move", 60):
        old, new = edited_things(edit)
        scene = wrong_edit(rng, edit)
        copies += set(scene.things) >= {old, new}
    assert copies > 3


def test_wrong_additions_miss_every_attribute_in_turn() -> None:
    rng = random.Random(0)
    missed = set()
    for edit in _edits("add", 200):
        assert edit.cell is not None
        found, wanted = wrong_edit(rng, edit).at(edit.cell), edit.target.at(edit.cell)
        if found and wanted:
            names = ("shape", "colour", "texture", "size")
            wrong = [name for name in names if getattr(found, name) != getattr(wanted, name)]
            missed |= {wrong[0]} if len(wrong) == 1 else set()
    assert missed == {"shape", "colour", "texture", "size"}


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_an_over_edit_does_what_was_asked_and_more(category: str) -> None:
    rng = random.Random(0)
    for edit in _edits(category, 60):
        scene = over_edit(rng, edit)
        assert achieved(edit, scene) == (category != "nothing")
        assert caption(scene) != caption(edit.target)
        for cell in edited_cells(edit):
            assert scene.at(cell) == edit.target.at(cell)
        if category == "background":
            assert scene.background == edit.target.background


def test_an_over_edit_of_a_full_scene_is_found() -> None:
    """Adding a fourth thing leaves no free cell and no free shape for the extra change."""
    rng = random.Random(0)
    for _ in range(20):
        source = random_scene(rng, 3, 3)
        edit = random_edit(rng, "add", source)
        assert achieved(edit, over_edit(rng, edit))


def test_a_wrong_texture_may_be_the_third_one() -> None:
    ground = random_scene(random.Random(0)).background
    source = Scene(ground, (Thing("circle", "red", "plain", "large", 0),))
    target = Scene(ground, (Thing("circle", "red", "striped", "large", 0),))
    edit = Edit("texture", "make the red circle striped", source, target, "red circle", 0)
    rng = random.Random(0)
    found = {thing.texture for _ in range(60) for thing in wrong_edit(rng, edit).things if thing.shape == "circle"}
    assert found == {"plain", "dotted"}


def test_a_wrong_new_scene_fails_in_its_background_only_or_its_other_thing_only_too() -> None:
    rng = random.Random(0)
    ways = set()
    for edit in _edits(FREE_FORM, 80):
        found = wrong_edit(rng, edit)
        others = ({thing for thing in scene.things if thing.shape != edit.subject} for scene in (found, edit.target))
        ways.add((found.background == edit.target.background, len(set(map(frozenset, others))) == 1))
    assert ways >= {(True, False), (False, True)}
