import dataclasses
import hashlib
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nopair.errors import DataError
from nopair.types import EditBatch, EditRecord
from nopair.world.cases import held_out_cases
from nopair.world.edits import CATEGORIES, FREE_FORM, random_edit, random_scene, sample_edit
from nopair.world.oracle import achieved, subject_identity
from nopair.world.records import WorldSource, composed, to_record
from nopair.world.render import render
from nopair.world.scenes import (
    CAPTIONS,
    CELLS,
    HELD_OUT_BACKGROUNDS,
    HELD_OUT_OBJECTS,
    caption,
    describe_background,
    describe_thing,
    is_held_out,
)

RESERVED = [f"{a} {b}" for a, b in (*HELD_OUT_OBJECTS, *HELD_OUT_BACKGROUNDS)]


def _values(item: EditRecord | EditBatch) -> dict[str, object]:
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_record_holds_the_reference_and_words_only(category: str) -> None:
    rng = random.Random(0)
    edit = random_edit(rng, category, random_scene(rng))
    values = _values(to_record(edit))
    reference = values.pop("reference")
    assert isinstance(reference, Tensor)
    assert torch.equal(reference, render(edit.source))
    assert values == {
        "instruction": edit.instruction,
        "caption": caption(edit.source),
        "edited_caption": caption(edit.target),
        "category": category,
        "subject": edit.subject,
    }


def test_a_batch_holds_the_references_and_words_only() -> None:
    values = _values(WorldSource(0, held_out=False).batch(range(4)))
    reference = values.pop("reference")
    assert isinstance(reference, Tensor)
    assert reference.shape == (4, 3, 64, 64)
    assert all(isinstance(value, tuple) and {type(word) for word in value} == {str} for value in values.values())


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=5), st.booleans())
def test_a_record_depends_on_its_index_only(indices: list[int], held_out: bool) -> None:
    source = WorldSource(3, held_out=held_out)
    batch = source.batch(indices)
    assert len(batch) == len(indices)
    for row, index in enumerate(indices):
        alone = WorldSource(3, held_out=held_out).batch([index])
        assert torch.equal(batch.reference[row], alone.reference[0])
        for name in ("instructions", "captions", "edited_captions", "categories", "subjects"):
            assert getattr(batch, name)[row] == getattr(alone, name)[0]


def test_records_do_not_depend_on_the_state_of_the_global_generators() -> None:
    words = []
    for seed in (1, 2):
        random.seed(seed)
        torch.manual_seed(seed)
        words.append(WorldSource(0, held_out=False).record(5).instruction)
    assert words[0] == words[1]


def test_seed_split_and_index_all_matter() -> None:
    sources = [WorldSource(seed, held_out=held_out) for seed in (0, 1) for held_out in (False, True)]
    records = [source.record(index) for source in sources for index in range(4)]
    assert len({(record.caption, record.instruction) for record in records}) == len(records)


@given(st.integers(0, 10**6), st.integers(0, 10**9))
def test_records_keep_to_their_split(seed: int, index: int) -> None:
    for held_out in (False, True):
        record = WorldSource(seed, held_out=held_out).record(index)
        words = f"{record.caption} | {record.edited_caption}"
        assert any(name in words for name in RESERVED) == held_out


def test_categories_are_drawn_alike_but_for_nothing() -> None:
    source = WorldSource(0, held_out=False, nothing_share=0.2)
    counts = Counter(source.record(index).category for index in range(900))
    assert counts["nothing"] == pytest.approx(180, abs=40)
    for category in CATEGORIES[:-1]:
        assert counts[category] == pytest.approx(90, abs=35)


