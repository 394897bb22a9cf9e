"""Before/after pairs, for supervised fine-tuning alone: the one place that hands right answers to training.

What trains without pairs works with `nopair.types.EditBatch`, which has no field for an answer; a pair is another type,
and the contracts in pyproject.toml say who may import it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.errors import DataError
from nopair.world.edits import CATEGORIES, Edit, draw_category, require_mixture, sample_edit
from nopair.world.render import render_batch


@dataclass(frozen=True, slots=True)
class PairBatch:
    """Edits with their right answers, RGB in [0, 1]."""

    reference: Float[Tensor, "batch 3 height width"]
    target: Float[Tensor, "batch 3 height width"]
    instructions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PairSource:
    """`count` pairs, over and over; pair `index` depends on the other fields and `index` modulo `count` only.

    All are of the training split. What an instruction leaves open (where in its cell a new thing stands) is arbitrary
    in the target.

    seed: picks the pairs; those of a smaller `count` are the first of a larger one.
    device: where the images are put.
    categories, nothing_share: as for `nopair.world.records.WorldSource`.

    Raises:
        DataError: no pair, no category, an unknown one, or a share outside [0, 1].
    """

    seed: int
    count: int
    device: torch.device
    categories: tuple[str, ...] = CATEGORIES
    nothing_share: float = 0.02

    def __post_init__(self) -> None:
        require_mixture(self.categories, self.nothing_share)
        if self.count < 1:
            raise DataError(f"expected at least one pair, not {self.count}")

    def batch(self, indices: Sequence[int]) -> PairBatch:
        """Those pairs, stacked; any non-negative numbers."""
        edits = [self._edit(index % self.count) for index in indices]
        return PairBatch(
            reference=render_batch([edit.source for edit in edits]).to(self.device),
            target=render_batch([edit.target for edit in edits]).to(self.device),
            instructions=tuple(edit.instruction for edit in edits),
        )

    def _edit(self, index: int) -> Edit:
        rng = random.Random(f"pairs {self.seed} {index}")
        return sample_edit(rng, draw_category(rng, self.categories, self.nothing_share), held_out=False)
