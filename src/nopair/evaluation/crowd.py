"""Many requests to one server: some fail, the others go on, and a server that is gone ends it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from nopair.errors import EndpointError, NopairError, RefusedError, UnavailableError

T = TypeVar("T")
MOST_FAILURES: Final = 8
"""In a row, for each request that may be under way: then the server is taken to be gone."""


async def for_each(
    things: Sequence[T],
    workers: int,
    work: Callable[[T], Awaitable[None]],
    told: Callable[[T, str | None], None],
) -> None:
    """`work` on each, `workers` at a time; `told` gets each with what went wrong, or None.

    Raises:
        EndpointError: the server refuses us altogether, or gives no answer to many in a row, or to any.
    """
    waiting = iter(things)
    in_a_row = 0

    async def go_on() -> None:
        nonlocal in_a_row
        for thing in waiting:
            problem = None
            try:
                await work(thing)
                in_a_row = 0
            except UnavailableError as error:
                in_a_row += 1
                if in_a_row >= MOST_FAILURES * workers or in_a_row == len(things):
                    raise
                problem = str(error)
            except NopairError as error:
                if isinstance(error, EndpointError) and not isinstance(error, RefusedError):
                    raise
                problem = str(error)
            told(thing, problem)

    tasks = [asyncio.create_task(go_on()) for _ in range(min(workers, len(things)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
