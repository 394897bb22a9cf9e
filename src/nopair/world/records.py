"""The editor's training data: edits with the answer taken out.

An `Edit` knows its target scene; an `EditRecord` has the reference image and words only. This module is the one place
where the first becomes the second.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from nopair.types import EditBatch, EditRecord
from nopair.world.edits import CATEGORIES, FREE_FORM, Edit, draw_category, require_mixture, sample_edit
from nopair.world.render import render
from nopair.world.scenes import Scene, caption, opposite


def to_record(edit: Edit, describe: Callable[[Scene], str] = caption) -> EditRecord:
    """The reference image and the words of an edit. The target survives only as its caption, by `describe`.

    The places that `free-form` leaves open are those of `composed` in it.
    """
    wanted = composed(edit) if edit.category == FREE_FORM else edit.target
    return EditRecord(
        reference=render(edit.source),
        instruction=edit.instruction,
        caption=describe(edit.source),
        edited_caption=describe(wanted),
        category=edit.category,
        subject=edit.subject,
    )


def composed(edit: Edit) -> Scene:
    """What a `free-form` edit asks for, arranged so that the reference tells all places.

    The subject stays where it is, and the other thing stands in the opposite corner. Told places that only the target
    knows, the teacher would draw the student to them for no reason that the student can see; told none, it draws things
    everywhere (benchmarks/captions.py).
    """
    (subject,) = (thing for thing in edit.source.things if thing.shape == edit.subject)
    (other,) = (thing for thing in edit.target.things if thing.shape != edit.subject)
    return Scene(edit.target.background, (subject,)).with_thing(replace(other, cell=opposite(subject.cell)))


def to_batch(records: Sequence[EditRecord]) -> EditBatch:
    """Records of one size, stacked in order; at least one."""
    return EditBatch(
        reference=torch.stack([record.reference for record in records]),
        instructions=tuple(record.instruction for record in records),
        captions=tuple(record.caption for record in records),
        edited_captions=tuple(record.edited_caption for record in records),
        categories=tuple(record.category for record in records),
        subjects=tuple(record.subject for record in records),
    )


@dataclass(frozen=True, slots=True)
class WorldSource:
    """An endless source of records; record `index` depends on the fields and `index` only.

    seed: picks the stream.
    held_out: whether records come from the combinations reserved for evaluation, or from those without any.
    categories: drawn with equal chance; list one twice to draw it twice as often.
    nothing_share: chance of `nothing`, if it is among the categories; the others share the rest.
    describe: writes the captions; one of `nopair.world.scenes.CAPTIONS`.

    Raises:
        DataError: no category, an unknown one, or a share outside [0, 1].
    """

    seed: int
    held_out: bool
    categories: tuple[str, ...] = CATEGORIES
    nothing_share: float = 0.02
    describe: Callable[[Scene], str] = caption

    def __post_init__(self) -> None:
        require_mixture(self.categories, self.nothing_share)

    def record(self, index: int) -> EditRecord:
        """Record number `index`, any non-negative integer."""
        rng = random.Random(f"records {self.seed} {self.held_out} {index}")
        category = draw_category(rng, self.categories, self.nothing_share)
        return to_record(sample_edit(rng, category, held_out=self.held_out), self.describe)

    def batch(self, indices: Sequence[int]) -> EditBatch:
        """Those records, stacked."""
        return to_batch([self.record(index) for index in indices])
