"""What is in a dataset, counted: `nopair data inspect`. One pass over the records; of pictures, bits are held."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from nopair.data.records import Record
from nopair.data.shards import Card, read_records
from nopair.synthesis.fingerprint import Fingerprint, Seen
from nopair.synthesis.leaks import NEAR, Benchmark, picture_of, plain

NONE: Final = "not given"
SHOWN_LEAKS: Final = 100


@dataclass(frozen=True, slots=True)
class Kind:
    """One category, or all.

    Attributes:
        records: how many.
        shortest, median, longest: words of an instruction.
        distinct: share of instructions that no earlier record has, 0 to 1.
        pairs: share of two neighbouring words that are no repetition, 0 to 1; the usual measure of diversity.
    """

    records: int
    shortest: int
    median: int
    longest: int
    distinct: float
    pairs: float


@dataclass(frozen=True, slots=True)
class Leak:
    """A record that has something of a benchmark; `what` is picture or instruction."""

    benchmark: str
    what: str
    record: str
    instruction: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A record to look at, its photo's bytes with it."""

    record: Record
    content: bytes


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that was found. Photos are counted by the hash of their files.

    Attributes:
        photos, near_photos, unreadable: different photos; those of them nearly the same as another; broken ones.
        twice: records that ask the same of the same photo as an earlier one.
        kinds: by category, and `all` first.
        rejected: what did not become a record, by reason, in synthesis by stage and reason.
        missing: records without a field that training needs, by field.
        leaks: the first of them; `leaked` counts all, by benchmark and what.
    """

    photos: int
    near_photos: int
    unreadable: int
    twice: int
    kinds: dict[str, Kind]
    rejected: dict[str, int]
    missing: dict[str, int]
    leaks: tuple[Leak, ...]
    leaked: dict[tuple[str, str], int]
    samples: tuple[Sample, ...]


def inspect(dataset: Path, benchmarks: Sequence[Benchmark], samples: int, seed: int) -> Inspection:
    """Look at every record.

    Args:
        samples: records to keep for looking at, as evenly over the categories as there are.
        seed: which ones.

    Raises:
        DataError: the folder is no dataset, or a record is wrong.
    """
    words: dict[str, list[str]] = {}
    asked: set[tuple[str, str]] = set()
    twice, missing, leaked = 0, Counter[str](), Counter[tuple[str, str]]()
    leaks: list[Leak] = []
    pictures = _Pictures(benchmarks)
    reservoir = _Reservoir(samples, seed)
    for record in read_records(dataset):
        words.setdefault(record.category or NONE, []).append(record.instruction)
        missing.update(record.missing)
        question = record.image_hash, plain(record.instruction)
        twice += question in asked
        asked.add(question)
        content = _content(dataset, record)
        for benchmark in pictures.look(record.image_hash, content):
            leaks.append(Leak(benchmark, "picture", record.id, record.instruction))
        for benchmark in benchmarks:
            if question[1] in benchmark.instructions:
                leaks.append(Leak(benchmark.name, "instruction", record.id, record.instruction))
        leaked.update((leak.benchmark, leak.what) for leak in leaks[sum(leaked.values()) :])
        if content is not None:
            reservoir.offer(Sample(record, content))
    return Inspection(
        photos=pictures.photos,
        near_photos=pictures.near,
        unreadable=pictures.unreadable,
        twice=twice,
        kinds={"all": kind([one for group in words.values() for one in group])}
        | {name: kind(words[name]) for name in sorted(words)},
        rejected=dict(Card.read(dataset).dropped),
        missing=dict(sorted(missing.items())),
        leaks=tuple(leaks[:SHOWN_LEAKS]),
        leaked=dict(sorted(leaked.items())),
        samples=reservoir.taken(),
    )


def kind(instructions: Sequence[str]) -> Kind:
    """Length and diversity of some instructions; there is at least one."""
    split = [plain(instruction).split() for instruction in instructions]
    lengths = sorted(map(len, split))
    pairs = [pair for one in split for pair in pairwise(one)]
    return Kind(
        records=len(instructions),
        shortest=lengths[0],
        median=lengths[len(lengths) // 2],
        longest=lengths[-1],
        distinct=len({" ".join(one) for one in split}) / len(split),
        pairs=len(set(pairs)) / len(pairs) if pairs else 0.0,
    )


def _content(dataset: Path, record: Record) -> bytes | None:
    """The photo's bytes; None if its file is gone, which counts as unreadable."""
    if record.image.bytes is not None:
        return record.image.bytes
    assert record.image.path is not None, "the schema has one or the other"
    try:
        return (dataset / record.image.path).read_bytes()
    except OSError:
        return None


class _Pictures:
    """Each photo looked at once, by the hash of its file: copies, and which benchmarks have it."""

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self.near = 0
        self.unreadable = 0
        self._seen = Seen(NEAR)
        self._in: dict[str, tuple[str, ...]] = {}
        self._benchmarks: dict[str, Seen] = {}
        for benchmark in benchmarks:
            seen = self._benchmarks.setdefault(benchmark.name, Seen(NEAR))
            for fingerprint in benchmark.pictures:
                seen.add(fingerprint, "")

    @property
    def photos(self) -> int:
        """Different ones so far."""
        return len(self._in)

    def look(self, digest: str, content: bytes | None) -> tuple[str, ...]:
        """The benchmarks that have this photo."""
        if digest not in self._in:
            fingerprint = None if content is None else picture_of(content)
            self._in[digest] = () if fingerprint is None else self._new(fingerprint, digest)
            self.unreadable += fingerprint is None
        return self._in[digest]

    def _new(self, fingerprint: Fingerprint, digest: str) -> tuple[str, ...]:
        self.near += self._seen.find(fingerprint) is not None
        self._seen.add(fingerprint, digest)
        return tuple(name for name, seen in self._benchmarks.items() if seen.find(fingerprint) is not None)


class _Reservoir:
    """A fair sample of each category, of all that went by."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._chance = random.Random(seed)
        self._groups: dict[str, tuple[int, list[Sample]]] = {}

    def offer(self, sample: Sample) -> None:
        """One more went by."""
        name = sample.record.category or NONE
        count, group = self._groups.get(name, (0, []))
        if len(group) < self._size:
            group.append(sample)
        elif (place := self._chance.randrange(count + 1)) < self._size:
            group[place] = sample
        self._groups[name] = (count + 1, group)

    def taken(self) -> tuple[Sample, ...]:
        """One of each category in turn, until there are enough."""
        return tuple(self._in_turn())[: self._size]

    def _in_turn(self) -> Iterator[Sample]:
        groups = [group for _, (_, group) in sorted(self._groups.items())]
        for place in range(self._size):
            yield from (group[place] for group in groups if place < len(group))
