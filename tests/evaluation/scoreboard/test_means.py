"""Our VIEScore against numbers worked out by hand, on replies as bad as they come; and the table's own laws."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nopair.evaluation.scoreboard.means import Mean, Sample, board, common
from nopair.evaluation.scorers.reply import Unreadable, read_scores
from nopair.evaluation.scorers.rubric import ours
from nopair.evaluation.scorers.rules import RULES

RULE, RUBRIC = RULES["viescore"], ours("viescore")

# (category, language, reply to SC, reply to PQ); None: nothing came back. What counts, by hand, stands beside.
REPLIES = [
    ("color_alter", "en", '{"score": [9, 4], "reasoning": "the sky, too"}', '{"score": [9, 9]}'),  # SC 4, PQ 9, O 6
    ("color_alter", "en", 'Sure:\n```json\n{"score": [0, 10]}\n```', '{"score": [8, 7]} Bye!'),  # SC 0, PQ 7, O 0
    ("color_alter", "en", None, '{"score": [5, 6]}'),  # SC -, PQ 5, O -
    ("color_alter", "en", '{"score": [11, 9]}', '{"score": [5, 6'),  # 11 is out of range, cut short: - - -
    ("color_alter", "en", "I cannot rate this image.", '{"score": ["7", "8"]}'),  # refused, words for numbers: - - -
    ("style_change", "en", '{"score": [10, 10]}', '{"score": [10, 10]}'),  # 10, 10, 10
    ("text_change", "en", '{"score": [3]}', None),  # - - -: a category with no mark at all
    ("color_alter", "cn", '{"score": [8, 2], "reasoning": "颜色变了"}', '{"score": [2, 2]}'),  # 2, 2, 2
    ("style_change", "cn", '{"score": [1, 1]} {"score": [9, 9]}', '{"score": [6, 6]}'),  # two answers: -, 6, -
    ("style_change", "cn", '{"score": [7, 9]}', '{"score": [7, 8]}'),  # 7, 7, 7
]


def numbers(question: int, reply: str | None) -> tuple[float, ...] | None:
    read = None if reply is None else read_scores(reply, RUBRIC.questions[question], RUBRIC.low, RUBRIC.high)
    return None if isinstance(read, Unreadable) else read


SAMPLES = [
    Sample(str(index), category, language, None, RULE.marks({"SC": numbers(0, sc), "PQ": numbers(1, pq)}))
    for index, (category, language, sc, pq) in enumerate(REPLIES)
]


def test_viescore_is_what_a_hand_computes() -> None:
    english = board([s for s in SAMPLES if s.language == "en"], RULE.measures)
    assert english.categories["color_alter"] == {"SC": Mean(2.0, 2, 3), "PQ": Mean(7.0, 3, 2), "O": Mean(3.0, 2, 3)}
    assert english.categories["style_change"] == {"SC": Mean(10.0, 1, 0), "PQ": Mean(10.0, 1, 0), "O": Mean(10.0, 1, 0)}
    assert english.categories["text_change"] == dict.fromkeys(RULE.measures, Mean(None, 0, 1))
    # Means of the two categories that have any mark: (2 + 10) / 2, (7 + 10) / 2, (3 + 10) / 2.
    assert english.total == {"SC": Mean(6.0, 3, 4), "PQ": Mean(8.5, 4, 3), "O": Mean(6.5, 3, 4)}
    assert english.empty == dict.fromkeys(RULE.measures, ("text_change",))
    chinese = board([s for s in SAMPLES if s.language == "cn"], RULE.measures)
    assert chinese.total == {"SC": Mean(4.5, 2, 1), "PQ": Mean(4.25, 3, 0), "O": Mean(4.5, 2, 1)}


def test_overall_is_a_mean_of_roots_and_no_root_of_means() -> None:
    english = board([s for s in SAMPLES if s.language == "en"], RULE.measures)
    assert english.total["O"].value != pytest.approx(math.sqrt(6.0 * 8.5), abs=0.1)


def test_edits_that_every_run_has_marks_for() -> None:
    second = [Sample(s.place, s.category, s.language, None, {"SC": 1.0, "PQ": 1.0, "O": 1.0}) for s in SAMPLES[1:]]
    assert common([SAMPLES], RULE.measures) == {"0", "1", "5", "7", "9"}
    assert common([SAMPLES, second], RULE.measures) == {"1", "5", "7", "9"}
    assert common([], RULE.measures) == frozenset()


marks = st.one_of(st.none(), st.floats(0, 10))


@given(st.lists(st.tuples(st.sampled_from("abc"), marks)))
def test_a_table_counts_every_edit_and_stays_in_range(rows: list[tuple[str, float | None]]) -> None:
    samples = [Sample(str(i), category, "", None, {"O": mark}) for i, (category, mark) in enumerate(rows)]
    made = board(samples, ["O"])
    total = made.total["O"]
    assert total.count + total.missing == len(rows)
    assert total.count == sum(mark is not None for _, mark in rows)
    assert (total.value is None) == (total.count == 0)
    assert total.value is None or -1e-9 <= total.value <= 10 + 1e-9
    assert board(samples[::-1], ["O"]) == made


def test_imgedit_is_the_mean_of_its_numbers() -> None:
    rule = RULES["imgedit"]
    assert rule.marks({"edit": (1.0, 4.0, 5.0)}) == {"score": pytest.approx(10 / 3)}
    assert rule.marks({"edit": None}) == {"score": None}
