"""Where a sample is held to its reference: everywhere, or where the teacher sees no edit."""

from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.backbones.base import Backbone
from nopair.config import EditPhaseConfig
from nopair.method.objective import kept_places
from nopair.training.parts import Piece

Kept = Callable[[Backbone, EditPhaseConfig, Piece], Float[Tensor, "b 1 #h #w"]]
"""How much of each place of a piece's references is to stay, 0 to 1."""


def everywhere(teacher: Backbone, config: EditPhaseConfig, piece: Piece) -> Float[Tensor, "b 1 1 1"]:
    """All of it."""
    return torch.ones_like(piece.reference[:, :1, :1, :1])


def unedited(teacher: Backbone, config: EditPhaseConfig, piece: Piece) -> Float[Tensor, "b 1 h w"]:
    """What the teacher would paint alike under both captions (Eq. 22), at two calls of it. Draws from the piece's
    numbers."""
    described = teacher.encode_text(piece.batch.captions)
    return kept_places(
        piece.reference,
        lambda x, t: teacher.velocity(x, t, piece.caption),
        lambda x, t: teacher.velocity(x, t, described),
        torch.full_like(piece.reference[:, 0, 0, 0], config.preserve_time),
        piece.draws.noise(),
        config.preserve_width,
    )


KEPT: Final[dict[str, Kept]] = {"everywhere": everywhere, "unedited": unedited}
