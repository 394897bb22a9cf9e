"""Damaged references: what is lost is lost, the rest is the photo, and the words are true."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopair.tiny.restoration import DAMAGES, damaged, restoration
from nopair.world.edits import PHRASINGS, random_scene
from nopair.world.render import cell_slices, render
from nopair.world.scenes import OBJECT_COLOURS, SHAPES, SIZE, SIZES, TEXTURES

BOX = (slice(8, 40), slice(16, 64))


def photo(seed: int = 0) -> torch.Tensor:
    return render(random_scene(random.Random(seed), least=3))


@pytest.mark.parametrize("kind", sorted(set(DAMAGES)))
def test_only_the_box_is_damaged_and_only_as_much_as_asked(kind: str) -> None:
    image = photo()
    result = damaged(image, kind, 1.0, [BOX])
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[BOX] = False
    assert torch.equal(result[:, outside], image[:, outside])
    assert (result - image)[:, BOX[0], BOX[1]].abs().mean() > 0.02
    torch.testing.assert_close(damaged(image, kind, 0.25, [BOX]), torch.lerp(image, result, 0.25))
    assert torch.equal(damaged(image, kind, 1.0, []), image)


def test_a_hole_shows_nothing_lost_colour_is_grey_and_lost_detail_is_smooth() -> None:
    everywhere = [(slice(0, SIZE), slice(0, SIZE))]
    image = photo()
    assert damaged(image, "hole", 1.0, everywhere).unique().tolist() == [0.5]
    grey = damaged(image, "colour", 1.0, everywhere)
    torch.testing.assert_close(grey[0], grey[2])
    smooth = damaged(image, "detail", 1.0, everywhere)
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


def test_what_is_to_come_out_is_what_went_in() -> None:
    """The reference differs from the photo only by its damage: no second picture of a scene is involved."""
    rng = random.Random(6)
    for _ in range(200):
        task = restoration(rng, lambda prompt: len(prompt) < 140)
        image = render(task.scene)
        changed = (task.reference - image).abs().amax(0) > 0
        for cell in range(4):
            rows, columns = cell_slices(cell)
            lost = task.reference[:, rows, columns][:, changed[rows, columns]]
            kept = image[:, rows, columns][:, changed[rows, columns]]
            # A hole, greyness and blur all move towards what is less colourful or less detailed, never to a new colour.
            if lost.numel():
                assert lost.std(dim=0).mean() <= kept.std(dim=0).mean() + 0.1
