"""Photos of one's own as training data: an endless stream of samples over a table of them.

A photo is scaled to cover its bucket's size and cut to it in the middle: nothing is filled in, nothing is squashed.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final, final

import numpy as np
import PIL
import torch

from nopair.data.broken import Broken
from nopair.data.images import cover, decode_image
from nopair.data.order import Order, Sizes, nearest
from nopair.data.ranks import Part, Ranks
from nopair.data.records import CATEGORIES
from nopair.data.tables import Ask, Table, category_number
from nopair.errors import DataError, ImageError
from nopair.types import EditBatch, EditRecord

NOTHING: Final = "leave everything as it is"
DEFAULT: Final = "default"
"""In `shares`: every category that is not named."""

_AT_ONCE: Final = 2**16


@final
@dataclass(frozen=True, slots=True)
class PhotoSource:
    """An endless stream over a table; a `nopair.data.loader.Source`.

    Sample `index` depends on the fields and `index` only. Indices asked for together must lie in one group of the order
    (see `nopair.data.order`), so that they have one size. A share of samples, `nothing_share`, become `nothing`: the
    photo as it is, all words agreeing with that. Where a photo cannot be read, the next one of its bucket and category
    stands in, and `broken` counts and names it.
    """

    table: Table
    order: Order
    sizes: Sizes
    seed: int
    nothing_share: float
    broken: Broken

    @classmethod
    def of(
        cls,
        table: Table,
        sizes: Sizes,
        *,
        group: int,
        seed: int,
        nothing_share: float,
        max_broken: int = 0,
        broken_file: Path | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> "PhotoSource":
        """A stream in groups of `group` samples of one of `sizes`, (height, width). `shares` is as in a recipe's data,
        `broken_file` where the run's processes count broken photos together.

        Raises:
            DataError: no record is left to train on, or a photo whose size is not known cannot be read.
        """
        try:
            rows = Ranks.of(_parts(table, sizes, by_category=shares is not None))
        except ImageError as error:
            raise DataError(f"{error}; take its record out or mend the photo") from error
        numbered = None if shares is None else _numbered(shares, {cell.category for cell in rows.cells})
        order = Order.of(rows, numbered, group, seed)
        return cls(table, order, sizes, seed, nothing_share, Broken(max_broken, broken_file))

    def batch(self, indices: Sequence[int]) -> EditBatch:
        """Those samples, stacked.

        Raises:
            DataError: a record is malformed, or too many photos cannot be read.
        """
        return stacked([self.sample(index) for index in indices])

    def sample(self, index: int) -> EditRecord:
        """One sample.

        Raises:
            DataError: as in `batch`.
        """
        height, width = self.sizes[self.order.bucket(index)]
        for row in self.order.candidates(index):
            try:
                name, content = self.table.photo(row)
                pixels = cover(decode_image(content, name), height, width)
            except ImageError as error:
                self.broken.add(row, error)
                continue
            ask = self._asked(index, self.table.ask(row))
            return EditRecord(
                reference=pixels,
                instruction=ask.instruction,
                caption=ask.caption,
                edited_caption=ask.edited_caption,
                category=ask.category,
                subject=ask.subject,
            )
        raise DataError("no photo of a whole bucket and category can be read; see the log for their names")

    def state(self) -> str:
        """Hex digest of what samples follow from, photos by their files' sizes and times: while it is the same, and
        every photo can be read, so is every sample.

        Raises:
            DataError: it cannot be found out.
        """
        order = self.order
        drawn = order.strata, order.totals, order.group, order.seed, self.sizes, self.seed, self.nothing_share
        programs = version("nopair"), torch.__version__, PIL.__version__
        return hashlib.sha256(repr((self.table.state(), drawn, programs)).encode()).hexdigest()

    def _asked(self, index: int, ask: Ask) -> Ask:
        if random.Random(f"nothing {self.seed} {index}").random() >= self.nothing_share:
            return ask
        return Ask(instruction=NOTHING, caption=ask.caption, edited_caption=ask.caption, category="nothing")


def stacked(samples: Sequence[EditRecord]) -> EditBatch:
    """Samples of one size as a batch."""
    return EditBatch(
        reference=torch.stack([sample.reference for sample in samples]),
        instructions=tuple(sample.instruction for sample in samples),
        captions=tuple(sample.caption for sample in samples),
        edited_captions=tuple(sample.edited_caption for sample in samples),
        categories=tuple(sample.category for sample in samples),
        subjects=tuple(sample.subject for sample in samples),
    )


def _parts(table: Table, sizes: Sizes, *, by_category: bool) -> Iterator[Part]:
    """Buckets and categories of the rows, some at a time; what does not matter is 0, and not looked at."""
    if len(sizes) == 1 and not by_category:
        for start in range(0, len(table), _AT_ONCE):
            nothing = np.zeros(min(_AT_ONCE, len(table) - start), np.uint8)
            yield Part(nothing, nothing)
        return
    for shapes in table.shapes():
        buckets = nearest(shapes.heights, shapes.widths, sizes)
        yield Part(buckets, shapes.categories if by_category else np.zeros_like(buckets))


def _numbered(shares: Mapping[str, float], there: Set[int]) -> dict[int, float]:
    """Shares by the numbers of the categories that are there.

    Raises:
        DataError: a category that is named has no record.
    """
    for name in shares:
        if name != DEFAULT and shares[name] and category_number(name) not in there:
            raise DataError(f"data.shares names {name}, but no record is of that category; take it out of shares")
    rest = shares.get(DEFAULT, 0.0)
    return {number: shares.get(CATEGORIES[number], rest) for number in there}
