"""Paired differences and agreement of judges, on numbers whose answers are known."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopair.evaluation.scoreboard import statistics
from nopair.evaluation.scoreboard.means import Sample
from nopair.evaluation.scoreboard.statistics import agreement, compare


def run(marks: list[float | None], categories: str = "") -> list[Sample]:
    named = categories or "a" * len(marks)
    return [Sample(str(i), named[i], "", None, {"O": mark}) for i, mark in enumerate(marks)]


def test_a_constant_gain_has_no_spread() -> None:
    found = compare(run([1.0, 5.0, 3.0]), run([2.0, 6.0, 4.0]), "O")
    assert found is not None
    assert (found.mean, found.low, found.high, found.better, found.count) == (1.0, 1.0, 1.0, 1.0, 3)


def test_only_edits_that_both_have_take_part_and_categories_weigh_the_same() -> None:
    first = run([0.0, 0.0, 0.0, 4.0, None], "aaabb")
    second = [*run([3.0, 3.0, 3.0, 4.0, 9.0], "aaabb"), Sample("x", "a", "", None, {"O": 9.0})]
    found = compare(first, second, "O")
    assert found is not None
    assert (found.first, found.second, found.count) == (2.0, 3.5, 4)
    assert compare(first, run([None] * 5), "O") is None


def test_a_run_is_as_good_as_itself() -> None:
    one = run([1.0, 5.0, 3.0])
    found = compare(one, one, "O")
    assert found is not None
    assert (found.mean, found.low, found.high, found.better) == (0.0, 0.0, 0.0, 0.5)


def test_the_interval_is_as_wide_as_theory_says() -> None:
    rng = np.random.default_rng(1)
    differences = rng.normal(0.5, 2.0, 400)
    found = compare(run([5.0] * 400), run(list(5.0 + differences)), "O")
    assert found is not None
    width = 2 * 1.96 * differences.std() / 20
    assert found.high - found.low == pytest.approx(width, rel=0.05)
    assert found.low < found.mean < found.high
    assert compare(run([5.0] * 400), run(list(5.0 + differences)), "O") == found, "the same draws every time"


def test_memory_does_not_grow_with_edits_times_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    first, second = run([5.0] * 2000), run(list(rng.normal(5, 2, 2000)))
    tracemalloc.start()
    found = compare(first, second, "O")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6, "10,000 draws of 2,000 edits are 160 MB of indices alone"
    few, more = run([5.0] * 7), run([1.0, 9.0, 6.0, 5.0, 4.0, 8.0, 7.0])
    together = compare(few, more, "O")
    for at_once in (1, 100, 12345):
        monkeypatch.setattr(statistics, "AT_ONCE", at_once)
        assert compare(few, more, "O") == together, "the same draws, however many at a time"
    assert found is not None


def test_judges_that_agree_and_that_do_not() -> None:
    first = {"a": 1.0, "b": 2.0, "c": 3.0, "d": None}
    same = agreement(first, {"a": 11.0, "b": 12.0, "c": 13.0, "d": 4.0})
    assert same is not None
    assert (same.count, same.rank, same.linear) == (3, pytest.approx(1.0), pytest.approx(1.0))
    assert (same.bias, same.distance) == (10.0, 10.0)
    opposite = agreement(first, {"a": 9.0, "b": 2.0, "c": 1.0})
    assert opposite is not None
    assert opposite.rank == pytest.approx(-1.0)
    flat = agreement(first, {"a": 5.0, "b": 5.0, "c": 5.0})
    assert flat is not None
    assert (flat.rank, flat.linear) == (None, None)
    assert agreement(first, {"d": 1.0, "e": 2.0}) is None


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=2, max_size=30))
def test_rank_correlation_is_blind_to_the_scale(pairs: list[tuple[int, int]]) -> None:
    first = {str(i): float(x) for i, (x, _) in enumerate(pairs)}
    second = {str(i): float(y) for i, (_, y) in enumerate(pairs)}
    stretched = {key: value**3 for key, value in second.items()}
    one, two = agreement(first, second), agreement(first, stretched)
    assert one is not None
    assert two is not None
    assert one.rank == (None if two.rank is None else pytest.approx(two.rank))
    assert one.rank is None or -1.000001 <= one.rank <= 1.000001
