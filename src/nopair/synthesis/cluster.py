"""The same stages on more than one machine: a Ray Data job, each of whose rows is a part of the photos.

The dataset's folder has to be one that all machines see. A part has a journal of its own there, and which photos fall
to it depends on their contents alone, so that a run with as many parts goes on where another was stopped. What is
written at the end is byte for byte what one machine writes.
"""

import asyncio
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from rich.console import Console

from nopair.data.shards import Card
from nopair.errors import DataError, MissingExtraError, NopairError, UnavailableError
from nopair.synthesis.items import Aside, Found, Verified
from nopair.synthesis.journal import Journal
from nopair.synthesis.recipe import SynthesisRecipe
from nopair.synthesis.run import WORK, Work, ask_all, finish, look_through
from nopair.synthesis.stages import CAPTION, PROPOSE, VERIFY

_PHOTOS: Final = TypeAdapter(tuple[Found, ...])
_KEPT: Final = TypeAdapter(list[Verified])
_ASIDE: Final = TypeAdapter(list[Aside])
_STAGES: Final = (CAPTION, PROPOSE, VERIFY)


def synthesize_on_ray(photos: Path, dataset: Path, recipe: SynthesisRecipe, console: Console, parts: int) -> Card:
    """Scan here, ask on the cluster that RAY_ADDRESS names (or on one started on this machine), write here.

    Raises:
        MissingExtraError: Ray is not installed.
        ImageError, ConfigError, ModelError, JudgeError, EndpointError, OutputError, DataError: see
            `nopair.synthesis.run.synthesize`; the first error of a part, after all parts have ended.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports] (an extra)
        import ray.data  # pyright: ignore[reportMissingImports] (an extra)
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    work = Work((dataset / WORK).absolute())
    scanned = look_through(photos, work, recipe, console)
    rows = part_rows(scanned.photos, parts)
    if not rows:
        return finish(dataset, [], scanned.aside, recipe, console)  # which tells that nothing got through
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    waiting = ray.data.from_items(rows, override_num_blocks=len(rows))
    results = waiting.map(part_work(work.folder, recipe, parts)).take_all()
    kept, aside = in_order(results, scanned.photos)
    return finish(dataset, kept, [*scanned.aside, *aside], recipe, console)


def part_rows(photos: Sequence[Found], parts: int) -> list[dict[str, Any]]:
    """The photos as rows, one for each part that has any."""
    chosen = {part: tuple(one for one in photos if int(one.digest[:8], 16) % parts == part) for part in range(parts)}
    return [{"part": part, "photos": _PHOTOS.dump_json(some).decode()} for part, some in chosen.items() if some]


def part_work(folder: Path, recipe: SynthesisRecipe, parts: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a machine does with one part. Errors come back as words: Ray would wrap them in a traceback."""
    settings = recipe.model_dump_json()

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        journal = folder / f"answers-{row['part']}-of-{parts}.jsonl"
        told = SynthesisRecipe.model_validate_json(settings)
        try:
            kept, aside = asyncio.run(_part(_PHOTOS.validate_json(row["photos"]), journal, told))
        except NopairError as error:
            kind = "unavailable" if isinstance(error, UnavailableError) else "other"
            return {"kept": "[]", "aside": "[]", "error": str(error), "kind": kind}
        done = {"kept": _KEPT.dump_json(kept).decode(), "aside": _ASIDE.dump_json(aside).decode()}
        return done | {"error": "", "kind": ""}

    return ask


async def _part(photos: Sequence[Found], journal: Path, recipe: SynthesisRecipe) -> tuple[list[Verified], list[Aside]]:
    with Journal(journal) as answers:
        return await ask_all(photos, answers, recipe, Console(file=io.StringIO()))


def in_order(results: list[dict[str, Any]], photos: Sequence[Found]) -> tuple[list[Verified], list[Aside]]:
    """All parts' results in the order in which one machine would have them."""
    for result in results:
        if result["error"]:
            kind = UnavailableError if result["kind"] == "unavailable" else DataError
            raise kind(result["error"])
    place = {photo.digest: number for number, photo in enumerate(photos)}
    named = {photo.name: number for number, photo in enumerate(photos)}
    kept = [one for result in results for one in _KEPT.validate_json(result["kept"])]
    aside = [one for result in results for one in _ASIDE.validate_json(result["aside"])]
    kept.sort(key=lambda one: (place[one.proposed.described.photo.digest], one.proposed.number))
    aside.sort(key=lambda one: (_STAGES.index(one.stage), named[one.name]))
    return kept, aside
