"""The teacher as the student is matched to it: under the edited caption, guided by each sample's scale."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.backbones.base import Backbone
from nopair.config import EditPhaseConfig
from nopair.method.flow import guided
from nopair.training.parts import Piece
from nopair.types import EditBatch, Velocity


def guided_teacher(
    teacher: Backbone, config: EditPhaseConfig, piece: Piece, context: Float[Tensor, "b c h w"] | None, index: int
) -> Velocity:
    """Its velocity at step `index` for a piece of which it sees `context`. Encodes what guidance leads away from."""
    scales = _guidance(config, piece.batch.categories, index)
    negative = teacher.encode_text(_negatives(config, piece.batch))

    def real(x: Float[Tensor, "b c h w"], time: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        conditional = teacher.velocity(x, time, piece.caption, context)
        if set(scales) == {1.0}:  # what guidance would lead away from does not count
            return conditional
        return guided(conditional, teacher.velocity(x, time, negative, context), torch.tensor(scales).to(x))

    return real


def _guidance(config: EditPhaseConfig, categories: Sequence[str], index: int) -> list[float]:
    """Guidance scale of each sample at a step."""
    left = 1.0 if not config.steps else 1 - (1 - config.guidance_final_fraction) * index / config.steps
    return [1 + left * (config.guidance.get(name, config.guidance["default"]) - 1) for name in categories]


def _negatives(config: EditPhaseConfig, batch: EditBatch) -> tuple[str, ...]:
    """What guidance leads away from: the recipe's prompt, or the references as they are."""
    prompt = config.negative_prompt
    return batch.captions if prompt is None else (prompt,) * len(batch)
