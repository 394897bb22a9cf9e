"""Many items through one stage at a time, with progress; results in the order of the items."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nopair.errors import UnavailableError

T = TypeVar("T")
R = TypeVar("R")
_GIVE_UP_AFTER: Final = 8
"""Items that may end without an answer, if none before had one, until the server counts as down."""
Tick = Callable[[str], None]
"""To be called after each item with a few words to show, such as the cost so far."""


@contextmanager
def progress(name: str, total: int, console: Console) -> Iterator[Tick]:
    """A line with count, time gone and time left, on a terminal; nothing elsewhere."""
    columns = (
        TextColumn(f"{name:<8}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total, said="")
        yield lambda said: bar.update(task, advance=1, said=said)


async def over(
    items: Sequence[T], work: Callable[[T], Awaitable[R]], at_once: int, tick: Callable[[], None]
) -> list[R | UnavailableError]:
    """`work` on each item, `at_once` of them at a time; an item without an answer gives its error instead.

    Raises:
        UnavailableError: the server is down: the first items all had no answer.
        EndpointError: it refuses us altogether.
    """
    results: list[R | UnavailableError | None] = [None] * len(items)
    waiting = iter(range(len(items)))
    answered, failed = 0, 0

    async def worker() -> None:
        nonlocal answered, failed
        for place in waiting:
            try:
                results[place] = await work(items[place])
                answered += 1
            except UnavailableError as error:
                results[place] = error
                failed += 1
                if not answered and failed >= min(_GIVE_UP_AFTER, len(items)):
                    raise
            tick()

    workers = [asyncio.create_task(worker()) for _ in range(min(at_once, len(items)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for one in workers:
            one.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [result for result in results if result is not None]
