"""Damaged references: lost is lost, the rest is the photo, words are true, and what they do not name stays as it is."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopair.tiny.phrases import command
from nopair.tiny.restoration import DAMAGES, damaged, restoration
from nopair.world.edits import PHRASINGS, random_scene
from nopair.world.render import cell_slices, render, thing_layers
from nopair.world.scenes import OBJECT_COLOURS, SHAPES, SIZE, SIZES, TEXTURES, caption

EVERYWHERE = torch.ones(1, SIZE, SIZE)


def photo(seed: int = 0) -> torch.Tensor:
    return render(random_scene(random.Random(seed), least=3))


def fits(prompt: str) -> bool:
    return len(prompt) < 140


@pytest.mark.parametrize("kind", sorted(set(DAMAGES)))
def test_only_what_is_under_the_mask_is_damaged_and_only_as_much_as_asked(kind: str) -> None:
    image, mask = photo(), torch.zeros(1, SIZE, SIZE)
    mask[:, 8:40, 16:64] = 1
    result = damaged(image, kind, 1.0, mask)
    under = mask[0] == 1
    assert torch.equal(result[:, ~under], image[:, ~under])
    assert (result - image)[:, under].abs().mean() > 0.02
    torch.testing.assert_close(damaged(image, kind, 0.25, mask), torch.lerp(image, result, 0.25))
    assert torch.equal(damaged(image, kind, 1.0, torch.zeros_like(mask)), image)


def test_a_hole_shows_nothing_lost_colour_is_grey_and_lost_detail_is_smooth() -> None:
    image = photo()
    assert damaged(image, "hole", 1.0, EVERYWHERE).unique().tolist() == [0.5]
    grey = damaged(image, "colour", 1.0, EVERYWHERE)
    torch.testing.assert_close(grey[0], grey[2])
    smooth = damaged(image, "detail", 1.0, EVERYWHERE)
    assert smooth.diff(dim=2).abs().max() < 0.5 * image.diff(dim=2).abs().max()


@given(st.integers(0, 10**9), st.integers(10, 200))
def test_prompts_fit_and_what_they_say_last_of_a_thing_is_true(seed: int, longest: int) -> None:
    def fits(prompt: str) -> bool:
        return len(prompt) <= longest

    task = restoration(random.Random(seed), fits)
    scene = task.scene
    assert fits(task.prompt) or task.prompt.endswith(f"{scene.background.colour} {scene.background.pattern}")
    words = task.prompt.replace(",", "").split()
    true = {name for thing in scene.things for name in (thing.size, thing.texture)}
    assert set(words) & {*SIZES, *TEXTURES} <= true
    named = [word for word in words if word in SHAPES]
    if named and not any(task.prompt.startswith(first) for first in ("remove", "erase", "take")):
        assert set(named) & {thing.shape for thing in scene.things}


def test_a_whole_reference_is_never_contradicted() -> None:
    """Asked for anything that is not there, it would be an example of an edit."""
    rng = random.Random(5)
    seen = 0
    for _ in range(600):
        task = restoration(rng, lambda prompt: len(prompt) < 140)
        if not torch.equal(task.reference, render(task.scene)):
            continue
        seen += 1
        if task.prompt in PHRASINGS["nothing"]:
            continue
        words = task.prompt.replace(",", "").split()
        assert set(words) & set(SHAPES) <= {thing.shape for thing in task.scene.things}
        # A grey thing that has "lost its colour" looks whole; the colour it is to have comes last, and is its own.
        colours = [word for word in words if word in OBJECT_COLOURS]
        assert not colours or colours[-1] in {thing.colour for thing in task.scene.things}
    assert 100 < seen < 250


def test_every_pixel_that_comes_out_is_the_photos_or_the_references() -> None:
    """No second picture of a scene is involved: one photo, what is left of it, and something between the two."""
    rng = random.Random(6)
    whole = part = 0
    for _ in range(300):
        task = restoration(rng, fits)
        image = render(task.scene)
        low, high = torch.minimum(image, task.reference), torch.maximum(image, task.reference)
        assert ((task.target >= low - 1e-6) & (task.target <= high + 1e-6)).all()
        whole += torch.equal(task.target, image)
        part += (task.target - image).abs().max() > 0.02
    assert whole > 100
    assert part > 50


def test_commands_restore_the_thing_they_name_and_leave_the_others_as_they_are() -> None:
    rng = random.Random(7)
    seen = 0
    while seen < 40:
        task = restoration(rng, fits)
        words = task.prompt.split()
        colours_lost = (task.reference.amax(0) - task.reference.amin(0)).max() < 0.02
        named = [thing for thing in task.scene.things if thing.shape in words]
        if not colours_lost or "," in task.prompt or len(named) != 1 or "background" in words or "behind" in words:
            continue
        seen += 1
        image = render(task.scene)
        for thing in task.scene.things:
            rows, columns = cell_slices(thing.cell)
            inside = thing_layers(thing)[0] > 0.99
            wanted = image if thing is named[0] else task.reference
            torch.testing.assert_close(task.target[:, rows, columns][:, inside], wanted[:, rows, columns][:, inside])


def test_a_description_asks_for_everything_back() -> None:
    rng = random.Random(8)
    seen = 0
    for _ in range(400):
        task = restoration(rng, fits)
        if task.prompt == caption(task.scene):
            seen += 1
            assert torch.equal(task.target, render(task.scene))
    assert seen > 80


def test_the_thing_that_a_command_takes_for_another_is_not_in_the_photo() -> None:
    """Else it would name a thing that is there and change another one."""
    rng = random.Random(9)
    seen = 0
    for _ in range(600):
        scene = random_scene(rng)
        thing = rng.choice(scene.things)
        absent = [shape for shape in SHAPES if shape not in {other.shape for other in scene.things}]
        words = command(rng, thing, "hole", absent).split()
        seen += thing.shape in words and bool(set(words) & set(absent))
        assert set(words) & set(SHAPES) <= {thing.shape, *absent}
    assert seen > 100
