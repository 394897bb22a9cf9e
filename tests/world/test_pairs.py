"""Pairs are limited in number, hold right answers of the training split only, and are no `EditBatch`."""

import dataclasses
import typing

import pytest
import torch

from nopair.errors import DataError
from nopair.types import EditBatch, EditRecord
from nopair.world.pairs import PairBatch, PairSource
from nopair.world.scenes import is_held_out

CPU = torch.device("cpu")


def test_pairs_repeat_after_their_number() -> None:
    source = PairSource(0, 5, CPU)
    first, again = source.batch(range(5)), source.batch(range(5, 10))
    assert torch.equal(first.target, again.target)
    assert torch.equal(first.reference, again.reference)
    assert first.instructions == again.instructions
    distinct = {(words, image.numpy().tobytes()) for words, image in zip(first.instructions, first.target, strict=True)}
    assert len(distinct) == 5


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    small, large = PairSource(0, 3, CPU).batch([2]), PairSource(0, 300, CPU).batch([2])
    assert torch.equal(small.target, large.target)


def test_a_pair_does_not_depend_on_its_batch() -> None:
    source = PairSource(0, 9, CPU)
    assert torch.equal(source.batch([4, 7, 1]).target[1], source.batch([7]).target[0])


def test_other_seeds_give_other_pairs() -> None:
    assert not torch.equal(PairSource(0, 9, CPU).batch([0]).target, PairSource(1, 9, CPU).batch([0]).target)


def test_no_pair_shows_a_combination_that_is_held_out() -> None:
    source = PairSource(0, 300, CPU)
    edits = [source._edit(index) for index in range(300)]
    assert not any(is_held_out(edit.source) or is_held_out(edit.target) for edit in edits)


def test_the_target_is_the_right_answer() -> None:
    batch = PairSource(0, 50, CPU).batch(range(50))
    changed = (batch.reference - batch.target).flatten(1).abs().amax(dim=1) > 0
    assert int(changed.sum()) > 40
    nothing = PairSource(0, 5, CPU, ("nothing",)).batch(range(5))
    assert torch.equal(nothing.reference, nothing.target)


def test_pairs_have_a_type_of_their_own() -> None:
    """What trains without pairs cannot be handed one: neither its types nor their bases have a place for a target."""
    assert "target" in typing.get_type_hints(PairBatch)
    for kind in (EditRecord, EditBatch):
        assert not issubclass(PairBatch, kind)
        assert "target" not in {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"count": 0}, "one pair"), ({"categories": ("fly",)}, "fly"), ({"nothing_share": 1.5}, "nothing_share")],
)
def test_impossible_sources_are_refused(change: dict[str, typing.Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PairSource(**({"seed": 0, "count": 5, "device": CPU} | change))
