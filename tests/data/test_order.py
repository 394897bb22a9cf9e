"""The order of records: a pure function of the index, each record once per epoch, groups of one size, given shares."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nopair.data.order import Order, nearest
from nopair.data.permutation import Permutation
from nopair.data.ranks import Cell, Part, Ranks
from nopair.errors import DataError


@settings(max_examples=30)
@given(size=st.integers(1, 300), key=st.integers())
def test_a_permutation_is_one_to_one(size: int, key: int) -> None:
    permutation = Permutation.of(size, key)
    assert sorted(map(permutation, range(size))) == list(range(size))
    assert permutation == Permutation.of(size, key)


def test_every_order_of_a_few_comes_about_equally_often() -> None:
    found = Counter(tuple(map(Permutation.of(4, "seed", key), range(4))) for key in range(4800))
    assert len(found) == 24
    assert sum((count - 200) ** 2 / 200 for count in found.values()) < 50  # chi-squared, 23 degrees: 99.9 % below


def test_a_large_permutation_spreads_neighbours() -> None:
    size = 10**6
    permutation = Permutation.of(size, "large")
    gaps = [abs(permutation(k) - permutation(k + 1)) for k in range(2000)]
    assert size * 0.31 < sum(gaps) / len(gaps) < size * 0.36  # a third, for a random one
    assert len({permutation(k) for k in range(20_000)}) == 20_000


@pytest.mark.parametrize(("size", "place"), [(0, 0), (3, 3), (3, -1)])
def test_a_permutation_has_its_range(size: int, place: int) -> None:
    with pytest.raises(ValueError, match=r"expected|not in"):
        Permutation.of(size)(place)


buckets = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def order(of: list[int], group: int = 4, seed: int = 0, **changes: object) -> Order:
    settings = {"categories": np.zeros(len(of), np.uint8), "shares": None} | changes
    cuts = [0, len(of) // 3, len(of) // 3, len(of)]  # in parts of any size, also none
    parts = [Part(np.array(of, np.uint8)[a:b], settings["categories"][a:b]) for a, b in pairwise(cuts)]  # pyright: ignore
    return Order.of(Ranks.of(parts), settings["shares"], group, seed)  # pyright: ignore


@settings(max_examples=40)
@given(of=buckets, group=st.integers(1, 20), seed=st.integers(0, 3))
def test_each_record_comes_once_per_epoch_in_groups_of_one_bucket(of: list[int], group: int, seed: int) -> None:
    made = order(of, group, seed)
    epochs = 5
    rows = [made.row(index) for index in range(epochs * len(of))]
    assert made.length == len(of)
    for epoch in range(epochs):
        assert sorted(rows[epoch * len(of) : (epoch + 1) * len(of)]) == list(range(len(of)))
    elsewhere = 0
    for first in range(0, len(rows) - group + 1, group):
        (bucket,) = {made.bucket(index) for index in range(first, first + group)}
        elsewhere += sum(of[row] != bucket for row in rows[first : first + group])
    # Only what is left over of a bucket, in an epoch, may be shown in another; and a whole group of them at most.
    assert elsewhere <= epochs * (len(set(of)) * (group - 1) + group)
    if len(set(of)) == 1:
        assert elsewhere == 0


def test_most_records_get_their_own_bucket() -> None:
    of = [0] * 500 + [1] * 303 + [2] * 203
    made = order(of, group=8)
    wrong = sum(of[made.row(index)] != made.bucket(index) for index in range(4 * len(of)))
    assert wrong < 4 * 16


@settings(max_examples=30)
@given(of=st.lists(st.tuples(st.integers(0, 254), st.integers(0, 254)), max_size=60), cuts=st.lists(st.integers(0, 60)))
def test_ranks_are_a_stable_sort(of: list[tuple[int, int]], cuts: list[int]) -> None:
    numbers = np.array(of, np.uint8).reshape(-1, 2)
    edges = [0, *sorted(min(cut, len(of)) for cut in cuts), len(of)]
    ranks = Ranks.of([Part(numbers[a:b, 0], numbers[a:b, 1]) for a, b in pairwise(edges)])
    wanted = sorted(range(len(of)), key=lambda row: (of[row], row))
    assert [ranks[place] for place in range(len(of))] == wanted
    starts = [place for place in range(len(of)) if not place or of[wanted[place]] != of[wanted[place - 1]]]
    assert ranks.cells == tuple(Cell(*of[wanted[at]], at, of.count(of[wanted[at]])) for at in starts)


def test_ranks_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are sorted at a time."""
    monkeypatch.setattr("nopair.data.ranks._AT_ONCE", 7)
    numbers = np.random.default_rng(0).integers(0, 3, (100, 2)).astype(np.uint8)
    ranks = Ranks.of([Part(numbers[:, 0], numbers[:, 1])])
    keys = [(*numbers[ranks[place]].tolist(), ranks[place]) for place in range(100)]
    assert keys == sorted(keys)


