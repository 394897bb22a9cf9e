"""The questions as data: complete, well-formed, and readable by a judge."""

import re

import pytest

from nopair.judges.questions import questions_for
from nopair.world.edits import ALL_CATEGORIES

ALL = [*ALL_CATEGORIES, "a category of the user's own"]
INSTRUCTION, SUBJECT = "paint the red circle blue", "red circle"


@pytest.mark.parametrize("category", ALL)
def test_questions_are_well_formed(category: str) -> None:
    questions = questions_for(category, INSTRUCTION, SUBJECT)
    assert questions
    assert len({question.kind for question in questions}) == len(questions), "one question of each kind"
    for question in questions:
        assert question.kind in ("edit", "identity")
        assert question.prompt.endswith(" Answer Yes or No.")
        places = re.findall(r"\{.*?\}", question.prompt)
        assert places in (["{reference}", "{edited}"], ["{edited}"]), "every place is an image, the reference first"
        assert "?" in question.prompt[: question.prompt.index("{")], "a causal model must know the question first"


@pytest.mark.parametrize("category", [name for name in ALL if name not in ("remove", "nothing", "free-form")])
def test_an_edit_is_asked_for_success_and_identity(category: str) -> None:
    edit, identity = questions_for(category, INSTRUCTION, SUBJECT)
    assert (edit.kind, identity.kind) == ("edit", "identity")
    assert edit.wants_yes
    assert identity.wants_yes
    assert INSTRUCTION in edit.prompt
    assert INSTRUCTION in identity.prompt


def test_removal_asks_about_the_edited_image_alone_and_wants_no() -> None:
    edit, identity = questions_for("remove", INSTRUCTION, SUBJECT)
    assert SUBJECT in edit.prompt
    assert "{reference}" not in edit.prompt
    assert not edit.wants_yes
    assert identity.wants_yes


def test_doing_nothing_asks_only_for_identity() -> None:
    """Asking whether "do nothing" was carried out as well would not be wrong; asking for a change would be."""
    (same,) = questions_for("nothing", "do nothing", "")
    assert same.kind == "identity"
    assert same.wants_yes
    assert "do nothing" not in same.prompt


@pytest.mark.parametrize("category", ALL)
def test_a_judge_can_read_them(judge, category: str) -> None:
    for question in questions_for(category, INSTRUCTION, SUBJECT):
        ids = judge.encode_prompt(question.prompt)
        images = question.prompt.count("{reference}") + question.prompt.count("{edited}")
        assert ids.count(judge.model.config.image_token_id) == images * judge.image_tokens


def test_a_subject_in_a_new_scene_is_asked_for_the_scene_and_the_subject() -> None:
    edit, same = questions_for("free-form", "put the circle on teal dots", "circle")
    assert (edit, same.kind, same.wants_yes) == (
        questions_for("add", "put the circle on teal dots", "")[0],
        "identity",
        True,
    )
    assert "the circle in the second image" in same.prompt
    assert "teal" not in same.prompt
