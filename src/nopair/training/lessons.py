"""What warm-up teaches: to copy the reference, or what stays of it and what the teacher takes the edit for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.training.keeping import estimated
from nopair.training.parts import Draws, Parts, Piece
from nopair.types import Text

WARMUP: Final = "warmup"
"""Name of the phase, of which the draws are."""


@dataclass(frozen=True, eq=False, slots=True)
class Lesson:
    """Records as warm-up sees them: reference and text go in, `goal` comes out (Eq. 14). Latents."""

    reference: Float[Tensor, "b c h w"]
    text: Text
    goal: Float[Tensor, "b c h w"]
    draws: Draws


Teach = Callable[[Parts, Sequence[int]], Lesson]
"""Makes a lesson of records."""


def whole(parts: Parts, indices: Sequence[int]) -> Lesson:
    """The reference itself, under its own caption: the student goes on listening to text while it learns to copy."""
    batch, student = parts.source.batch(indices), parts.roles.student
    with torch.no_grad():
        reference = student.encode_image(batch.reference)
    draws = Draws(parts.recipe.seed, WARMUP, indices, reference)
    return Lesson(reference, student.encode_text(batch.captions), reference, draws)


def estimate(parts: Parts, indices: Sequence[int]) -> Lesson:
    """What stays of the reference, and the teacher's estimate of the edit (Eq. 22), under the instruction.

    At two calls of the teacher, which is asked as the recipe's section npedit says.
    """
    piece = Piece.of(parts, WARMUP, indices)
    goal = estimated(parts.roles.teacher, parts.recipe.npedit, piece)
    return Lesson(piece.reference, piece.instruction, goal, piece.draws)


LESSONS: Final[dict[str, Teach]] = {"reference": whole, "estimate": estimate}
