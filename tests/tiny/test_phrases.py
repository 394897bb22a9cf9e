"""Prompts are true, however they are worded."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopair.tiny.phrases import command, describe, described_edit
from nopair.world.edits import any_edit, random_scene, random_thing
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


@given(st.integers(0, 10**9))
def test_a_scene_told_as_an_edit_is_what_the_edit_leads_to(seed: int) -> None:
    prompt, scene = described_edit(random.Random(seed))
    edit = any_edit(random.Random(seed))
    assert scene == edit.target
    assert prompt.endswith(f", {edit.instruction}")


@pytest.mark.parametrize("lost", ["hole", "colour", "detail"])
def test_a_command_ends_with_what_is_to_be_seen(lost: str) -> None:
    rng = random.Random(7)
    for _ in range(100):
        thing = random_thing(rng, rng.randrange(4), rng.choice(SHAPES))
        words = _words(command(rng, thing, lost, [shape for shape in SHAPES if shape != thing.shape]))
        assert [word for word in words if word in SHAPES][-1] == thing.shape
        assert {thing.colour, thing.texture, thing.size} & set(words)
        if lost != "detail":
            assert [word for word in words if word in OBJECT_COLOURS][-1] == thing.colour
