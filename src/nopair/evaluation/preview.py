"""A look at a recipe's teacher before anything is trained under it: what it makes of the edited captions of the data.

An editor learns to draw what its teacher draws, so what the teacher gets wrong here no training will get right.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from rich.console import Console
from rich.progress import track
from torch import Tensor

from nopair.backbones.base import Backbone
from nopair.config import Recipe
from nopair.data.files import check_output
from nopair.data.images import save_image
from nopair.device import enough_memory
from nopair.evaluation.grid import FAINT, GAP, HEADER, INK, TILE, font, left, pixels_of, sheet, tile, wrap
from nopair.method.matching import redrawn
from nopair.training.keeping import CONTEXTS, estimated
from nopair.training.metrics import say
from nopair.training.parts import Draws, Piece
from nopair.training.run import LESS, compose_teacher
from nopair.training.teaching import guided_teacher
from nopair.types import EditBatch

COLUMNS: Final = ("reference", "instruction, edited caption", "the teacher, from noise", "its estimate of the edit")
_NAME: Final = "preview"
"""Of the draws."""


@dataclass(frozen=True, eq=False, slots=True)
class Look:
    """One record and what the teacher makes of it; images are RGB in [0, 1]."""

    instruction: str
    edited_caption: str
    reference: Float[Tensor, "3 height width"]
    drawn: Float[Tensor, "3 height width"]
    """From noise, as matching asks it at the first step: caption, guidance, and what it sees of the reference."""
    estimate: Float[Tensor, "3 height width"]
    """What stays of the reference, and the edit where the teacher sees one (Eq. 22)."""


def preview(recipe: Recipe, path: Path, count: int, steps: int, device: str, console: Console) -> None:
    """Write the picture of `count` records, at `steps` calls of the teacher each.

    Raises:
        OutputError: it cannot be written.
        ModelError, DataError: see `compose_teacher`.
    """
    check_output(path)
    with tempfile.TemporaryDirectory() as scratch, enough_memory(LESS):
        data = recipe.data.model_copy(update={"cache": None})
        alone = recipe.model_copy(update={"output": scratch, "data": data})
        teacher, records = compose_teacher(alone, device, count)
        each = track(enumerate(records), "drawing", len(records), console=Console(stderr=True), transient=True)
        looks = [look(teacher, recipe, record, index, steps) for index, record in each]
    save_image(draw_looks(looks), path)
    say(console, f"what {recipe.base.path} makes of {count} edited captions is in {path}")
    for row, one in enumerate(looks, 1):
        if not f"{one.instruction}{one.edited_caption}".isascii():  # the picture's font has no other letters
            say(console, f"row {row}: {one.instruction} | {one.edited_caption}")


@torch.no_grad()
def look(teacher: Backbone, recipe: Recipe, record: EditBatch, index: int, steps: int) -> Look:
    """At a batch of one record, as a large teacher has no room for more; `index` says which random numbers it has."""
    config = recipe.npedit
    reference = teacher.encode_image(record.reference)
    texts = teacher.encode_text(record.instructions), teacher.encode_text(record.edited_captions)
    piece = Piece(record, reference, *texts, Draws(recipe.seed, _NAME, [index], reference))
    velocity = guided_teacher(teacher, config, piece, CONTEXTS[config.context](teacher, config, piece), 0)
    drawn = redrawn(reference, velocity, torch.ones(1).to(reference), piece.draws.noise(), steps)
    images = (record.reference, *map(teacher.decode_latents, (drawn, estimated(teacher, config, piece))))
    return Look(
        record.instructions[0], record.edited_captions[0], *(one[0].float().clamp(0, 1).cpu() for one in images)
    )


def draw_looks(looks: list[Look]) -> Float[Tensor, "3 rows columns"]:
    """A row for each, RGB in [0, 1]; columns as in `COLUMNS`."""
    canvas, draw = sheet(COLUMNS, len(looks) * (TILE + GAP))
    for row, one in enumerate(looks):
        top = HEADER + row * (TILE + GAP)
        for column, pixels in ((0, one.reference), (2, one.drawn), (3, one.estimate)):
            canvas.paste(tile(pixels), (left(column), top))
        for start, text, colour in ((0, one.instruction, INK), (TILE // 2, one.edited_caption, FAINT)):
            for line, words in enumerate(wrap(draw, text, font(13))):
                draw.text((left(1), top + start + 16 * line), words, colour, font(13))
    return pixels_of(canvas)
