"""How well the teacher says where an edit is, without pairs: Eq. 22 against the true edit on held-out scenes."""

import argparse
import math
from collections import defaultdict

import torch

from nopair.config import load_recipe
from nopair.evaluation.audit.measures import auc
from nopair.training.keeping import unedited
from nopair.training.parts import Draws, Piece
from nopair.training.run import compose
from nopair.world.cases import held_out_cases
from nopair.world.edits import CATEGORIES
from nopair.world.records import to_batch, to_record
from nopair.world.render import render_batch

CHANGED = 0.15
"""Mean difference of two latents, in their standard deviations, above which a place differs."""


@torch.no_grad()
def main() -> None:
    """One line per kind of edit: area under the curve, and what share of kept and of edited places is held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-category", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "overrides", nargs="*", help="of the demo recipe, such as 'npedit.preserve_time={default: 0.9}'"
    )
    arguments = parser.parse_args()
    recipe = load_recipe("demo", arguments.overrides)
    teacher = compose(recipe).roles.teacher
    edits = held_out_cases(arguments.seed, arguments.per_category, [name for name in CATEGORIES if name != "nothing"])
    batch = to_batch([to_record(edit) for edit in edits])
    reference = teacher.encode_image(batch.reference)
    after = teacher.encode_image(render_batch([edit.target for edit in edits]))
    draws = Draws(arguments.seed, "places", range(len(edits)), reference)
    texts = (teacher.encode_text(batch.instructions), teacher.encode_text(batch.edited_captions))
    kept = unedited(teacher, recipe.npedit, Piece(batch, reference, *texts, draws))[:, 0]
    changed = (reference - after).abs().mean(dim=1) > CHANGED
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for edit, held, wrong in zip(edits, kept, changed, strict=True):
        area = auc((-held).flatten().tolist(), wrong.flatten().tolist())
        rows[edit.category].append(
            (math.nan if area is None else area, held[~wrong].mean().item(), held[wrong].mean().item())
        )
    print(f"{'':12} {'area under curve':>17} {'kept: k':>8} {'edited: k':>10}")
    for category, values in rows.items():
        area, same, other = torch.tensor(values).nanmean(dim=0).tolist()
        print(f"{category:12} {area:17.3f} {same:8.2f} {other:10.2f}")


if __name__ == "__main__":
    main()
