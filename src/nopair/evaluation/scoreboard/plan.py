"""What a comparison would do and cost, told before anything is done."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from nopair.endpoints.server import Server, Usage, told_cost, told_guess
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.editors.base import Contestant
from nopair.evaluation.scoreboard.outputs import waiting
from nopair.evaluation.scoreboard.places import outputs_of, replies_of
from nopair.evaluation.scorers.asking import Task
from nopair.evaluation.scorers.marking import Marker
from nopair.evaluation.scorers.store import Store


def planned(
    items: Sequence[Item], editors: Sequence[Contestant], markers: Sequence[Marker], output: Path
) -> Iterator[str]:
    """A line for each editor and each judge. Questions about edits that are not made yet are counted.

    Raises:
        OutputError, DataError: what was done so far cannot be read.
    """
    tasks: list[Task] = []
    for editor in editors:
        folder = outputs_of(output, editor.name)
        left = waiting(editor, items, folder)
        if editor.makes:
            yield _to_make(editor, left.items, len(items), len(left.stale))
            tasks += [Task(editor.name, item, editor.output(item, folder), item.place in left.stale) for item in items]
        else:
            yield f"{editor.name}: {len(items) - len(left.items)} of {len(items)} outputs are there"
            lacking = {item.place for item in left.items}
            found = [item for item in items if item.place not in lacking]
            tasks += [Task(editor.name, item, editor.output(item, folder)) for item in found]
    for marker in markers:
        yield marker.estimate(tasks, Store(replies_of(output, marker.name)))


def _to_make(editor: Contestant, items: Sequence[Item], of: int, stale: int) -> str:
    told = f"{editor.name}: {len(items)} of {of} edits to make"
    if stale:
        told += (
            f", {stale} anew, as the outputs there were made for another instruction or image, or tell nothing of it"
        )
    if editor.server is None:
        return told
    return f"{told}; about {told_cost(editor.server, _usage(items, editor.server))}; {told_guess(editor.server)}"


def _usage(items: Sequence[Item], server: Server) -> Usage:
    """An image goes, with the instruction, and one comes back."""
    words = sum(len(item.instruction.encode("utf-8")) for item in items) // 3
    images = len(items) * server.image_tokens
    return Usage(requests=len(items), input_tokens=words + images, output_tokens=images)
