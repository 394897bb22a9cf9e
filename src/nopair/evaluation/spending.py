"""What servers were asked and what it cost, a JSON object a session, beside what came of it.

A session is noted when it ends, also where it ends early; one that is killed outright is not.
"""

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nopair.data.files import make_folder
from nopair.endpoints.server import Server, Usage
from nopair.errors import DataError, OutputError


class Session(BaseModel):
    """One. Counts are those of `Usage`; `cost` is None for a server without prices, and where a model ran here."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    requests: int
    uncounted: int
    input_tokens: int
    output_tokens: int
    retries: int
    cost: float | None
    currency: str
    date: str


@dataclass(frozen=True, slots=True)
class Spending:
    """All sessions of one editor or judge.

    Attributes:
        usage: their sum.
        costs: by currency, of the sessions that had prices.
        unpriced: answers of the others.
    """

    usage: Usage
    costs: dict[str, float]
    unpriced: int

    @property
    def cost(self) -> str:
        """In words; "–" where nothing has a price."""
        least = "at least " if self.costs and (self.usage.uncounted or self.unpriced) else ""
        return least + " + ".join(f"{cost:.2f} {currency}" for currency, cost in self.costs.items()) or "–"


@contextmanager
def noted(path: Path, server: Server | None, usage: Callable[[], Usage]) -> Iterator[None]:
    """On leaving, however that is, what was used meanwhile is written to `path`.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        yield
    finally:
        if usage() != Usage():
            _note(path, server, usage())


def spent(path: Path) -> Spending | None:
    """What was noted; None if nothing was.

    Raises:
        DataError: the file cannot be read, or is broken.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        sessions = [Session.model_validate_json(line) for line in lines]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except ValueError as error:  # ValidationError is one
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise DataError(f"{path}: holds a line that is no session ({what}); take the line out") from None
    costs: dict[str, float] = {}
    total, unpriced = Usage(), 0
    for one in sessions:
        total += Usage(one.requests, one.uncounted, one.input_tokens, one.output_tokens, one.retries)
        if one.cost is None:
            unpriced += one.requests
        else:
            costs[one.currency] = costs.get(one.currency, 0.0) + one.cost
    return Spending(total, costs, unpriced)


def _note(path: Path, server: Server | None, usage: Usage) -> None:
    priced: dict[str, Any] = {"cost": None, "currency": ""}
    if server is not None and (server.input_price > 0 or server.output_price > 0):
        priced = {"cost": server.cost(usage), "currency": server.currency}
    session = Session(
        requests=usage.requests,
        uncounted=usage.uncounted,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        retries=usage.retries,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **priced,
    )
    make_folder(path.parent)
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(session.model_dump_json() + "\n")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); check the disk space") from error
