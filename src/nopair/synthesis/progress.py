"""A stage's progress: a line that moves on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Tick = Callable[[str], None]
"""To be called after each item with a few words to show, such as the cost so far."""
_SECONDS_BETWEEN: Final = 30.0
"""Of the lines where there is no terminal."""


@contextmanager
def progress(name: str, total: int, console: Console) -> Iterator[Tick]:
    """Count, time gone and time left; where there is no terminal, as a line every half minute."""
    if not console.is_terminal:
        yield _Lines(name, total, console).tick
        return
    columns = (
        TextColumn(f"{name:<8}"),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total, said="")
        yield lambda said: bar.update(task, advance=1, said=said)


@final
class _Lines:
    def __init__(self, name: str, total: int, console: Console) -> None:
        self._name, self._total, self._console = name, total, console
        self._done = 0
        self._began = self._told = time.monotonic()

    def tick(self, said: str) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._told < _SECONDS_BETWEEN or self._done == self._total:
            return
        self._told = now
        left = timedelta(seconds=round((now - self._began) / self._done * (self._total - self._done)))
        line = f"{self._name}: {self._done} of {self._total}, {left} left{f', {said}' if said else ''}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
