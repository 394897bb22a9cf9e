"""A picture in few bits, so that copies of it are found however they were scaled or compressed."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from PIL import Image

_SIDE: Final = 9
BITS: Final = 2 * _SIDE * (_SIDE - 1)
COLOUR_TOLERANCE: Final = 12
"""Levels of 255 by which the mean colours of two copies may differ."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`bits`: whether each cell of a 9x9 grid is darker than its right and its lower neighbour, 144 bits as a number.

    `colour`: mean red, green and blue, 0 to 255, without which all plain pictures would be copies.
    """

    bits: int
    colour: tuple[int, int, int]

    @classmethod
    def of(cls, image: Image.Image) -> "Fingerprint":
        """The fingerprint of an upright RGB picture."""
        cells = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.int16)
        darker = np.concatenate([(np.diff(cells, axis=axis) > 1).ravel() for axis in (1, 0)])
        red, green, blue = (int(value) for value in np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0])
        return cls(int.from_bytes(np.packbits(darker).tobytes()), (red, green, blue))

    def near(self, other: "Fingerprint", bits: int) -> bool:
        """Whether both are of one picture, allowing for so many differing bits."""
        apart = max(abs(a - b) for a, b in zip(self.colour, other.colour, strict=True))
        return apart <= COLOUR_TOLERANCE and (self.bits ^ other.bits).bit_count() <= bits


class Seen:
    """Fingerprints so far, found again by likeness without comparing with each.

    Two fingerprints that differ in at most `bits` bits agree in at least one of `bits + 1` equal bands of their bits.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._bands: dict[tuple[int, int], list[tuple[Fingerprint, str]]] = {}

    def find(self, fingerprint: Fingerprint) -> str | None:
        """The name of the first one that is near."""
        for band in self._places(fingerprint):
            for other, name in self._bands.get(band, ()):
                if fingerprint.near(other, self.bits):
                    return name
        return None

    def add(self, fingerprint: Fingerprint, name: str) -> None:
        """Remember one."""
        for band in self._places(fingerprint):
            self._bands.setdefault(band, []).append((fingerprint, name))

    def _places(self, fingerprint: Fingerprint) -> Iterator[tuple[int, int]]:
        bands = min(self.bits + 1, BITS)
        edges = [BITS * band // bands for band in range(bands + 1)]
        for band, (low, high) in enumerate(pairwise(edges)):
            yield band, (fingerprint.bits >> low) & ((1 << (high - low)) - 1)
