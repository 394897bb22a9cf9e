"""Planned memory and operations of every shipped recipe: the table of docs/planning.md. Nothing is loaded."""

from nopair.config import load_recipe, recipe_names
from nopair.planning.plan import GIB, plan

RANKS = {"8x80gb": 8}
"""How many cards a tier has, where it is not one."""


def main() -> None:
    """Print a row for each recipe."""
    print("| recipe | judge | trained | planned GiB | TFLOP per npedit step |\n|---|---|---|---|---|")
    for name in recipe_names():
        recipe = load_recipe(name)
        ranks = RANKS.get(name.rpartition("-")[2], 1)
        found = plan(recipe, ranks=ranks, switches=False)
        judge = recipe.judge.path.rpartition("/")[2] + (f", {recipe.judge.bits} bits" if recipe.judge.bits else "")
        trained = f"{found.trainable['student'] / 1e6:.0f}M, {recipe.base.roles}"
        share = " each" if ranks > 1 else ""
        flops = found.step_flops["npedit"] / 1e12
        print(
            f"| `{name}` | {judge} | {trained} | {found.peak_bytes / GIB:.1f}{share} | {flops:.3g}{share} |", flush=True
        )


if __name__ == "__main__":
    main()
