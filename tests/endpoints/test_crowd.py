"""Many requests at a time: one without an answer costs itself, a server that is gone ends them all."""

import asyncio

import pytest

from nopair.endpoints.crowd import MOST_FAILURES, for_each
from nopair.errors import OutputError, UnavailableError


def run(count: int, at_once: int, answered: set[int]) -> tuple[dict[int, object], list[int]]:
    """What came of each, and what was asked, of a server that answers these."""
    found: dict[int, object] = {}
    asked: list[int] = []

    async def work(place: int) -> int:
        asked.append(place)
        await asyncio.sleep(0)
        if place not in answered:
            raise UnavailableError(f"no answer to {place}")
        return -place

    try:
        asyncio.run(for_each(range(count), at_once, work, found.__setitem__))
    except UnavailableError as error:
        found[-1] = error
    return found, asked


@pytest.mark.parametrize("at_once", [1, 3, 50])
def test_every_thing_has_its_result_or_why_it_has_none(at_once: int) -> None:
    answered = {place for place in range(40) if place % 4}  # never many failures in a row
    found, asked = run(40, at_once, answered)
    assert sorted(asked) == sorted(found) == list(range(40))
    assert {place for place, result in found.items() if result == -place} == answered
    assert str(found[4]) == "no answer to 4"


@pytest.mark.parametrize(("at_once", "most"), [(1, MOST_FAILURES), (4, MOST_FAILURES), (32, 64)])
def test_a_server_that_goes_in_the_middle_is_not_asked_for_ever(at_once: int, most: int) -> None:
    found, asked = run(1000, at_once, set(range(100)))
    assert -1 in found
    assert len([place for place in asked if place >= 100]) <= most + at_once


@pytest.mark.parametrize("count", [1, 3])
def test_few_things_and_no_answer_at_all(count: int) -> None:
    assert -1 in run(count, 2, set())[0]
    assert -1 not in run(count, 2, set(range(count)))[0]


def test_nothing_to_do() -> None:
    assert run(0, 4, set()) == ({}, [])


def test_what_is_not_the_servers_fault_ends_all_and_cancels_what_is_under_way() -> None:
    cancelled: list[int] = []

    async def work(place: int) -> None:
        if place == 2:
            raise OutputError("the disk is full")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(place)
            raise

    with pytest.raises(OutputError):
        asyncio.run(for_each(range(9), 3, work, lambda *_: None))
    assert cancelled == [0, 1]
