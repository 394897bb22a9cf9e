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

    Raises:
        EndpointError: the server refuses us altogether, or has no answer for many in a row, or for any.
        OutputError: what was answered, and paid, cannot be kept.
    """

    async def attempt(thing: T) -> str | None:
        try:
            await work(thing)
        except ContentRefusedError as error:
            return str(error)
        except RefusedError as error:  # if it takes none of our requests, it might as well be gone
            raise UnavailableError(str(error)) from error
        except (EndpointError, OutputError):
            raise
        except NopairError as error:
            return str(error)
        return None

    def done(thing: T, found: object) -> None:
        told(thing, None if found is None else str(found))

    await for_each(things, at_once, attempt, done, heard=heard)
