import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopair.world.corruptions import flatten_patterns, gaussian_noise
from nopair.world.edits import random_background, random_scene, random_thing
from nopair.world.parse import canonical, parse
from nopair.world.render import backgrounds, render, render_batch
from nopair.world.scenes import BACKGROUND_COLOURS, CELLS, OBJECT_COLOURS, PATTERNS, PHASES, SHAPES, Background, Scene


def _any_scene(rng: random.Random) -> Scene:
    """Up to four things, shapes free to repeat: more than the world's own scenes, as an editor may draw them."""
    cells = sorted(rng.sample(range(len(CELLS)), rng.randint(0, len(CELLS))))
    return Scene(random_background(rng), tuple(random_thing(rng, cell, rng.choice(SHAPES)) for cell in cells))


def _scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = random.Random(seed)
    return [_any_scene(rng) for _ in range(count)]


def test_a_render_is_parsed_exactly() -> None:
    scenes = _scenes(400)
    assert parse(render_batch(scenes)) == [canonical(scene) for scene in scenes]


@given(st.integers(0, 10**9))
def test_a_render_of_any_scene_is_parsed_exactly(seed: int) -> None:
    scene = _any_scene(random.Random(seed))
    assert parse(render(scene)[None]) == [canonical(scene)]


def test_large_things_on_every_cell_do_not_hide_the_background() -> None:
    scenes = [
        replace(scene, things=tuple(replace(thing, size="large", colour=colour) for thing in scene.things))
        for colour in OBJECT_COLOURS
        for scene in (random_scene(random.Random(seed), 4, 4) for seed in range(24))
    ]
    assert parse(render_batch(scenes)) == [canonical(scene) for scene in scenes]


def test_every_background_is_parsed_as_what_looks_the_same() -> None:
    grounds = [Background(p, c, x, y) for p in PATTERNS for c in BACKGROUND_COLOURS for x in PHASES for y in PHASES]
    images = render_batch([Scene(ground, ()) for ground in grounds])
    for image, found in zip(images, parse(images), strict=True):
        assert torch.equal(render(found), image)


@pytest.mark.parametrize("sigma", [0.03, 0.1])
def test_noise_does_not_change_the_parse(sigma: float) -> None:
    scenes = _scenes(96, seed=1)
    noisy = gaussian_noise(render_batch(scenes), sigma, torch.Generator().manual_seed(0))
    assert parse(noisy) == [canonical(scene) for scene in scenes]


def test_the_parse_of_an_image_does_not_depend_on_its_batch() -> None:
    scenes = _scenes(40, seed=2)
    images = gaussian_noise(render_batch(scenes), 0.2, torch.Generator().manual_seed(0))
    together = parse(images)
    assert [parse(image[None])[0] for image in images[30:]] == together[30:]
    assert parse(images[:0]) == []


def test_the_parse_is_nearer_than_what_the_image_was_made_of() -> None:
    """The search minimises the true error: nothing renderable that we know of may be nearer."""
    scenes = [canonical(scene) for scene in _scenes(48, seed=3)]
    for images in (
        gaussian_noise(render_batch(scenes), 0.3, torch.Generator().manual_seed(0)),
        flatten_patterns(scenes),
    ):
        found = (render_batch(parse(images)) - images).square().sum((1, 2, 3))
        made_of = (render_batch(scenes) - images).square().sum((1, 2, 3))
        assert (found <= made_of + 1e-3).all()


def test_values_out_of_range_are_clamped() -> None:
    images = 10 * (render_batch(_scenes(32, seed=4)) - 0.5) + 0.5
    assert parse(images) == parse(images.clamp(0, 1))


@given(st.integers(0, 10**9))
def test_canonical_scenes_look_the_same_and_only_they_do(seed: int) -> None:
    rng = random.Random(seed)
    scene = _any_scene(rng)
    other = replace(scene, background=replace(scene.background, phase_x=rng.choice(PHASES), phase_y=rng.choice(PHASES)))
    assert torch.equal(render(canonical(scene)), render(scene))
    assert canonical(canonical(scene)) == canonical(scene)
    assert (canonical(scene) == canonical(other)) == torch.equal(render(scene), render(other))


def test_no_two_backgrounds_with_different_names_look_the_same() -> None:
    distinct = {
        bytes((image * 255).round().to(torch.uint8).flatten().tolist()) for image in backgrounds().flatten(0, 3)
    }
    canonicals = {
        canonical(Scene(Background(p, c, x, y), ()))
        for p in PATTERNS
        for c in BACKGROUND_COLOURS
        for x in PHASES
        for y in PHASES
    }
    assert len(distinct) == len(canonicals)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    images = torch.full((2, 3, 64, 64), 0.5)
    images[1, 0, 3, 4] = bad
    with pytest.raises(ValueError, match="not finite"):
        parse(images)


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="64 x 64"):
        parse(torch.zeros(1, 3, 32, 32))
