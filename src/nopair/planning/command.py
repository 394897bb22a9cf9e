"""What `nopair plan` does: plan, then print."""

import json
from typing import Literal

from rich.console import Console

from nopair.config import Recipe
from nopair.planning.cards import Throughput
from nopair.planning.plan import plan
from nopair.planning.table import print_plan


def show_plan(
    recipe: Recipe,
    speed: Throughput | None,
    ranks: int,
    device: Literal["cuda", "cpu"],
    *,
    switches: bool,
    as_json: bool,
) -> None:
    """Print the plan of a recipe, as tables or as JSON.

    Raises:
        ModelError, JudgeError, ConfigError: see `nopair.planning.plan.plan`.
    """
    found = plan(recipe, ranks=ranks, device=device, switches=switches)
    if as_json:
        print(json.dumps(found.as_json(speed), indent=2))
    else:
        print_plan(found, speed, Console())
