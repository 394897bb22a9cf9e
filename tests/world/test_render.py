import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from nopair.world.edits import random_scene
from nopair.world.render import backgrounds, cell_slices, masks, render, render_batch, shades, thing_layers
from nopair.world.scenes import SIZE, Scene


@given(st.integers(0, 10**9))
def test_rendering_is_pure(seed: int) -> None:
    scene, other = (random_scene(random.Random(seed + i), 0, 4) for i in range(2))
    image = render(scene)
    alone = image.clone()
    image.zero_()
    assert torch.equal(render(scene), alone), "writing on an image must not reach the tables"
    assert torch.equal(render_batch([other, scene])[1], alone)


def test_rendering_does_not_depend_on_what_is_cached() -> None:
    scenes = [random_scene(random.Random(seed)) for seed in range(8)]
    before = render_batch(scenes)
    for table in (masks, shades, backgrounds):
        table.cache_clear()
    assert torch.equal(render_batch(scenes), before)


def test_images_are_rgb_in_range_and_only_things_differ_from_the_background() -> None:
    for seed in range(32):
        scene = random_scene(random.Random(seed))
        image, ground = render(scene), render(Scene(scene.background, ()))
        assert image.shape == (3, SIZE, SIZE)
        assert 0.0 <= float(image.min()) <= float(image.max()) <= 1.0
        covered = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        for thing in scene.things:
            rows, columns = cell_slices(thing.cell)
            covered[rows, columns] |= thing_layers(thing)[0] > 0
        assert torch.equal(image[:, ~covered], ground[:, ~covered])


def test_every_thing_stays_clear_of_its_cells_border() -> None:
    border = torch.ones(masks().shape[-2:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert float(masks()[..., border].max()) == 0.0
