"""What `nopair data import` and `nopair data validate` do and print."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from nopair.data.files import shown
from nopair.data.importers import import_dataset
from nopair.data.shards import Card
from nopair.data.validate import problems
from nopair.errors import DataError


def run_import(kind: str, path: Path, folder: Path, licence: str, *, by_path: bool) -> None:
    """Import a data set and print its card. Raises NopairError."""
    card = import_dataset(kind, path, folder, by_path=by_path, licence=licence)
    console = Console(highlight=False, soft_wrap=True)
    for line in _summary(card):
        console.print(line, markup=False)
    console.print(shown(str(folder)), markup=False)


def run_validate(path: Path) -> None:
    """Print every problem of a dataset, one a line.

    Raises:
        DataError: there are any.
    """
    console = Console(highlight=False, soft_wrap=True)
    count = 0
    for count, problem in enumerate(problems(path), 1):  # noqa: B007
        console.print(" ".join(shown(problem).splitlines()), markup=False)
    if count:
        raise DataError(f"{path}: {count} problem{'s' if count > 1 else ''}, listed above; mend them and try again")
    console.print(shown(f"{path}: nothing is wrong"), markup=False)


def _summary(card: Card) -> list[str]:
    def told(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"

    return [
        f"records: {card.records} in {len(card.shards)} shards",
        f"licences: {told(card.licences)}",
        f"sources: {told(card.sources)}",
        f"categories: {told(card.categories)}",
        f"kinds of edit without a category: {told(card.other_kinds)}",
        f"missing: {told(card.missing)}",
        f"left out: {told(card.dropped)}",
    ]
