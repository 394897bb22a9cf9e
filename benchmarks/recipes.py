"""Planned memory and operations of every shipped recipe for a published base, and of an edit by its editor.

The tables of docs/planning.md. Nothing is loaded.
"""

from functools import cache

import torch

from nopair.config import Recipe, load_recipe, recipe_names
from nopair.editor import Editor, Settings
from nopair.planning.architecture import architecture
from nopair.planning.bases import shape_backbone
from nopair.planning.ledger import Ledger
from nopair.planning.plan import GIB, plan
from nopair.planning.records import INSTRUCTION_WORDS, sizes_of
from nopair.planning.shapes import META, ShapesOnly
from nopair.planning.words import words
from nopair.weights import PREFIX

RANKS = {"8x80gb": 8}
"""How many cards a tier has, where it is not one."""


@cache
def edit_cost(base: str, height: int, width: int, steps: int) -> tuple[int, int, int]:
    """Bytes of an editor's weights in bfloat16, bytes at the worst moment of editing one photo, and operations of it.

    The editor's own code runs on a base without weights.
    """
    backbone = shape_backbone(architecture(base), torch.bfloat16)
    settings = Settings(
        steps=steps, shift=backbone.shift_for(height, width, steps), height=height, width=width, questions="none"
    )
    ledger = Ledger("meta")
    modules = [value for value in vars(backbone).values() if isinstance(value, torch.nn.Module)]
    ledger.own((tensor for module in modules for tensor in (*module.parameters(), *module.buffers())), "weights")
    weights = ledger.bytes_of("weights")
    with ShapesOnly(), ledger:
        ledger.stage("edit")
        Editor(backbone, settings).edit(torch.empty(1, 3, height, width, device=META), [words(INSTRUCTION_WORDS)], [0])
    stage = ledger.stages["edit"]
    return weights, stage.peak_bytes, sum(stage.flops.values())


def cost_of(recipe: Recipe) -> tuple[int, int, int]:
    """`edit_cost` of a recipe's editor."""
    height, width = sizes_of(recipe)[0]
    return edit_cost(recipe.base.path, height, width, recipe.sampling.steps)


def main() -> None:
    """Print a row for each recipe, and one for each base."""
    print("| recipe | judge | trained | planned GiB | TFLOP per npedit step |\n|---|---|---|---|---|")
    all_recipes = {name: load_recipe(name) for name in recipe_names()}
    recipes = {name: recipe for name, recipe in all_recipes.items() if not recipe.base.path.startswith(PREFIX)}
    for name, recipe in recipes.items():
        ranks = RANKS.get(name.rpartition("-")[2], 1)
        found = plan(recipe, ranks=ranks, switches=False)
        judge = recipe.judge.path.rpartition("/")[2] + (f", {recipe.judge.bits} bits" if recipe.judge.bits else "")
        trained = f"{found.trainable['student'] / 1e6:.0f}M, {recipe.base.roles}"
        share = " each" if ranks > 1 else ""
        flops = found.step_flops["npedit"] / 1e12
        print(
            f"| `{name}` | {judge} | {trained} | {found.peak_bytes / GIB:.1f}{share} | {flops:.3g}{share} |", flush=True
        )
    print("\n| editor of | weights, GiB | worst moment, GiB | TFLOP per edit |\n|---|---|---|---|")
    rows = {recipe.base.path: cost_of(recipe) for recipe in recipes.values()}
    for path, (weights, peak, flops) in rows.items():
        print(f"| {path} | {weights / GIB:.1f} | {peak / GIB:.1f} | {flops / 1e12:.3g} |")


if __name__ == "__main__":
    main()
