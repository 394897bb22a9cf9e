"""Randomness is a function of labelled parts, the same on every machine."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from nopair.training.phase import generator, seed_of

parts = st.lists(st.integers() | st.text(st.characters(exclude_categories=["Cs", "Cc"])), max_size=4)


def test_golden() -> None:
    assert seed_of(0, "warmup", 0) == 8074769032786035130
    assert torch.randint(1000, (3,), generator=generator(0, "warmup", 0)).tolist() == [5, 778, 522]


def test_a_number_is_not_its_text() -> None:
    assert seed_of(1) != seed_of("1")


@given(parts, parts)
def test_other_parts_give_another_seed(one: list[int | str], other: list[int | str]) -> None:
    assert 0 <= seed_of(*one) < 2**63
    assert (seed_of(*one) == seed_of(*other)) == (one == other)
