"""What a comparison asks of an editor."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import JsonValue

from nopair.endpoints.server import Server
from nopair.errors import NopairError, OutputError, PixelsError
from nopair.evaluation.benchmarks.base import Item

Told = Callable[[Item, str | None], None]
"""Called with each item once it is done, and with what went wrong, or None."""


@runtime_checkable
class Contestant(Protocol):
    """An editor as a comparison sees it.

    Attributes:
        name: what tables, and the folder of its outputs, call it.
        about: all that its outputs depend on, for results, and to know whether old outputs are still its own.
        makes: whether it makes its outputs, or only finds those that somebody else has made.
    """

    makes: ClassVar[bool]

    @property
    def name(self) -> str:
        """See above."""
        ...

    @property
    def about(self) -> Mapping[str, JsonValue]:
        """See above."""
        ...

    @property
    def server(self) -> Server | None:
        """Where it is and what it costs; None if it runs here."""
        ...

    def output(self, item: Item, folder: Path) -> Path:
        """Where its output of an item is, or will be, below the folder that it may write to."""
        ...

    def make(self, items: Sequence[Item], folder: Path, told: Told) -> None:
        """Write the outputs of items, each complete or not at all. An item that fails costs no other its output.

        Raises:
            EndpointError: a server refuses us altogether, or is gone.
            OutputError: outputs cannot be written, for a reason that is not one image's own.
        """
        ...


def below(item: Item, folder: Path) -> Path:
    """Where an output goes in the benchmark's own layout."""
    return folder / f"{item.place}.png"


def ends_all(error: NopairError) -> bool:
    """Whether what went wrong with one edit goes wrong with all that follow, such as a full disk."""
    return isinstance(error, OutputError) and not isinstance(error, PixelsError)


def seed_of(item: Item, seed: int) -> int:
    """An item's own seed, the same for every editor, whatever else is edited."""
    return int.from_bytes(hashlib.sha256(f"{seed} {item.place}".encode()).digest()[:4], "big")
