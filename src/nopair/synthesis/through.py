"""One stage: many items through one engine, with progress, cost and what it told in the end."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from rich.console import Console

from nopair.endpoints.crowd import for_each
from nopair.endpoints.server import Server, Usage, told_cost
from nopair.errors import DataError, UnavailableError
from nopair.synthesis.asking import REFUSED, Asker
from nopair.synthesis.engines import opened
from nopair.synthesis.items import Aside
from nopair.synthesis.journal import Journal
from nopair.synthesis.progress import progress
from nopair.synthesis.recipe import LocalEngine, ServerEngine, SynthesisRecipe
from nopair.synthesis.write import counted

T = TypeVar("T")
R = TypeVar("R")


async def through(
    name: str,
    items: Sequence[T],
    work: Callable[[Asker], Callable[[T], Awaitable[R]]],
    config: ServerEngine | LocalEngine,
    journal: Journal,
    recipe: SynthesisRecipe,
    console: Console,
) -> list[R | UnavailableError]:
    """`work` on all items; refuses to go on if too many are left without an answer.

    Raises:
        ConfigError, MissingExtraError, ModelError, JudgeError: the engine cannot be opened.
        EndpointError: its server cannot be used; with many questions in a row or too many in all left open,
            `UnavailableError`.
        DataError: it refused everything.
    """
    if not items:
        return []
    async with opened(config) as engine:
        asker = Asker(engine, journal)

        def said() -> str:
            return _cost(config, engine.usage)

        found: dict[int, R | UnavailableError] = {}
        one = work(asker)
        with progress(name, len(items), console) as tick:

            def done(place: int, result: R | UnavailableError) -> None:
                found[place] = result
                tick(said())

            await for_each(range(len(items)), engine.concurrency, lambda place: one(items[place]), done)
        results = [found[place] for place in range(len(items))]
        say(console, f"{name}: {said()}, {asker.reused} answers from before")
        if asker.silent is not None:
            say(console, f"{name}: unusable answers from before stay unusable, nobody gives others ({asker.silent})")
    left = [one for one in results if isinstance(one, UnavailableError)]
    if len(left) > recipe.unanswered * len(items):
        raise UnavailableError(
            f"{name}: {len(left)} of {len(items)} are without an answer (the first: {left[0]}); run again to go on, or "
            "raise `unanswered`"
        )
    refused = [one for one in results if isinstance(one, Aside) and one.reason == REFUSED]
    if len(refused) == len(items):
        raise DataError(f"{name}: everything was refused (the first: {refused[0].detail}); check the recipe's engine")
    return results


def of_kind(kind: type[R], items: Sequence[object]) -> list[R]:
    """The items that are of a kind."""
    return [item for item in items if isinstance(item, kind)]


def tell(console: Console, stage: str, got_through: int, aside: Sequence[Aside]) -> None:
    """How a stage ended."""
    reasons = ", ".join(f"{name.partition(': ')[2]} {count}" for name, count in counted(aside).items())
    say(console, f"{stage}: {got_through} through, {len(aside)} set aside{f' ({reasons})' if reasons else ''}")


def say(console: Console, line: str) -> None:
    """A line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cost(config: ServerEngine | LocalEngine, usage: Usage) -> str:
    return told_cost(config, usage) if isinstance(config, Server) else f"{usage.requests} answers, here"
