"""What is to stay of a reference: everything, or what the teacher sees no edit in.

A sample is held to it, teacher and fake score may see it, and warm-up may start from it.
"""

from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.backbones.base import Backbone
from nopair.config import EditPhaseConfig
from nopair.method.objective import first_sight, without_edit
from nopair.training.parts import Piece
from nopair.types import Velocity

Kept = Callable[[Backbone, EditPhaseConfig, Piece], Float[Tensor, "b 1 #h #w"]]
"""How much of each place of a piece's references is to stay, 0 to 1."""
Context = Callable[[Backbone, EditPhaseConfig, Piece], Float[Tensor, "b c h w"] | None]
"""Latents that teacher and fake score see as the reference of a piece, or None if they see none."""
BLANK: Final = 0.5
"""Grey, in place of what is edited."""


def everywhere(teacher: Backbone, config: EditPhaseConfig, piece: Piece) -> Float[Tensor, "b 1 1 1"]:
    """All of it."""
    return torch.ones_like(piece.reference[:, :1, :1, :1])


def unedited(teacher: Backbone, config: EditPhaseConfig, piece: Piece) -> Float[Tensor, "b 1 h w"]:
    """What the teacher would paint alike under both captions (Eq. 22), at two calls of it. Draws from the piece's
    numbers."""
    return first_sight(*_look(teacher, config, piece))[0]


@torch.no_grad()
def estimated(teacher: Backbone, config: EditPhaseConfig, piece: Piece) -> Float[Tensor, "b c h w"]:
    """The references, with the teacher's estimate of the edit where it sees one. Calls and draws as `unedited`."""
    return first_sight(*_look(teacher, config, piece))[1].to(piece.reference)


def _look(
    teacher: Backbone, config: EditPhaseConfig, piece: Piece
) -> tuple[Float[Tensor, "b c h w"], Velocity, Velocity, Float[Tensor, " b"], Float[Tensor, "b c h w"], float]:
    """How the teacher is asked where the edit is: the arguments of Eq. 22."""
    described = teacher.encode_text(piece.batch.captions)
    times, default = config.preserve_time, config.preserve_time["default"]
    return (
        piece.reference,
        lambda x, t: teacher.velocity(x, t, piece.caption),
        lambda x, t: teacher.velocity(x, t, described),
        torch.tensor([times.get(name, default) for name in piece.batch.categories]).to(piece.reference),
        piece.draws.noise(),
        config.preserve_width,
    )


KEPT: Final[dict[str, Kept]] = {"everywhere": everywhere, "unedited": unedited}


def no_context(teacher: Backbone, config: EditPhaseConfig, piece: Piece) -> None:
    """None of it."""


@torch.no_grad()
def unedited_context(teacher: Backbone, config: EditPhaseConfig, piece: Piece) -> Float[Tensor, "b c h w"]:
    """The references with a hole where the teacher sees an edit. Calls and draws as `unedited`."""
    blank = teacher.encode_image(torch.full_like(piece.batch.reference[:1], BLANK))
    return without_edit(
        piece.reference, blank.to(piece.reference).expand_as(piece.reference), unedited(teacher, config, piece)
    )


CONTEXTS: Final[dict[str, Context]] = {"none": no_context, "unedited": unedited_context}
