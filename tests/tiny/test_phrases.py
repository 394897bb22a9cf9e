"""Prompts are true, however they are worded."""

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from nopair.tiny.phrases import describe
from nopair.world.edits import random_scene
from nopair.world.scenes import (
    BACKGROUND_COLOURS,
    CELLS,
    OBJECT_COLOURS,
    PATTERNS,
    SHAPES,
    SIZES,
    TEXTURES,
    caption,
)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text)


@given(st.integers(0, 10**9))
def test_a_prompt_names_every_thing_once_or_more_and_nothing_that_is_not_there(seed: int) -> None:
    rng = random.Random(seed)
    scene = random_scene(rng, least=0)
    prompt = describe(rng, scene)
    words = _words(prompt)
    ground = scene.background
    assert {thing.shape for thing in scene.things} == set(words) & set(SHAPES)
    assert set(words) & set(PATTERNS) == {ground.pattern}
    true = {attribute for t in scene.things for attribute in (t.colour, t.size, t.texture)} | {ground.colour}
    attributes = {*OBJECT_COLOURS, *SIZES, *TEXTURES, *BACKGROUND_COLOURS} - set(PATTERNS)
    assert set(words) & attributes <= true
    places = {CELLS[thing.cell] for thing in scene.things}
    assert all(cell in places for cell in CELLS if cell in prompt)


def test_wordings_vary_and_the_canonical_one_is_among_them() -> None:
    scene = random_scene(random.Random(3), least=2, most=2)
    prompts = {describe(random.Random(seed), scene) for seed in range(300)}
    assert caption(scene) in prompts
    assert len(prompts) > 200
