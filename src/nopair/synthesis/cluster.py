"""The same stages on more than one machine: a Ray Data job, each of whose rows is a part of the photos.

The dataset's folder has to be one that all machines see. A part has a journal of its own there, and which photos fall
to it depends on their contents alone, so that a run with as many parts goes on where another was stopped. What is
written at the end is byte for byte what one machine writes.
"""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter
from rich.console import Console

from nopair.data.places import WORK
from nopair.data.shards import Card
from nopair.errors import DataError, MissingExtraError, NopairError, UnavailableError
from nopair.synthesis.items import Aside, Found, Verified
from nopair.synthesis.journal import Journal
from nopair.synthesis.recipe import LocalEngine, SynthesisRecipe
from nopair.synthesis.run import Work, ask_all, finish, look_through
from nopair.synthesis.stages import CAPTION, PROPOSE, VERIFY
from nopair.synthesis.through import say

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
    scanned = look_through(photos, dataset.absolute(), recipe, console)
    rows = part_rows(scanned.photos, parts)
    if not rows:
        return finish(dataset, [], scanned.aside, recipe, console)  # which tells that nothing got through
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    waiting = ray.data.from_items(rows, override_num_blocks=len(rows))
    say(console, f"{len(rows)} parts; each tells how far it is in {work.folder}/part-*-of-{parts}.log")
    results = waiting.map(part_work(work.folder, recipe, parts), num_gpus=gpus(recipe)).take_all()
    for result in sorted(results, key=lambda one: one["part"]):
        say(console, f"part {result['part']}:\n{result['said'].rstrip()}")
    kept, aside = in_order(results, scanned.photos)
    return finish(dataset, kept, [*scanned.aside, *aside], recipe, console)


def gpus(recipe: SynthesisRecipe) -> int:
    """GPUs that a part needs: one, if a model is to run on it there."""
    engines = recipe.caption.engine, recipe.propose.engine, recipe.verify.engine
    return int(any(isinstance(one, LocalEngine) and one.device.startswith("cuda") for one in engines))


def part_rows(photos: Sequence[Found], parts: int) -> list[dict[str, Any]]:
    """The photos as rows, one for each part that has any."""
    chosen = {part: tuple(one for one in photos if int(one.digest[:8], 16) % parts == part) for part in range(parts)}
    return [{"part": part, "photos": _PHOTOS.dump_json(some).decode()} for part, some in chosen.items() if some]


def part_work(folder: Path, recipe: SynthesisRecipe, parts: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a machine does with one part. Errors come back as words: Ray would wrap them in a traceback."""
    settings = recipe.model_dump_json()

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        journal = folder / f"answers-{row['part']}-of-{parts}.jsonl"
        log = folder / f"part-{row['part']}-of-{parts}.log"
        told = SynthesisRecipe.model_validate_json(settings)
        done = {"part": row["part"], "kept": "[]", "aside": "[]", "error": "", "kind": ""}
        with log.open("w", encoding="utf-8", buffering=1) as lines:
            try:
                kept, aside = asyncio.run(
                    _part(_PHOTOS.validate_json(row["photos"]), journal, told, Console(file=lines))
                )
            except NopairError as error:
                kind = "unavailable" if isinstance(error, UnavailableError) else "other"
                done |= {"error": str(error), "kind": kind}
            else:
                done |= {"kept": _KEPT.dump_json(kept).decode(), "aside": _ASIDE.dump_json(aside).decode()}
        return done | {"said": log.read_text(encoding="utf-8")}

    return ask


async def _part(
    photos: Sequence[Found], journal: Path, recipe: SynthesisRecipe, console: Console
) -> tuple[list[Verified], list[Aside]]:
    with Journal(journal) as answers:
        return await ask_all(photos, answers, recipe, console)


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
