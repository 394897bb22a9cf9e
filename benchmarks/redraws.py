"""What a teacher makes of an editor's outputs (Eq. 32, `npedit.redraw_weight`), on held-out scenes.

The outputs are noised to t, and the base takes them back in a few calls, told the edited caption: alone, and around
what stays of the reference (Eq. 22). Marks above the editor's own say that there is something to learn.
"""

import argparse

import torch
from holes import HOLES, encoded, print_row

from nopair.config import load_recipe
from nopair.editor import Editor
from nopair.method.matching import redrawn
from nopair.training.keeping import CONTEXTS
from nopair.training.run import compose
from nopair.weights import resolve
from nopair.world.cases import held_out_cases
from nopair.world.oracle import score_batch, summarise

MARKS = ("success", "preservation", "realism", "overall")


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny:editor")
    parser.add_argument("--per-category", type=int, default=16)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    recipe = load_recipe("demo", HOLES)
    teacher, editor = compose(recipe).roles.teacher, Editor.load(resolve(arguments.model))
    edits = held_out_cases(arguments.seed, arguments.per_category)
    piece = encoded(teacher, edits, arguments.seed)
    seeds = [arguments.seed * 1_000_003 + index for index in range(len(edits))]
    edited = editor.edit(piece.batch.reference, list(piece.batch.instructions), seeds)

    def show(name: str, pixels: torch.Tensor) -> None:
        found = summarise(edits, score_batch(edits, pixels))
        print_row(name, [found[mark] for mark in MARKS])

    print(f"{len(edits)} edits of seed {arguments.seed}, {arguments.steps} calls of the teacher")
    print_row_names()
    show("the editor", edited)
    latents = teacher.encode_image(edited)
    contexts = {"caption": None, "caption and hole": CONTEXTS["unedited"](teacher, recipe.npedit, piece)}
    for name, context in contexts.items():
        for time in (0.25, 0.5, 0.75, 0.9):
            t = torch.full((len(edits),), time)
            made = redrawn(
                latents,
                lambda x, at, context=context: teacher.velocity(x, at, piece.caption, context),
                t,
                piece.draws.noise(),
                arguments.steps,
            )
            show(f"{name}, t = {time}", teacher.decode_latents(made).clamp(0, 1))


def print_row_names() -> None:
    """The head of the table."""
    print(f"{'':28}" + "".join(f"{name[:8]:>9}" for name in MARKS))


if __name__ == "__main__":
    main()
