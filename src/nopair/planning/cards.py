"""How fast known cards are on paper, to make operations into an estimate of time."""

import math
from dataclasses import dataclass
from typing import Final

from nopair.errors import ConfigError

EFFICIENCY: Final = 0.35
"""Share of a card's peak that training usually reaches; a guess, to be replaced by a measurement of one's own."""


@dataclass(frozen=True, slots=True)
class Card:
    """`tflops`: 10^12 operations a second on bfloat16 matrices, without sparsity. `gib`: memory."""

    tflops: float
    gib: float


CARDS: Final = {
    "rtx3090": Card(71.0, 24.0),
    "rtx4090": Card(165.0, 24.0),
    "rtx5090": Card(209.0, 32.0),
    "a6000": Card(155.0, 48.0),
    "l40s": Card(362.0, 48.0),
    "a100": Card(312.0, 80.0),
    "h100": Card(989.0, 80.0),
    "h200": Card(989.0, 141.0),
    "b200": Card(2250.0, 180.0),
}
"""Known cards, by their makers' data sheets."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Operations a second that a run is taken to reach: `tflops` on paper, times `efficiency`."""

    tflops: float
    efficiency: float = EFFICIENCY

    def seconds(self, flops: int) -> float:
        """Estimated time of so many operations."""
        return flops / (self.tflops * 1e12 * self.efficiency)


def throughput(card: str | None, tflops: float | None, efficiency: float | None = None) -> Throughput | None:
    """What was asked for on the command line, or None where neither a card nor a speed was named.

    Raises:
        ConfigError: both were named, or an unknown card, or an efficiency outside (0, 1], or one of neither.
    """
    if efficiency is not None and card is None and tflops is None:
        raise ConfigError("--efficiency is a share of a card's speed; add --card or --tflops")
    efficiency = EFFICIENCY if efficiency is None else efficiency
    if card is not None and tflops is not None:
        raise ConfigError("both --card and --tflops are given; leave out one")
    if not 0 < efficiency <= 1:
        raise ConfigError(f"--efficiency is {efficiency}, expected more than 0 and at most 1")
    if tflops is not None:
        if not 0 < tflops < math.inf:
            raise ConfigError(f"--tflops is {tflops}, expected more than 0, and a number")
        return Throughput(tflops, efficiency)
    if card is None:
        return None
    if card not in CARDS:
        raise ConfigError(f"--card {card} is not known; there are {', '.join(CARDS)}; or use --tflops")
    return Throughput(CARDS[card].tflops, efficiency)
