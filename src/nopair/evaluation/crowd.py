"""Requests of an evaluation: what goes wrong with one of them is told, and the others go on."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from nopair.endpoints.crowd import for_each
from nopair.errors import ContentRefusedError, EndpointError, NopairError, OutputError, RefusedError, UnavailableError

T = TypeVar("T")


async def tell_each(
    things: Sequence[T],
    at_once: int,
    work: Callable[[T], Awaitable[None]],
    told: Callable[[T, str | None], None],
    *,
    heard: bool,
) -> None:
    """`work` on each, `at_once` at a time; `told` gets each with what went wrong, or None. `heard` as in `for_each`.

    A server that has taken one request may refuse others; one that takes none counts as gone.

    Raises:
        EndpointError: the server refuses us altogether, or has no answer for many in a row, or for any.
        OutputError: what was answered, and paid, cannot be kept.
    """

    taken = heard

    async def attempt(thing: T) -> str | None:
        nonlocal taken
        try:
            await work(thing)
            taken = True
        except ContentRefusedError as error:
            return str(error)
        except RefusedError as error:
            if not taken:
                raise UnavailableError(str(error)) from error
            return str(error)
        except (EndpointError, OutputError):
            raise
        except NopairError as error:
            return str(error)
        return None

    def done(thing: T, found: object) -> None:
        told(thing, None if found is None else str(found))

    await for_each(things, at_once, attempt, done, heard=heard)
