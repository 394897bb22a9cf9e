"""Many requests to one server at a time: one without an answer costs itself, a server that is gone ends them all."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from nopair.errors import UnavailableError

T = TypeVar("T")
R = TypeVar("R")
MOST_FAILURES: Final = 8
"""Requests that may end without an answer in a row, or twice as many as are under way at once if that is more, until
the server is taken to be gone."""


async def for_each(
    things: Sequence[T],
    at_once: int,
    work: Callable[[T], Awaitable[R]],
    done: Callable[[T, R | UnavailableError], None],
    *,
    heard: bool = False,
) -> None:
    """`work` on each thing, `at_once` of them at a time; `done` gets each with its result, or with why it has none.

    `heard` says that the server has answered earlier, so that few things without an answer do not make it gone.

    Raises:
        UnavailableError: no answer for many in a row, or for any.
        Whatever else `work` raises: then the rest is not begun, and what is under way is cancelled.
    """
    waiting = iter(things)
    in_a_row, most = 0, max(MOST_FAILURES, 2 * at_once)

    async def worker() -> None:
        nonlocal in_a_row
        for thing in waiting:
            try:
                result = await work(thing)
                in_a_row = 0
            except UnavailableError as error:
                in_a_row += 1
                if in_a_row >= most or (in_a_row == len(things) and not heard):
                    raise
                result = error
            done(thing, result)

    workers = [asyncio.create_task(worker()) for _ in range(min(at_once, len(things)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