def test_epochs_and_seeds_differ() -> None:
    made = order([0] * 50, group=5)
    passes = [[made.row(index) for index in range(start, start + 50)] for start in (0, 50, 100)]
    passes.append([order([0] * 50, group=5, seed=1).row(index) for index in range(50)])
    assert len(set(map(tuple, passes))) == 4
    assert passes[0] == [made.row(index) for index in reversed(range(50))][::-1]


@settings(max_examples=30)
@given(
    cells=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=20, max_size=80),
    heavy=st.integers(0, 3),
)
def test_shares_are_kept_and_a_category_passes_through_its_records_evenly(
    cells: list[tuple[int, int]], heavy: int
) -> None:
    of, kinds = [bucket for bucket, _ in cells], [kind for _, kind in cells]
    there = set(kinds)
    shares = {kind: 3.0 if kind == heavy else 1.0 for kind in there if kind != 3 or there == {3}}
    made = order(of, 4, categories=np.array(kinds, np.uint8), shares=shares)
    epochs = 12
    seen = Counter(made.row(index) for index in range(epochs * made.length))
    assert {kinds[row] for row in seen} == set(shares)
    strata = {(of[row], kinds[row]) for row in seen}
    for stratum in strata:  # each record of it as often as any other
        times = [seen[row] for row, cell in enumerate(cells) if cell == stratum]
        assert max(times) - min(times) <= 1
        assert min(times) >= 1 or len(times) > epochs
    for kind, share in shares.items():
        shown = sum(count for row, count in seen.items() if kinds[row] == kind) / sum(seen.values())
        cells_of_it = len({cell for cell in strata if cell[1] == kind})
        assert abs(shown - share / sum(shares.values())) <= (len(strata) + cells_of_it) / made.length


def test_categories_are_mixed_within_an_epoch() -> None:
    kinds = np.array([0] * 90 + [1] * 10, np.uint8)
    made = order([0] * 100, 4, categories=kinds, shares={0: 1.0, 1: 1.0})
    shown = [int(kinds[made.row(index)]) for index in range(100)]
    assert sum(shown) == 50
    assert all(10 < 2 * sum(shown[start : start + 20]) < 30 for start in range(0, 100, 20))


def test_stand_ins_are_the_other_records_of_the_bucket() -> None:
    made = order([0, 0, 0, 1, 1], 2)
    for index in range(10):
        candidates = list(made.candidates(index))
        assert len(set(candidates)) == len(candidates)
        assert set(candidates) in ({0, 1, 2}, {3, 4})


def test_a_category_without_records_and_nothing_at_all() -> None:
    with pytest.raises(DataError, match="no record"):
        order([0, 0], categories=np.array([1, 1], np.uint8), shares={0: 1.0})


def test_the_nearest_bucket_cuts_least() -> None:
    sizes = ((512, 512), (576, 448), (448, 576), (384, 640))
    heights, widths = np.array([100, 90, 200, 300, 3000]), np.array([100, 100, 100, 1000, 2500])
    assert nearest(heights, widths, sizes).tolist() == [0, 0, 1, 3, 1]

    def kept(height: int, width: int, size: tuple[int, int]) -> float:
        ratio = (height / width) / (size[0] / size[1])
        return min(ratio, 1 / ratio)

    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 2000, 300), rng.integers(1, 2000, 300)
    for height, width, bucket in zip(heights, widths, nearest(heights, widths, sizes), strict=True):
        assert kept(height, width, sizes[bucket]) == pytest.approx(max(kept(height, width, size) for size in sizes))
