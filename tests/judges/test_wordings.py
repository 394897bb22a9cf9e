"""Other wordings: there for every question, of the same kind and answer, and with the same places."""

import re

from nopair.judges.questions import BY_CATEGORY, DEFAULT
from nopair.judges.wordings import other_wordings
from nopair.types import Question

TEMPLATES = {template for row in (DEFAULT, *BY_CATEGORY.values()) for template in row}


def test_every_question_has_other_wordings_that_ask_the_same() -> None:
    for template in TEMPLATES:
        others = other_wordings(template)
        assert len(others) >= 2, f"add wordings of {template.prompt!r} to judges/wordings.py"
        assert len({template.prompt, *(other.prompt for other in others)}) == len(others) + 1
        for other in others:
            assert (other.kind, other.wants_yes) == (template.kind, template.wants_yes)
            assert sorted(_places(other)) == sorted(_places(template))
            assert _images(other) == _images(template), "the reference first"
            assert "?" in other.prompt[: other.prompt.index(_images(other)[0])], "the question before the images"
            assert other.prompt.endswith(" Answer Yes or No.")


def test_a_question_that_nobody_reworded_has_none() -> None:
    assert other_wordings(Question("edit", "Is it done? {edited}", wants_yes=True)) == ()


def _places(question: Question) -> list[str]:
    return re.findall(r"\{.*?\}", question.prompt)


def _images(question: Question) -> list[str]:
    return [place for place in _places(question) if place in ("{reference}", "{edited}")]
