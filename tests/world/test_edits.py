import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopair.world.edits import (
    ALL_CATEGORIES,
    CATEGORIES,
    FREE_FORM,
    PHRASINGS,
    any_edit,
    random_edit,
    random_scene,
    sample_edit,
)
from nopair.world.scenes import (
    BACKGROUND_COLOURS,
    CELLS,
    HELD_OUT_BACKGROUNDS,
    HELD_OUT_OBJECTS,
    OBJECT_COLOURS,
    PATTERNS,
    SHAPES,
    SIZES,
    TEXTURES,
    Background,
    Scene,
    Thing,
    caption,
    describe_background,
    describe_thing,
    is_held_out,
)

SEEDS = st.integers(0, 10**9)
CATEGORY = st.sampled_from(CATEGORIES)
ANY_CATEGORY = st.sampled_from(ALL_CATEGORIES)


def _reserved(words: str) -> bool:
    """Reads a caption or an instruction, and knows nothing of scenes."""
    names = [f"{a} {b}" for a, b in (*HELD_OUT_OBJECTS, *HELD_OUT_BACKGROUNDS)]
    return any(name in words for name in names)


@given(SEEDS, ANY_CATEGORY)
def test_training_edits_hold_nothing_reserved(seed: int, category: str) -> None:
    edit = sample_edit(random.Random(seed), category, held_out=False)
    assert not _reserved(caption(edit.source))
    assert not _reserved(caption(edit.target))
    assert not _reserved(edit.instruction)


@given(SEEDS, ANY_CATEGORY)
def test_held_out_edits_hold_something_reserved(seed: int, category: str) -> None:
    edit = sample_edit(random.Random(seed), category, held_out=True)
    assert _reserved(caption(edit.source)) or _reserved(caption(edit.target))


@given(SEEDS)
def test_the_splits_divide_all_scenes_by_their_words(seed: int) -> None:
    scene = random_scene(random.Random(seed))
    assert is_held_out(scene) == _reserved(caption(scene))


def test_something_of_every_kind_is_left_for_training() -> None:
    assert {shape for _, shape in HELD_OUT_OBJECTS} == set(SHAPES)
    for shape in SHAPES:
        assert any((colour, shape) not in HELD_OUT_OBJECTS for colour in OBJECT_COLOURS)
    for colour in OBJECT_COLOURS:
        assert any((colour, shape) not in HELD_OUT_OBJECTS for shape in SHAPES)
    for pattern in PATTERNS:
        assert any((colour, pattern) not in HELD_OUT_BACKGROUNDS for colour in BACKGROUND_COLOURS)
    for colour in BACKGROUND_COLOURS:
        assert any((colour, pattern) not in HELD_OUT_BACKGROUNDS for pattern in PATTERNS)


def _without_nuisances(scene: Scene) -> Scene:
    ground = replace(scene.background, phase_x=0, phase_y=0)
    return Scene(ground, tuple(replace(thing, dx=0, dy=0) for thing in scene.things))


@given(SEEDS, SEEDS, CATEGORY)
def test_a_caption_says_all_but_the_nuisances(one: int, two: int, category: str) -> None:
    """Equal captions mean equal scenes, nuisances aside; checked where it is close (an edit) and where it is not."""
    rng = random.Random(one)
    scene = random_scene(rng)
    for other in (random_scene(random.Random(two)), random_edit(rng, category, scene).target):
        assert (caption(scene) == caption(other)) == (_without_nuisances(scene) == _without_nuisances(other))


def test_descriptions_are_unique() -> None:
    things = {
        describe_thing(Thing(shape, colour, texture, size, 0))
        for shape, colour, texture, size in itertools.product(
            SHAPES, OBJECT_COLOURS, ("plain", "striped", "dotted"), ("small", "large")
        )
    }
    assert len(things) == len(SHAPES) * len(OBJECT_COLOURS) * 3 * 2
    grounds = {describe_background(Background(p, c)) for p in PATTERNS for c in BACKGROUND_COLOURS}
    assert len(grounds) == len(PATTERNS) * len(BACKGROUND_COLOURS)


