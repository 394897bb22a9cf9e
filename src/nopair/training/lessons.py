"""What warm-up teaches: to copy the reference, or what stays of it, with a hole where the edit will be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from nopair.training.keeping import unedited_context
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


def without_what_is_edited(parts: Parts, indices: Sequence[int]) -> Lesson:
    """The reference with a hole where the teacher sees the edit (Eq. 22), under the instruction: to see what it means.

    At two calls of the teacher, which is asked as the recipe's section npedit says.
    """
    piece = Piece.of(parts, WARMUP, indices)
    goal = unedited_context(parts.roles.teacher, parts.recipe.npedit, piece)
    return Lesson(piece.reference, piece.instruction, goal, piece.draws)


LESSONS: Final[dict[str, Teach]] = {"reference": whole, "unedited": without_what_is_edited}
