"""A shuffled order of any number of things that needs no list of them: where place k goes is computed."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_ROUNDS: Final = 6
_WORD: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Permutation:
    """A pseudo-random one-to-one map of 0 ... size - 1 onto itself, the same for the same size and key.

    A Feistel network is one-to-one on the powers of four whatever its round function; where it leads out of range, it
    is walked on until it leads back in, which takes less than four rounds of it on average. Time and memory do not
    depend on the size.
    """

    size: int
    half: int
    keys: tuple[int, ...]

    @classmethod
    def of(cls, size: int, *key: str | int) -> "Permutation":
        """The permutation that `key` names."""
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1")
        digest = hashlib.sha512(repr(key).encode()).digest()
        keys = tuple(int.from_bytes(digest[8 * one : 8 * one + 8], "big") for one in range(_ROUNDS))
        return cls(size, max(1, ((size - 1).bit_length() + 1) // 2), keys)

    def __call__(self, place: int) -> int:
        """Where `place` goes."""
        if not 0 <= place < self.size:
            raise ValueError(f"place {place} is not in 0 ... {self.size - 1}")
        mask = (1 << self.half) - 1
        while True:
            left, right = place >> self.half, place & mask
            for key in self.keys:
                left, right = right, left ^ (_scatter(right ^ key) & mask)
            place = left << self.half | right
            if place < self.size:
                return place


def _scatter(word: int) -> int:
    """A word in which every bit depends on all bits of the given one."""
    word = (word * 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ word >> 32) * 0xD6E8FEB86659FD93) & _WORD
    return word ^ word >> 32


shuffled = lru_cache(maxsize=4096)(Permutation.of)
"""`Permutation.of`, kept for the next place: training asks for many places of few permutations."""
