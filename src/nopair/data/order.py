"""Which record comes when: shuffled, in shares of categories, in batches of one size; computed from the index alone.

Nothing is drawn in advance and no state is kept, so any process can ask for any sample, and going on in the middle of
an epoch, with any number of processes, costs nothing.

Samples come in groups of `group`, all of one bucket (one size of pixels). Epoch e is the samples e * length to
(e + 1) * length - 1. Without shares, each record is in each epoch once. Buckets are cut into whole groups, which are
shuffled. What is left over of each bucket comes in groups with what is left of others, which so get a size near their
own; the same holds for a group that lies in two epochs. Those are less than `group` records of each bucket and epoch.

With shares, a category is shown more or less often than it is there: it passes through its records, each once per pass,
at its own pace.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import log

import numpy as np
from jaxtyping import Integer

from nopair.data.permutation import shuffled
from nopair.data.ranks import Ranks
from nopair.errors import DataError

Sizes = tuple[tuple[int, int], ...]
"""(height, width) of each bucket."""


@dataclass(frozen=True, slots=True)
class _Stratum:
    """The records of one bucket and, with shares, one category: `rows[start : start + count]`, shown `quota` times an
    epoch."""

    start: int
    count: int
    quota: int


@dataclass(frozen=True, slots=True)
class Order:
    """An endless order of records; see the module. For each bucket, `strata` has a tuple and `totals` its samples of an
    epoch."""

    rows: Ranks
    strata: tuple[tuple[_Stratum, ...], ...]
    totals: tuple[int, ...]
    group: int
    seed: int

    @classmethod
    def of(cls, rows: Ranks, shares: Mapping[int, float] | None, group: int, seed: int) -> "Order":
        """The order of the records that are ranked.

        Args:
            rows: without shares, all of one category.
            shares: how often each category is shown, relative to the others; those not named are left out. None: as
                they come, each record once per epoch.

        Raises:
            DataError: no record is left, or a category that has a share has no record.
        """
        kinds, counts = [cell.category for cell in rows.cells], [cell.count for cell in rows.cells]
        quotas = counts if shares is None else _quotas(kinds, counts, shares)
        made: dict[int, list[_Stratum]] = {}
        for cell, quota in zip(rows.cells, quotas, strict=True):
            if quota:
                made.setdefault(cell.bucket, []).append(_Stratum(cell.start, cell.count, quota))
        if not made:
            raise DataError("there is no record to train on; look at its categories with nopair data validate")
        cut = tuple(tuple(made.get(bucket, ())) for bucket in range(max(made) + 1))
        totals = tuple(sum(stratum.quota for stratum in bucket) for bucket in cut)
        return cls(rows, cut, totals, group, seed)

    @property
    def length(self) -> int:
        """Samples of an epoch."""
        return sum(self.totals)

    def bucket(self, index: int) -> int:
        """The bucket of sample `index`: that of its whole group."""
        first = index // self.group * self.group
        epoch, place = divmod(first, self.length)
        layout = _layout(self.totals, self.group, epoch)
        group = (place - layout.head) // self.group
        if not 0 <= group < layout.groups:  # the group ends in another epoch
            return self._left_over(layout, layout.ordinal(place))[0]
        slot = shuffled(layout.groups, "groups", self.seed, epoch)(group)
        if slot < layout.full:
            return layout.bucket_of(slot)
        middle = layout.head + (slot - layout.full) * self.group + self.group // 2
        return self._left_over(layout, middle)[0]

    def row(self, index: int) -> int:
        """The record of sample `index`."""
        return next(self.candidates(index))

    def candidates(self, index: int) -> Iterator[int]:
        """The record of sample `index`, and then, each once, those that stand in for it if it cannot be read."""
        epoch, place = divmod(index, self.length)
        bucket, within = self._find(epoch, place)
        drawn = shuffled(self.totals[bucket], "bucket", self.seed, epoch, bucket)(within)
        for number, stratum in enumerate(self.strata[bucket]):
            if drawn < stratum.quota:
                one_pass, first = divmod(epoch * stratum.quota + drawn, stratum.count)
                permutation = shuffled(stratum.count, "records", self.seed, one_pass, bucket, number)
                for step in range(stratum.count):
                    yield self.rows[stratum.start + permutation((first + step) % stratum.count)]
                return
            drawn -= stratum.quota
        raise AssertionError("a bucket is as large as its strata")

    def _find(self, epoch: int, place: int) -> tuple[int, int]:
        """The bucket that the record at a place of an epoch belongs to, and its place there."""
        layout = _layout(self.totals, self.group, epoch)
        group, offset = divmod(place - layout.head, self.group)
        if 0 <= group < layout.groups:
            slot = shuffled(layout.groups, "groups", self.seed, epoch)(group)
            if slot < layout.full:
                bucket = layout.bucket_of(slot)
                return bucket, (slot - sum(layout.whole[:bucket])) * self.group + offset
            return self._left_over(layout, layout.head + (slot - layout.full) * self.group + offset)
        return self._left_over(layout, layout.ordinal(place))

    def _left_over(self, layout: "_Layout", ordinal: int) -> tuple[int, int]:
        """Bucket of a record that is in no whole group, and its place there."""
        for bucket, (total, whole) in enumerate(zip(self.totals, layout.whole, strict=True)):
            left = total - whole * self.group
            if ordinal < left:
                return bucket, whole * self.group + ordinal
            ordinal -= left
        raise AssertionError("what is left over fills the places that are left")


@dataclass(frozen=True, slots=True)
class _Layout:
    """How an epoch is cut: `head` samples of a group that began earlier, `groups` groups, and the rest, which begins
    a group that ends later. `full` of the groups are of one bucket, `whole` of each bucket."""

    head: int
    groups: int
    full: int
    whole: tuple[int, ...]
    group: int

    @classmethod
    def of(cls, totals: tuple[int, ...], group: int, epoch: int) -> "_Layout":
        length = sum(totals)
        head = min(-epoch * length % group, length)
        groups = (length - head) // group
        whole = [total // group for total in totals]
        while sum(whole) > groups:  # head and tail need more than what is left over
            whole[whole.index(max(whole))] -= 1
        return cls(head, groups, sum(whole), tuple(whole), group)

    def bucket_of(self, slot: int) -> int:
        """The bucket of a group of one bucket."""
        return next(bucket for bucket, end in enumerate(accumulate(self.whole)) if slot < end)

    def ordinal(self, place: int) -> int:
        """The number, among what is left over, of a place in the head or the tail."""
        return place if place < self.head else place - self.full * self.group


_layout = lru_cache(maxsize=64)(_Layout.of)


def nearest(
    heights: Integer[np.ndarray, " record"], widths: Integer[np.ndarray, " record"], sizes: Sizes
) -> np.ndarray:
    """For each photo the number of the bucket that cuts least of it: the nearest ratio of height to width."""
    ratios = np.log(heights / widths)
    targets = np.array([log(height / width) for height, width in sizes])
    best = np.zeros(len(ratios), np.uint8)
    least = np.abs(ratios - targets[0])
    for number, target in enumerate(targets[1:], start=1):
        distance = np.abs(ratios - target)
        better = distance < least
        best[better], least[better] = number, distance[better]
    return best


def _quotas(kinds: Sequence[int], counts: Sequence[int], shares: Mapping[int, float]) -> list[int]:
    """How often each stratum is shown per epoch, so that categories have their shares; whole numbers, at least 1."""
    there: dict[int, int] = {}
    for kind, count in zip(kinds, counts, strict=True):
        there[kind] = there.get(kind, 0) + count
    length = sum(count for kind, count in there.items() if shares.get(kind))
    whole = sum(share for kind, share in shares.items() if kind in there)
    return [
        max(1, round(length * shares[kind] / whole * count / there[kind])) if shares.get(kind) else 0
        for kind, count in zip(kinds, counts, strict=True)
    ]
