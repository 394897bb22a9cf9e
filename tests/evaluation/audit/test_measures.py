"""The measures against brute force and numbers worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopair.evaluation.audit.measures import (
    BINS,
    auc,
    calibration_error,
    measure,
    probability,
    reliability,
    sensitivity,
)

THREE = math.log(3)
"""Log-odds of a probability of 0.75."""
# Few values, so that ties are common.
scored = st.lists(st.tuples(st.sampled_from([-2.5, -1.0, 0.0, 0.5, 3.0]) | st.floats(-50, 50), st.booleans()))
answered = st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.booleans()), min_size=1)


def split(rows: list[tuple[float, bool]]) -> tuple[list[float], list[bool]]:
    return [score for score, _ in rows], [truth for _, truth in rows]


@given(scored)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[float, bool]]) -> None:
    pairs = [(one > other) + 0.5 * (one == other) for one, yes in rows if yes for other, no in rows if not no]
    found = auc(*split(rows))
    if not pairs:
        assert found is None
    else:
        assert found == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@given(scored)
def test_auc_knows_only_the_order(rows: list[tuple[float, bool]]) -> None:
    scores, truths = split(rows)
    found = auc(scores, truths)
    assert auc([score / 8 for score in scores], truths) == found
    opposite = auc([-score for score in scores], truths)
    assert opposite is None if found is None else opposite == pytest.approx(1 - found)


def test_calibration_by_hand() -> None:
    # Four answers of 0.75, two of them rightly Yes; four of 0.25, one of them rightly Yes.
    log_odds = [THREE] * 4 + [-THREE] * 4
    truths = [True, True, False, False, True, False, False, False]
    bins = reliability(log_odds, truths)
    filled = {round(held.low, 1): held for held in bins if held.count}
    assert set(filled) == {0.2, 0.7}
    assert (filled[0.7].count, filled[0.7].share_yes) == (4, 0.5)
    assert filled[0.7].probability == pytest.approx(0.75)
    assert filled[0.2].share_yes == 0.25
    assert calibration_error(bins) == pytest.approx(0.5 * 0.25)


@given(answered)
def test_bins_hold_every_answer_once_and_the_error_is_a_share(rows: list[tuple[float, bool]]) -> None:
    bins = reliability(*split(rows))
    assert len(bins) == BINS
    assert sum(held.count for held in bins) == len(rows)
    for held in bins:
        assert (held.count == 0) == (held.probability is None) == (held.share_yes is None)
        if held.probability is not None:
            assert held.low - 1e-9 <= held.probability <= held.high + 1e-9
    assert 0 <= calibration_error(bins) <= 1


def test_probability_has_no_overflow() -> None:
    assert [probability(x) for x in (-1e300, 0.0, 1e300)] == [0, 0.5, 1]
    assert probability(THREE) == pytest.approx(0.75)


def test_measures_by_hand() -> None:
    found = measure([2.0, 1.0, -1.0, 0.0], [True, False, False, True])
    assert (found.count, found.accuracy, found.auc) == (4, 0.5, 0.75), "0 is No, and here wrong"
    assert (found.said_yes, found.right_yes, found.yes_bias, found.mean_log_odds) == (0.5, 0.5, 0.0, 0.5)
    always = measure([1.0, 1.0, 1.0, 1.0], [True, False, False, False])
    assert (always.said_yes, always.right_yes, always.yes_bias, always.auc) == (1.0, 0.25, 0.75, 0.5)


def test_what_is_undefined_is_none_and_no_guess() -> None:
    assert measure([3.0, -1.0], [True, True]).auc is None
    assert measure([3.0, -1.0], [False, False]).auc is None


@pytest.mark.parametrize(
    ("log_odds", "truths"), [([], []), ([math.nan], [True]), ([math.inf], [True]), ([1.0], [True, False])]
)
def test_nothing_is_made_of_no_answers(log_odds: list[float], truths: list[bool]) -> None:
    with pytest.raises(ValueError, match="expected finite"):
        measure(log_odds, truths)


def test_sensitivity_by_hand() -> None:
    found = sensitivity([(1.0, 3.0), (1.0, -1.0), (-2.0, -2.0, -2.0, 4.0), (5.0,)])
    assert found is not None
    assert found.count == 3, "one question had no second wording"
    assert found.flips == pytest.approx(2 / 5)
    assert found.any_flip == pytest.approx(2 / 3)
    assert found.spread == pytest.approx((1 + 1 + math.sqrt(27 / 4)) / 3)
    assert sensitivity([(5.0,), (-1.0,)]) is None
