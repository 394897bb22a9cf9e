"""`nopair synthesize`: reads the recipe, runs the stages here or on a Ray cluster, prints what they tell."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nopair.data.shards import CARD
from nopair.errors import ConfigError
from nopair.synthesis.complete import complete
from nopair.synthesis.recipe import load_synthesis
from nopair.synthesis.run import Until, synthesize


def run_synthesis(
    photos: Path, dataset: Path, recipe: str, overrides: Sequence[str], until: Until, parts: int | None
) -> None:
    """In `parts` on a Ray cluster, or here if that is None. A dataset in place of photos is completed.

    For errors see `nopair.synthesis.run.synthesize`, `nopair.synthesis.complete.complete` and
    `nopair.settings.load`.
    """
    settings = load_synthesis(recipe, overrides)
    if (photos / CARD).is_file():
        if parts is not None:
            raise ConfigError("--ray is for photos, not for completing a dataset; leave it out")
        asyncio.run(complete(photos, dataset, settings, Console(), until))
        return
    if parts is None:
        asyncio.run(synthesize(photos, dataset, settings, Console(), until))
        return
    if until != "write":
        raise ConfigError(f"--until {until} is not for --ray, which runs all stages of a part at once; leave one out")
    from nopair.synthesis.cluster import synthesize_on_ray

    synthesize_on_ray(photos, dataset, settings, Console(), parts)
