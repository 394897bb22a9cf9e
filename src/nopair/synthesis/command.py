"""`nopair synthesize`: reads the recipe, runs the stages here or on a Ray cluster, prints what they tell."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nopair.errors import ConfigError
from nopair.synthesis.recipe import load_synthesis
from nopair.synthesis.run import Until, synthesize


def run_synthesis(
    photos: Path, dataset: Path, recipe: str, overrides: Sequence[str], until: Until, parts: int | None
) -> None:
    """In `parts` on a Ray cluster, or here if that is None.

    For errors see `nopair.synthesis.run.synthesize` and `nopair.settings.load`.
    """
    settings = load_synthesis(recipe, overrides)
    if parts is None:
        asyncio.run(synthesize(photos, dataset, settings, Console(), until))
        return
    if until != "write":
        raise ConfigError(f"--until {until} is not for --ray, which runs all stages of a part at once; leave one out")
    from nopair.synthesis.cluster import synthesize_on_ray

    synthesize_on_ray(photos, dataset, settings, Console(), parts)
