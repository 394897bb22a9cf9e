"""`nopair synthesize`: reads the recipe, runs the stages here or on a Ray cluster, prints what they tell."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nopair.synthesis.recipe import load_synthesis
from nopair.synthesis.run import Until, synthesize


def run_synthesis(photos: Path, dataset: Path, recipe: str, overrides: Sequence[str], until: Until) -> None:
    """For errors see `nopair.synthesis.run.synthesize` and `nopair.settings.load`."""
    settings = load_synthesis(recipe, overrides)
    asyncio.run(synthesize(photos, dataset, settings, Console(), until))
