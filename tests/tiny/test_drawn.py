"""Attempts that a base draws: what is asked about them, and whose answers they have."""

import random
from functools import cache

import torch

from nopair.backbones.zimage import ZImageBackbone
from nopair.judges.questions import questions_for
from nopair.tiny.cards import _drawn_table
from nopair.tiny.cases import Case, is_presence
from nopair.tiny.drawn import DRAWN, drawn_cases
from nopair.tiny.quality import JudgeQuality
from nopair.weights import packaged
from nopair.world.cases import held_out_cases
from nopair.world.edits import CATEGORIES, FREE_FORM, Edit
from nopair.world.oracle import score_batch

EDITS = held_out_cases(3, 6, [*(name for name in CATEGORIES if name != "nothing"), FREE_FORM])


@cache
def base() -> ZImageBackbone:
    return ZImageBackbone.load(packaged() / "base")


@cache
def groups() -> list[tuple[Case, ...]]:
    return drawn_cases(random.Random("drawn"), base(), EDITS)


def edit_of(group: tuple[Case, ...]) -> Edit:
    [edit] = [edit for edit in EDITS if edit.source == group[0].scene and edit.category == group[0].category]
    return edit


def test_the_answers_are_the_oracles() -> None:
    attempts = torch.stack([group[0].attempt for group in groups()])
    scores = score_batch([edit_of(group) for group in groups()], attempts)
    asked = set()
    for group, score in zip(groups(), scores, strict=True):
        for case in group:
            good = case.answer_yes == case.question.wants_yes
            assert case.kind == DRAWN
            if case.question.kind == "edit":
                assert good == (score.success == 1.0)
            else:
                assert score.preservation >= 0.9 if good else score.preservation <= 0.6
            asked.add((case.question.kind, good, is_presence(case.question)))
    assert asked >= {(kind, good, False) for kind in ("edit", "identity") for good in (True, False)}
    assert any(alone for _, _, alone in asked), "removals are asked about, too"


def test_only_what_preservation_leaves_open_is_not_asked() -> None:
    for group in groups():
        edit = edit_of(group)
        all_of_them = questions_for(edit.category, edit.instruction, edit.subject)
        left_out = [question.kind for question in all_of_them if question not in [case.question for case in group]]
        assert left_out in ([], ["identity"])


def test_what_is_wrong_can_be_seen_in_the_attempt() -> None:
    cases = [case for group in groups() for case in group]
    failed = [case for case in cases if case.question.kind == "edit" and case.answer_yes != case.question.wants_yes]
    assert failed
    assert sum(bool(case.evidence.any()) for case in failed) > 0.9 * len(failed)
    done = [case for case in cases if is_presence(case.question) and not case.answer_yes]
    assert not any(case.evidence.any() for case in done)


def test_they_are_drawn_alike_from_the_same_numbers_and_no_two_alike() -> None:
    again, other = (drawn_cases(random.Random(seed), base(), EDITS[:4]) for seed in ("drawn a", "drawn b"))
    same = drawn_cases(random.Random("drawn a"), base(), EDITS[:4])
    assert [[case.attempt.sum() for case in group] for group in again] == [[c.attempt.sum() for c in g] for g in same]
    assert not torch.equal(again[0][0].attempt, other[0][0].attempt)
    assert drawn_cases(random.Random(0), base(), []) == []


def test_a_card_says_where_a_base_drew_nothing_of_a_kind() -> None:
    table = _drawn_table(JudgeQuality(0.5, {("add", "edit", "bad"): (0.5, 4), ("move", "edit", "bad"): (1.0, 4)}))
    assert table.splitlines()[-2:] == ["| edit | - | 0.750 (!) of 8 |", "| identity | - | - |"]
