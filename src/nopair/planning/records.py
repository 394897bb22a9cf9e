"""Records whose images have no values."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch

from nopair.config import Recipe, WorldDataConfig
from nopair.config_data import PHOTO_CATEGORIES
from nopair.data.loader import Source
from nopair.data.order import Sizes
from nopair.judges.questions import DEFAULT, templates_for
from nopair.planning.shapes import META
from nopair.planning.words import words
from nopair.types import EditBatch
from nopair.world.records import WorldSource
from nopair.world.scenes import SIZE

INSTRUCTION_WORDS: Final = 24
CAPTION_WORDS: Final = 96
"""How long instructions and captions of photos are taken to be."""


@final
@dataclass(frozen=True)
class ShapesOfWorld:
    """The shapes world's own records, without values in their images."""

    world: WorldSource

    def batch(self, indices: Sequence[int]) -> EditBatch:
        """See `nopair.data.loader.Source`."""
        batch = self.world.batch(indices)
        return dataclasses.replace(batch, reference=torch.empty(batch.reference.shape, device=META))


@final
@dataclass(frozen=True)
class ShapesOfPhotos:
    """Photos of one size with texts of typical length. All are edits of a category that is judged by two questions
    about two images."""

    height: int
    width: int
    category: str

    def batch(self, indices: Sequence[int]) -> EditBatch:
        """See `nopair.data.loader.Source`."""
        count = len(indices)
        return EditBatch(
            reference=torch.empty(count, 3, self.height, self.width, device=META),
            instructions=(words(INSTRUCTION_WORDS),) * count,
            captions=(words(CAPTION_WORDS),) * count,
            edited_captions=(words(CAPTION_WORDS),) * count,
            categories=(self.category,) * count,
            subjects=("word",) * count,
        )


def sizes_of(recipe: Recipe) -> Sizes:
    """(height, width) in pixels of all that a recipe trains on; the first is the editor's, and that of samples."""
    data = recipe.data
    return ((SIZE, SIZE),) if isinstance(data, WorldDataConfig) else data.sizes


def shape_source(recipe: Recipe, *, held_out: bool) -> Source:
    """What stands for the records that a recipe trains on, all of its largest size, or those it shows."""
    data = recipe.data
    if not isinstance(data, WorldDataConfig):
        return ShapesOfPhotos(*(data.sizes[0] if held_out else max(data.sizes, key=math.prod)), _dearest(recipe))
    chosen: dict[str, Any] = {} if data.categories is None else {"categories": data.categories}
    return ShapesOfWorld(WorldSource(data.seed, held_out=held_out, nothing_share=data.nothing_share, **chosen))


def _dearest(recipe: Recipe) -> str:
    """The category with the largest guidance scale: without guidance, the teacher is asked only once."""
    scales = recipe.npedit.guidance
    judged_alike = [name for name in PHOTO_CATEGORIES if templates_for(name) == DEFAULT]
    return max(judged_alike, key=lambda name: scales.get(name, scales["default"]))