@given(SEEDS, CATEGORY)
def test_an_instruction_names_what_it_is_about(seed: int, category: str) -> None:
    rng = random.Random(seed)
    edit = random_edit(rng, category, random_scene(rng))
    nouns = {thing.noun for thing in edit.source.things}
    mentioned = {f"{c} {s}" for c in OBJECT_COLOURS for s in SHAPES if f"{c} {s}" in edit.instruction}
    if category in ("background", "nothing"):
        assert (edit.subject, edit.cell, mentioned) == ("", None, set())
        return
    assert edit.cell is not None
    assert edit.subject in mentioned
    assert (edit.subject in nouns) == (category != "add")
    after = edit.target.at(edit.cell)
    if category == "remove":
        assert after is None
        return
    assert after is not None
    wanted = {
        "recolour": after.colour,
        "add": f"{describe_thing(after)} at the {CELLS[edit.cell]}",
        "replace": after.noun,
        "resize": after.size,
        "move": CELLS[edit.cell],
        "texture": after.texture,
    }[category]
    assert wanted in edit.instruction.replace(" in the ", " at the ")


@given(SEEDS)
def test_a_background_edit_names_the_new_background(seed: int) -> None:
    rng = random.Random(seed)
    edit = random_edit(rng, "background", random_scene(rng))
    assert describe_background(edit.target.background) in edit.instruction
    assert edit.target.things == edit.source.things


@given(SEEDS, CATEGORY)
def test_an_edit_changes_what_it_says_and_nothing_else(seed: int, category: str) -> None:
    rng = random.Random(seed)
    edit = random_edit(rng, category, random_scene(rng))
    assert (caption(edit.source) == caption(edit.target)) == (category == "nothing")
    changed = [cell for cell in range(len(CELLS)) if edit.source.at(cell) != edit.target.at(cell)]
    assert len(changed) == {"background": 0, "nothing": 0, "move": 2}.get(category, 1)
    assert (edit.source.background == edit.target.background) == (category != "background")


@given(SEEDS, ANY_CATEGORY)
def test_every_noun_is_unique_in_source_and_target(seed: int, category: str) -> None:
    rng = random.Random(seed)
    edit = random_edit(rng, category, random_scene(rng))
    for scene in (edit.source, edit.target):
        assert len({thing.shape for thing in scene.things}) == len(scene.things)


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_every_phrasing_is_used_and_filled_in(category: str) -> None:
    rng = random.Random(0)
    instructions = [random_edit(rng, category, random_scene(rng)).instruction for _ in range(100)]
    assert not [words for words in instructions if "{" in words]
    assert len(PHRASINGS[category]) >= 2
    for phrasing in PHRASINGS[category]:
        start = phrasing.split("{", maxsplit=1)[0]
        end = phrasing.rsplit("}", maxsplit=1)[-1]
        assert any(words.startswith(start) and words.endswith(end) for words in instructions), phrasing


@given(SEEDS, st.booleans())
def test_a_free_form_edit_puts_the_one_thing_of_its_source_into_a_new_scene(seed: int, held_out: bool) -> None:
    edit = sample_edit(random.Random(seed), FREE_FORM, held_out=held_out)
    (before,) = edit.source.things
    after = [thing for thing in edit.target.things if thing.shape == before.shape]
    assert [(t.colour, t.texture, t.size) for t in after] == [(before.colour, before.texture, before.size)]
    (other,) = (thing for thing in edit.target.things if thing.shape != before.shape)
    assert describe_thing(other) in edit.instruction
    assert describe_background(edit.target.background) in edit.instruction
    assert describe_background(edit.target.background) != describe_background(edit.source.background)
    assert (edit.subject, edit.cell) == (before.shape, None)


@given(SEEDS)
def test_only_the_reference_tells_what_a_free_form_subject_looks_like(seed: int) -> None:
    edit = sample_edit(random.Random(seed), FREE_FORM, held_out=False)
    (other,) = (thing for thing in edit.target.things if thing.shape != edit.subject)
    told = edit.instruction.replace(describe_thing(other), "").replace(describe_background(edit.target.background), "")
    assert edit.subject in told
    assert not [word for word in (*OBJECT_COLOURS, *TEXTURES, *SIZES, *CELLS) if word in told]


def test_free_form_is_for_those_who_name_it() -> None:
    assert FREE_FORM not in CATEGORIES
    assert (*CATEGORIES, FREE_FORM) == ALL_CATEGORIES
    assert FREE_FORM not in {any_edit(random.Random(seed)).category for seed in range(300)}
