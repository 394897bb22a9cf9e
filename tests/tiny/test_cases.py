"""Labels of the judge's pretraining cases: right by the oracle's rules, whatever the attempt."""

import random

import pytest
import torch

from nopair.judges.questions import questions_for
from nopair.tiny.cases import Case, draw_edit, draw_kind, is_presence, make_case, view
from nopair.world.attempts import KINDS, MELTING, is_kept
from nopair.world.edits import ALL_CATEGORIES, CATEGORIES, FREE_FORM, Edit, any_edit, sample_edit
from nopair.world.oracle import achieved, score
from nopair.world.parse import parse


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def own_cases(kind: str, edit: Edit) -> list[Case]:
    """Cases of the edit's own questions, without those about other things that may be seen."""
    asked = questions_for(edit.category, edit.instruction, edit.subject)
    return [case for case in make_case(random.Random(0), source(), kind, edit) if case.question in asked]


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_the_right_result_is_done_and_kept_and_has_no_evidence_against_it(category: str) -> None:
    rng = random.Random(1)
    for _ in range(20):
        edit = sample_edit(rng, category, held_out=False)
        assert achieved(edit, edit.target)
        assert is_kept(edit, edit.target)
        for case in own_cases("right", edit):
            assert case.answer_yes == case.question.wants_yes
            assert not case.evidence.any()


@pytest.mark.parametrize("category", [name for name in ALL_CATEGORIES if name != "nothing"])
def test_the_unchanged_image_is_kept_but_not_done_and_the_evidence_shows_where(category: str) -> None:
    rng = random.Random(2)
    for _ in range(20):
        edit = sample_edit(rng, category, held_out=False)
        assert not achieved(edit, edit.source)
        assert is_kept(edit, edit.source)
        cases = {case.question.kind: case for case in own_cases("unchanged", edit)}
        assert cases["edit"].answer_yes != cases["edit"].question.wants_yes
        assert cases["edit"].evidence.any()
        assert cases["identity"].answer_yes


def test_over_done_attempts_are_never_kept() -> None:
    rng = random.Random(3)
    answers = []
    for _ in range(200):
        edit = any_edit(rng)
        answers += [
            case.answer_yes for case in make_case(rng, source(), "over", edit) if case.question.kind == "identity"
        ]
    # Disturbing the edited thing in an attribute the edit leaves open changes nothing that should have been kept.
    assert sum(answers) / len(answers) < 0.15


@pytest.mark.parametrize("kind", list(KINDS))
def test_done_agrees_with_the_oracle_reading_the_picture(kind: str) -> None:
    rng = random.Random(4)
    edits = [draw_edit(rng, kind) for _ in range(32)]
    pairs = [
        (edit, case)
        for edit in edits
        for case in make_case(rng, source(), kind, edit)
        if case.question.kind == "edit" and case.question.wants_yes
    ]
    if kind in ("half", "smeared", "corrupted", "misshapen"):  # no scene explains these
        may_be_done = {"smeared": CATEGORIES, "misshapen": set(CATEGORIES) - set(MELTING)}.get(kind, ())
        assert not any(case.answer_yes for edit, case in pairs if edit.category not in may_be_done)
        return
    scenes = parse(torch.stack([case.attempt for _, case in pairs]))
    for (edit, case), scene in zip(pairs, scenes, strict=True):
        assert case.answer_yes == achieved(edit, scene), (edit.instruction, scene)


def test_the_oracle_does_not_take_a_misshapen_thing_for_the_right_one() -> None:
    rng = random.Random(6)
    edits = [sample_edit(rng, rng.choice(MELTING), held_out=False) for _ in range(60)]
    groups = [make_case(rng, source(), "misshapen", edit) for edit in edits]
    done = [score(edit, group[0].attempt).success for edit, group in zip(edits, groups, strict=True) if group]
    assert sum(done) / len(done) < 0.15, "a mild warp may pass"


def test_every_case_asks_a_shipped_question_about_its_own_edit() -> None:
    rng = random.Random(5)
    for _ in range(100):
        kind = draw_kind(rng)
        edit = draw_edit(rng, kind)
        asked = questions_for(edit.category, edit.instruction, edit.subject)
        for case in make_case(rng, source(), kind, edit):
            assert case.question in asked or is_presence(case.question)
            assert case.attempt.min() >= 0
            assert case.attempt.max() <= 1


def test_views_pass_about_two_of_three_attempts_through_the_autoencoder() -> None:
    attempts = torch.full((300, 3, 8, 8), 0.5)
    seen = view(random.Random(0), source(), attempts, lambda pixels: torch.zeros_like(pixels))
    painted = (seen.mean(dim=(1, 2, 3)) < 0.25).float().mean()
    assert 0.55 < painted < 0.8


def test_edits_of_all_categories_are_drawn_and_nudges_dwell_where_judges_were_blind() -> None:
    rng = random.Random(7)
    for kind in ("right", "nudged"):
        drawn = [draw_edit(rng, kind).category for _ in range(400)]
        assert set(drawn) == set(ALL_CATEGORIES)
        assert 0.18 < drawn.count(FREE_FORM) / 400 < 0.32
        local = len(drawn) - drawn.count(FREE_FORM)
        blind = sum(drawn.count(name) for name in ("background", "move", "recolour")) / local
        assert (blind > 0.5) == (kind == "nudged")


def test_a_subject_that_is_not_the_same_is_shown_where_it_stands() -> None:
    rng = random.Random(8)
    for _ in range(20):
        edit = sample_edit(rng, FREE_FORM, held_out=False)
        cases = {case.question.kind: case for case in own_cases("nudged", edit)}
        assert cases["edit"].answer_yes
        assert not cases["edit"].evidence.any()
        assert not cases["identity"].answer_yes
        (cell,) = (thing.cell for thing in edit.target.things if thing.shape == edit.subject)
        shown = cases["identity"].evidence.nonzero() // 4
        assert {(2 * row + column) for row, column in shown.tolist()} == {cell}
