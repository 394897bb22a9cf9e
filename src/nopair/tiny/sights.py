"""What each patch of a scene shows, in words: dense labels that teach a vision tower the language model's language.

A token of the tower should have a large inner product with the embedding of each word that is true of its patch. The
language model then finds "the red circle" by matching words with patches, which it otherwise learns only after
thousands of steps.
"""

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from nopair.tiny.cases import PATCH
from nopair.world.parse import canonical
from nopair.world.render import cell_slices, jitter_index, thing_layers
from nopair.world.scenes import (
    BACKGROUND_COLOURS,
    OBJECT_COLOURS,
    OFFSETS,
    PATTERNS,
    PHASES,
    SHAPES,
    SIZE,
    SIZES,
    TEXTURES,
    Scene,
)

WORDS: Final = (SHAPES, OBJECT_COLOURS, TEXTURES, SIZES, BACKGROUND_COLOURS, PATTERNS)
"""Groups of words of which at most one is true of a patch."""
_ROWS: Final = SIZE // PATCH
PLACES: Final = (len(OFFSETS) ** 2, len(PHASES) ** 2, 2, _ROWS, _ROWS)
"""Sizes of the groups that have no words: jitter, phase, whether there is a thing at all, row and column of the patch.

Row and column are what a language model needs to find the same patch in another image."""
_SHARPNESS: Final = 16.0
"""Scale of the cosines that are read as logits."""
NONE: Final = -100
"""Label of a group that says nothing about a patch."""


def labels(scenes: Sequence[Scene]) -> Int[Tensor, "image patch group"]:
    """Index of the true word or place in every group, NONE where there is none."""
    return torch.stack([_labels(canonical(scene)) for scene in scenes])


def _labels(scene: Scene) -> Int[Tensor, "patch group"]:
    ground = scene.background
    grid = torch.full((_ROWS, _ROWS, len(WORDS) + len(PLACES)), NONE)
    grid[:, :, 4] = BACKGROUND_COLOURS.index(ground.colour)
    grid[:, :, 5] = PATTERNS.index(ground.pattern)
    grid[:, :, 7] = PHASES.index(ground.phase_y) * len(PHASES) + PHASES.index(ground.phase_x)
    grid[:, :, 8] = 0
    grid[:, :, 9] = torch.arange(_ROWS)[:, None]
    grid[:, :, 10] = torch.arange(_ROWS)[None]
    for thing in scene.things:
        rows, columns = cell_slices(thing.cell)
        covered = torch.zeros(1, SIZE, SIZE)
        covered[0, rows, columns] = thing_layers(thing)[0]
        seen = F.avg_pool2d(covered, PATCH)[0] > 0.25
        grid[:, :, :9][seen] = torch.tensor(
            [
                SHAPES.index(thing.shape),
                OBJECT_COLOURS.index(thing.colour),
                TEXTURES.index(thing.texture),
                SIZES.index(thing.size),
                NONE,
                NONE,
                jitter_index(thing.dx, thing.dy),
                NONE,
                1,
            ]
        )
    return grid.flatten(0, 1)


class Sight(nn.Module):
    """Reads image tokens as words, by inner products with the language model's own embeddings, and as places."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, width: int) -> None:
        super().__init__()
        self.ids = [[word_id(tokenizer, word) for word in group] for group in WORDS]
        self.place = nn.Linear(width, sum(PLACES))

    def forward(
        self,
        tokens: Float[Tensor, "image patch d"],
        embeddings: Float[Tensor, "vocabulary d"],
        truth: Int[Tensor, "image patch group"],
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy over the groups."""
        # Directions only: a tower that may grow its tokens to be surer drowns all that the language model adds to them.
        tokens = F.normalize(tokens, dim=2)
        words = F.normalize(embeddings, dim=1) * _SHARPNESS
        readings = [tokens @ words[ids].T for ids in self.ids]
        readings += (self.place(tokens) * _SHARPNESS).split(PLACES, dim=2)
        losses = [
            F.cross_entropy(reading.flatten(0, 1), truth[:, :, group].flatten(), ignore_index=NONE)
            for group, reading in enumerate(readings)
        ]
        return torch.stack(losses).nanmean()


def word_id(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """The token of a word of the world, in the middle of a sentence."""
    ids = tokenizer.encode(f" {word}", add_special_tokens=False)
    assert len(ids) == 1, f"{word} is {len(ids)} tokens"
    return ids[0]
