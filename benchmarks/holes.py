"""What a teacher knows that sees the reference with a hole (Eq. 22, `npedit.context`), on held-out scenes.

Two tables. The base alone as an editor: told the edited caption, it fills the hole in that it found itself. And, where
the shipped editor fails, the cosine between the teacher's clean estimate less the editor's output and the right answer
less that output, with the caption alone and with the hole, too.
"""

import argparse
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nopair.backbones.base import Backbone
from nopair.config import load_recipe
from nopair.editor import Editor
from nopair.method.flow import guided, interpolate, shift_time, to_x0
from nopair.training.keeping import CONTEXTS
from nopair.training.parts import Draws, Piece
from nopair.training.run import compose
from nopair.world.cases import held_out_cases
from nopair.world.edits import CATEGORIES, Edit
from nopair.world.oracle import score_batch
from nopair.world.records import to_batch, to_record
from nopair.world.render import render_batch

HOLES = ["npedit.preserve_width=0.24", "npedit.preserve_time={default: 0.75, background: 0.5}"]
STEPS = 8
RIGHT = 0.95
"""Least overall mark of an output that is not counted as a failure."""

Latents = Float[Tensor, "b c h w"]


def encoded(teacher: Backbone, edits: Sequence[Edit], seed: int) -> Piece:
    """The edits as a phase sees them."""
    batch = to_batch([to_record(edit) for edit in edits])
    reference = teacher.encode_image(batch.reference)
    texts = (teacher.encode_text(batch.instructions), teacher.encode_text(batch.edited_captions))
    return Piece(batch, reference, *texts, Draws(seed, "holes", range(len(edits)), reference))


def painted(teacher: Backbone, piece: Piece, context: Latents, scale: float) -> Latents:
    """The edited captions around what stays, by Euler's method in `STEPS` steps, with guidance away from no words."""
    nothing = teacher.encode_text([""] * len(piece.batch))
    scales = torch.full((len(piece.batch),), scale)
    times = shift_time(torch.linspace(1, 0, STEPS + 1), teacher.shift_for(64, 64, STEPS))
    x = piece.draws.noise()
    for time, following in pairwise(times):
        t = torch.full((len(x),), float(time))
        v = teacher.velocity(x, t, piece.caption, context)
        x = x + (following - time) * guided(v, teacher.velocity(x, t, nothing, context), scales)
    return x


def print_row(name: str, values: Sequence[float]) -> None:
    """A line of a table."""
    print(f"{name:28}" + "".join(f"{value:9.3f}" for value in values), flush=True)


@torch.no_grad()
def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-category", type=int, default=16)
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    recipe = load_recipe("demo", HOLES)
    teacher = compose(recipe).roles.teacher
    edits = held_out_cases(arguments.seed, arguments.per_category, [name for name in CATEGORIES if name != "nothing"])
    piece = encoded(teacher, edits, arguments.seed)
    context = CONTEXTS["unedited"](teacher, recipe.npedit, piece)
    assert context is not None

    editor = Editor.load("tiny:editor")
    seeds = [arguments.seed * 1_000_003 + index for index in range(len(edits))]
    edited = editor.edit(piece.batch.reference, list(piece.batch.instructions), seeds)
    print(f"{len(edits)} edits of seed {arguments.seed}")
    print(f"{'':28}{'success':>9}{'preserv.':>9}{'realism':>9}{'overall':>9}")
    outputs = {"shipped editor": edited}
    for scale in (1.0, 1.5, 2.5):
        latents = painted(teacher, piece, context, scale)
        outputs[f"base with a hole, guidance {scale}"] = teacher.decode_latents(latents).clamp(0, 1)
    scores = {name: score_batch(edits, pixels) for name, pixels in outputs.items()}
    for name, marks in scores.items():
        rows = torch.tensor([(one.success, one.preservation, one.realism, one.overall) for one in marks])
        print_row(name, rows.mean(dim=0).tolist())

    wrong = [index for index, one in enumerate(scores["shipped editor"]) if one.overall < RIGHT]
    failed = encoded(teacher, [edits[index] for index in wrong], arguments.seed)
    seen = CONTEXTS["unedited"](teacher, recipe.npedit, failed)
    output = teacher.encode_image(edited[wrong])
    way = (teacher.encode_image(render_batch([edits[index].target for index in wrong])) - output).flatten(1)
    print(f"\n{len(wrong)} of them fail; cosine with the way to the right answer")
    print(f"{'t':28}{'caption':>9}{'and hole':>9}")
    for time in (0.2, 0.4, 0.6, 0.8, 0.95):
        t, noise = torch.full((len(wrong),), time), failed.draws.noise()
        x = interpolate(output, noise, t)
        estimates = [to_x0(x, teacher.velocity(x, t, failed.caption, reference), t) for reference in (None, seen)]
        print_row(f"{time}", [cosine_similarity((one - output).flatten(1), way).mean().item() for one in estimates])


if __name__ == "__main__":
    main()