def test_categories_can_be_chosen() -> None:
    only = WorldSource(0, held_out=False, categories=("remove", "remove", "add"), nothing_share=0.5)
    counts = Counter(only.record(index).category for index in range(150))
    assert set(counts) == {"remove", "add"}
    assert counts["remove"] > counts["add"]
    nothing = WorldSource(0, held_out=False, categories=("nothing",))
    assert {nothing.record(index).category for index in range(10)} == {"nothing"}
    new = WorldSource(0, held_out=False, categories=(FREE_FORM,), nothing_share=0.0)
    assert {new.record(index).category for index in range(10)} == {FREE_FORM}
    every = WorldSource(0, held_out=False)
    assert FREE_FORM not in {every.record(index).category for index in range(200)}
    never = WorldSource(0, held_out=False, nothing_share=0.0)
    assert "nothing" not in {never.record(index).category for index in range(100)}


def test_doing_nothing_asks_for_the_reference_in_every_word() -> None:
    record = WorldSource(0, held_out=False, categories=("nothing",)).record(0)
    assert record.caption == record.edited_caption
    assert record.subject == ""


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"categories": ("recolor",)}, "recolor.*choose at least one of: recolour"),
        ({"categories": ()}, "choose at least one"),
        ({"nothing_share": 1.5}, "between 0 and 1"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(fields: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        WorldSource(0, held_out=False, **fields)


def test_cases_are_held_out_balanced_and_repeatable() -> None:
    cases = held_out_cases(0, 4)
    assert cases == held_out_cases(0, 4)
    assert cases != held_out_cases(1, 4)
    assert held_out_cases(0, 2) == cases[: 2 * len(CATEGORIES)], "a longer list begins with the shorter one"
    assert Counter(case.category for case in cases) == dict.fromkeys(CATEGORIES, 4)
    assert all(is_held_out(case.source) or is_held_out(case.target) for case in cases)


@given(st.integers(0, 10**6))
def test_the_wished_for_caption_of_a_free_form_edit_has_places_that_the_reference_tells(seed: int) -> None:
    edit = sample_edit(random.Random(seed), FREE_FORM, held_out=False)
    record = to_record(edit)
    (subject,) = edit.source.things
    (other,) = (thing for thing in edit.target.things if thing.shape != subject.shape)
    corner = {"top left": "bottom right", "bottom right": "top left", "top right": "bottom left"}
    place = corner.get(CELLS[subject.cell], "top right")
    *things, ground = record.edited_caption.split(", ")
    told = {f"{describe_thing(subject)} {CELLS[subject.cell]}", f"{describe_thing(other)} {place}"}
    assert set(things) == told
    assert ground == f"on {describe_background(edit.target.background)}"
    assert record.caption == caption(edit.source)


def test_what_the_wished_for_caption_of_a_free_form_edit_says_is_a_right_answer() -> None:
    edits = [sample_edit(random.Random(seed), FREE_FORM, held_out=True) for seed in range(40)]
    assert all(achieved(edit, composed(edit)) for edit in edits)
    assert all(subject_identity(edit, composed(edit)) == 1.0 for edit in edits)


def test_cases_of_chosen_categories_are_those_among_all() -> None:
    assert held_out_cases(0, 3, ("move",)) == tuple(case for case in held_out_cases(0, 3) if case.category == "move")
    assert {case.category for case in held_out_cases(0, 3, (FREE_FORM,))} == {FREE_FORM}


def test_the_cases_and_records_of_before_are_as_they_were() -> None:
    """Figures that were published rest on them."""
    digest = hashlib.sha256()
    for case in held_out_cases(0, 2):
        digest.update(repr(case).encode())
    for record in (WorldSource(0, held_out=False).record(index) for index in range(20)):
        digest.update(repr((record.instruction, record.caption, record.edited_caption, record.subject)).encode())
    assert digest.hexdigest()[:16] == "5ba2b630ca1e193e"


@given(st.integers(0, 10**6))
def test_captions_without_places_say_the_rest_alike(index: int) -> None:
    whole, brief = (WorldSource(0, held_out=False, describe=describe).record(index) for describe in CAPTIONS.values())
    assert torch.equal(whole.reference, brief.reference)
    assert whole.instruction == brief.instruction
    for told, less in ((whole.caption, brief.caption), (whole.edited_caption, brief.edited_caption)):
        assert (told != less) == ("," in told)
        for place in CELLS:
            assert place not in less
            told = told.replace(f" {place}", "")
        assert told == less
