"""Asking through a journal, of an engine that a test scripts: what is asked again, and what never is."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nopair.endpoints.messages import Ask, Reply
from nopair.endpoints.server import Server, Usage
from nopair.errors import EndpointError, RefusedError, UnavailableError
from nopair.synthesis.asking import Answer, Asker, UnusableError
from nopair.synthesis.journal import Journal

ASK = Ask("Describe.", ("this",), seed=7)


class Word(Answer):
    word: str


GOOD = '{"word": "a"}'


@dataclass
class Scripted:
    """An engine that says what `script` says to the n-th question of this engine, or raises it."""

    script: Callable[[int], str | Exception]
    manner: str = ""
    name: str = "server"
    model: str = "toy"
    concurrency: int = 1
    usage: Usage = field(default_factory=Usage)
    asked: list[Ask] = field(default_factory=list)

    async def chat(self, ask: Ask) -> Reply:
        self.asked.append(ask)
        said = self.script(len(self.asked) - 1)
        if isinstance(said, Exception):
            raise said
        return Reply(said, Usage(requests=1))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "answers.jsonl") as journal:
        yield journal


def answered(engine: Scripted, journal: Journal, ask: Ask = ASK, retries: int = 1) -> Word | str:
    """The answer, or why there is none."""
    return told(Asker(engine, journal), ask, retries)


def told(asker: Asker, ask: Ask = ASK, retries: int = 1) -> Word | str:
    try:
        return asyncio.run(asker.answer(ask, Word, retries))
    except UnusableError as error:
        return error.reason


def says(*answers: str | Exception) -> Callable[[int], str | Exception]:
    return lambda number: answers[number]


def nobody(_: int) -> Exception:
    return AssertionError("is asked")


@pytest.mark.parametrize(
    "changes", [{"extra": {"chat_template_kwargs": {"enable_thinking": False}}}, {"temperature": "omit"}]
)
def test_what_changes_answers_is_asked_anew(journal: Journal, changes: dict[str, Any]) -> None:
    usual, other = (Server(url="http://localhost/v1", model="toy", **some) for some in ({}, changes))
    assert usual.manner() != other.manner()
    for server in (usual, other):
        engine = Scripted(says(GOOD), server.manner())
        assert isinstance(answered(engine, journal), Word)
        assert len(engine.asked) == 1
        assert isinstance(answered(Scripted(nobody, server.manner()), journal), Word)


def test_answers_that_the_defaults_have_had_are_kept(journal: Journal) -> None:
    answered(Scripted(says(GOOD), Server(url="http://localhost/v1", model="toy").manner()), journal)
    assert ASK.digest("server toy") in journal


def test_what_had_no_usable_answer_is_asked_anew_by_a_later_run(journal: Journal) -> None:
    unusable = "answer not of the form asked for"
    assert answered(Scripted(says("none", "none")), journal) == unusable
    later = Scripted(says("none", GOOD))
    assert isinstance(answered(later, journal), Word)
    assert len(later.asked) == 2
    assert isinstance(answered(Scripted(nobody), journal), Word), "a usable one is there now"


def test_a_usable_answer_among_unusable_ones_is_kept(journal: Journal) -> None:
    assert isinstance(answered(Scripted(says("none", GOOD)), journal), Word)
    assert isinstance(answered(Scripted(nobody), journal), Word)


def test_unusable_answers_stay_where_there_are_no_others(journal: Journal) -> None:
    """And a server that is gone is not asked about each of them."""
    asks = [Ask("Describe.", (str(number),)) for number in range(3)]
    for ask in asks:
        answered(Scripted(says("none", "none")), journal, ask)
    for error in (UnavailableError("gone"), EndpointError("no such model")):
        engine = Scripted(says(error))
        asker = Asker(engine, journal)
        assert [told(asker, ask) for ask in asks] == ["answer not of the form asked for"] * 3
        assert asker.silent is error
        assert len(engine.asked) == 1
    refused = Asker(Scripted(lambda _: RefusedError("not this")), journal)
    assert [told(refused, ask) for ask in asks] == ["answer not of the form asked for"] * 3
    assert refused.silent is None


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refused_first", [True, False])
def test_a_refusal_is_kept_where_the_engine_answers_others(journal: Journal, refused_first: bool) -> None:
    other = Ask("Describe.", ("that",))
    refusal = RefusedError("too odd")
    engine = Scripted(says(*((refusal, GOOD) if refused_first else (GOOD, refusal))))
    asker = Asker(engine, journal)
    for ask in (ASK, other) if refused_first else (other, ASK):
        told(asker, ask)
    later = Asker(Scripted(nobody), journal)
    with pytest.raises(UnusableError, match="refused by the model's server") as kept:
        asyncio.run(later.reply(ASK))
    assert kept.value.detail == "too odd"
    assert told(later) == "refused by the model's server"
    assert isinstance(told(later, other), Word)
    assert isinstance(answered(Scripted(says(GOOD), "another manner"), journal), Word)


def test_refusals_of_an_engine_that_refuses_everything_are_not_kept(journal: Journal) -> None:
    refuses = Asker(Scripted(lambda _: RefusedError("no response_format here")), journal)
    for number in range(3):
        told(refuses, Ask("Describe.", (str(number),)))
    assert not len(journal)
