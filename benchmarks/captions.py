"""What the tiny base draws of the captions that training shows its teacher: of one whole, and of one without places.

The captions are the edited ones of held-out edits, local and free-form. The oracle reads the samples; places do not
count, as one of the two kinds of caption does not tell them. Settings as on the base's card.
"""

import argparse
from collections import Counter
from collections.abc import Sequence

import torch

from nopair.backbones.base import Backbone
from nopair.config import load_recipe
from nopair.tiny.quality import sample_base
from nopair.training.run import compose_teacher
from nopair.world.cases import held_out_cases
from nopair.world.edits import CATEGORIES, FREE_FORM
from nopair.world.oracle import parse
from nopair.world.records import to_record
from nopair.world.scenes import CAPTIONS, Scene, describe_background, describe_thing

GUIDANCE, STEPS, BATCH = 3.0, 20, 48
MARKS = ("things there", "background", "no other", "all")


def marks(wanted: Scene, found: Scene) -> tuple[float, float, float, float]:
    """Share of the things that are there as told, and whether the background is, whether nothing else is, and all."""
    asked, seen = (Counter(map(describe_thing, scene.things)) for scene in (wanted, found))
    things = (asked & seen).total() / asked.total() if asked else 1.0
    ground = describe_background(wanted.background) == describe_background(found.background)
    alone = not seen - asked
    return things, float(ground), float(alone), float(things == 1.0 and ground and alone)


def drawn(base: Backbone, captions: Sequence[str], seed: int) -> list[Scene]:
    """The base's samples, as the oracle reads them."""
    scenes: list[Scene] = []
    for i in range(0, len(captions), BATCH):
        told = list(captions[i : i + BATCH])
        scenes += parse(sample_base(base, told, guidance=GUIDANCE, steps=STEPS, seed=seed + i))
    return scenes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-category", type=int, default=12)
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    base, _ = compose_teacher(load_recipe("demo", []), "cpu", 0)
    kinds = {
        "local": (arguments.per_category, tuple(name for name in CATEGORIES if name != "nothing")),
        "free-form": (8 * arguments.per_category, (FREE_FORM,)),
    }
    print(f"{'':28}" + "".join(f"{name:>14}" for name in MARKS))
    for kind, (count, categories) in kinds.items():
        edits = held_out_cases(arguments.seed, count, categories)
        for told, describe in CAPTIONS.items():
            found = drawn(base, [to_record(edit, describe).edited_caption for edit in edits], arguments.seed)
            table = [marks(edit.target, scene) for edit, scene in zip(edits, found, strict=True)]
            means = torch.tensor(table).mean(dim=0).tolist()
            print(f"{f'{kind}, {told} ({len(edits)})':28}" + "".join(f"{mean:14.3f}" for mean in means), flush=True)


if __name__ == "__main__":
    main()
