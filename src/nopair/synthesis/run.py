"""A whole synthesis: one stage after another, each going on where an earlier run stopped."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from rich.console import Console

from nopair.data.files import make_folder, write_atomic
from nopair.data.shards import Card
from nopair.endpoints.server import Server, Usage, told_cost
from nopair.errors import DataError, UnavailableError
from nopair.settings import dump
from nopair.synthesis.asking import REFUSED, Asker
from nopair.synthesis.crowd import over, progress
from nopair.synthesis.engines import opened
from nopair.synthesis.estimate import expected
from nopair.synthesis.items import Aside, Described, Found, Proposed, Verified
from nopair.synthesis.journal import Journal
from nopair.synthesis.recipe import LocalEngine, ServerEngine, SynthesisRecipe
from nopair.synthesis.scan import STAGE as SCAN
from nopair.synthesis.scan import Scanned, list_files, scan
from nopair.synthesis.stages import CAPTION, PROPOSE, VERIFY, describe, propose, verify
from nopair.synthesis.write import counted, write

Until = Literal["scan", "caption", "propose", "verify", "write"]
WORK: Final = "journal"
"""Folder within the dataset for what need not be done or paid again. Training does not read it."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Work:
    """Where a run's own files are."""

    folder: Path

    @property
    def scanned(self) -> Path:
        """Journal of what files are."""
        return self.folder / "scan.jsonl"

    @property
    def answers(self) -> Path:
        """Journal of answers."""
        return self.folder / "answers.jsonl"

    @property
    def kept(self) -> Path:
        """Photos as models and the dataset get them."""
        return self.folder / "photos"


async def synthesize(
    photos: Path, dataset: Path, recipe: SynthesisRecipe, console: Console, until: Until = "write"
) -> Card | None:
    """Run the stages up to `until`. The card of the dataset, if it was written.

    Raises:
        ImageError: there are no photos.
        ConfigError, MissingExtraError, ModelError, JudgeError: an engine cannot be opened.
        EndpointError: a server cannot be used; with too many questions left open, `UnavailableError`.
        OutputError, DataError: the dataset or a journal cannot be written or read; or nothing was kept.
    """
    work = Work(dataset / WORK)
    scanned = look_through(photos, work, recipe, console)
    if until == "scan":
        return None
    with Journal(work.answers) as journal:
        kept, aside = await ask_all(scanned.photos, journal, recipe, console, until)
    if until != "write":
        return None
    return finish(dataset, kept, [*scanned.aside, *aside], recipe, console)


def look_through(photos: Path, work: Work, recipe: SynthesisRecipe, console: Console) -> Scanned:
    """The first stage, and what the others may cost.

    Raises:
        ImageError, OutputError, DataError: see `synthesize`.
    """
    make_folder(work.folder)
    write_atomic(work.folder / "recipe.yaml", dump(recipe).encode("utf-8"))
    files = len(list_files(photos))
    with Journal(work.scanned) as journal, progress(SCAN, files, console) as tick:
        scanned = scan(photos, recipe.scan, journal, work.kept, lambda: tick(""))
    _tell(console, SCAN, len(scanned.photos), scanned.aside)
    for one in expected(len(scanned.photos), recipe):
        _say(console, str(one))
    return scanned


async def ask_all(
    photos: Sequence[Found], journal: Journal, recipe: SynthesisRecipe, console: Console, until: Until = "write"
) -> tuple[list[Verified], list[Aside]]:
    """The stages that ask, up to `until`: edits that passed, by photo, and what was set aside, by stage and photo.

    Raises:
        ConfigError, MissingExtraError, ModelError, JudgeError, EndpointError, OutputError, DataError: see `synthesize`.
    """
    described = await _describe(photos, journal, recipe, console)
    aside = _of(Aside, described)
    if until == "caption":
        return [], aside
    proposed = await _propose(_of(Described, described), journal, recipe, console)
    aside += _of(Aside, proposed)
    if until == "propose":
        return [], aside
    verified = await _verify(_of(Proposed, proposed), journal, recipe, console)
    return _of(Verified, verified), aside + _of(Aside, verified)


def finish(
    dataset: Path, kept: Sequence[Verified], aside: Sequence[Aside], recipe: SynthesisRecipe, console: Console
) -> Card:
    """Write the dataset and tell what is in it. For errors see `nopair.synthesis.write.write`."""
    if not kept:
        raise DataError(
            f"{dataset}: no edit got through; set aside: "
            + ", ".join(f"{name} {count}" for name, count in counted(aside).items())
        )
    card = write(dataset, kept, aside, recipe, identity(recipe.caption.engine), identity(recipe.verify.engine))
    counts = ", ".join(f"{name} {count}" for name, count in card.categories.items())
    console.print(
        f"write: {card.records} records in {dataset} ({counts})", markup=False, highlight=False, soft_wrap=True
    )
    return card


def identity(engine: ServerEngine | LocalEngine) -> tuple[str, str]:
    """Kind and model of an engine, as records tell them."""
    return (engine.kind, engine.model) if isinstance(engine, ServerEngine) else (engine.kind, engine.path)


# The stages that ask --------------------------------------------------------------------------------------------------


async def _describe(
    photos: Sequence[Found], journal: Journal, recipe: SynthesisRecipe, console: Console
) -> list[Described | Aside]:
    config = recipe.caption

    def work(asker: Asker) -> Callable[[Found], Awaitable[Described | Aside]]:
        return lambda photo: describe(photo, asker, config, recipe)

    found = await _stage(CAPTION, photos, work, config.engine, journal, recipe, console)
    results = [
        Aside(CAPTION, "no answer", photo.name, str(one)) if isinstance(one, UnavailableError) else one
        for photo, one in zip(photos, found, strict=True)
    ]
    _tell(console, CAPTION, len(_of(Described, results)), _of(Aside, results))
    return results


async def _propose(
    described: Sequence[Described], journal: Journal, recipe: SynthesisRecipe, console: Console
) -> list[Proposed | Aside]:
    config = recipe.propose

    def work(asker: Asker) -> Callable[[Described], Awaitable[list[Proposed | Aside]]]:
        return lambda one: propose(one, asker, config, recipe)

    found = await _stage(PROPOSE, described, work, config.engine, journal, recipe, console)
    results: list[Proposed | Aside] = []
    for one, edits in zip(described, found, strict=True):
        if isinstance(edits, UnavailableError):
            results.append(Aside(PROPOSE, "no answer", one.photo.name, str(edits)))
        else:
            results += edits
    _tell(console, PROPOSE, len(_of(Proposed, results)), _of(Aside, results))
    return results


async def _verify(
    proposed: Sequence[Proposed], journal: Journal, recipe: SynthesisRecipe, console: Console
) -> list[Verified | Aside]:
    config = recipe.verify

    def work(asker: Asker) -> Callable[[Proposed], Awaitable[Verified | Aside]]:
        return lambda one: verify(one, asker, config, recipe)

    found = await _stage(VERIFY, proposed, work, config.engine, journal, recipe, console)
    results = [
        Aside(VERIFY, "no answer", edit.described.photo.name, str(one)) if isinstance(one, UnavailableError) else one
        for edit, one in zip(proposed, found, strict=True)
    ]
    _tell(console, VERIFY, len(_of(Verified, results)), _of(Aside, results))
    return results


async def _stage(
    name: str,
    items: Sequence[T],
    work: Callable[[Asker], Callable[[T], Awaitable[R]]],
    config: ServerEngine | LocalEngine,
    journal: Journal,
    recipe: SynthesisRecipe,
    console: Console,
) -> list[R | UnavailableError]:
    """Items through one engine, with progress and cost; refuses to go on if too many are left without an answer."""
    if not items:
        return []
    async with opened(config) as engine:
        asker = Asker(engine, journal)

        def said() -> str:
            return _cost(config, engine.usage)

        with progress(name, len(items), console) as tick:
            results = await over(items, work(asker), engine.concurrency, lambda: tick(said()))
        console.print(
            f"{name}: {said()}, {asker.reused} answers from before", markup=False, highlight=False, soft_wrap=True
        )
    left = [one for one in results if isinstance(one, UnavailableError)]
    if len(left) > recipe.unanswered * len(items):
        raise UnavailableError(
            f"{name}: {len(left)} of {len(items)} are without an answer (the first: {left[0]}); run again to go on, or "
            "raise `unanswered`"
        )
    refused = [one for one in results if isinstance(one, Aside) and one.reason == REFUSED]
    if len(refused) == len(items):
        raise DataError(f"{name}: everything was refused (the first: {refused[0].detail}); check the recipe's engine")
    return results


def _cost(config: ServerEngine | LocalEngine, usage: Usage) -> str:
    return told_cost(config, usage) if isinstance(config, Server) else f"{usage.requests} answers, here"


def _of(kind: type[R], items: Sequence[object]) -> list[R]:
    return [item for item in items if isinstance(item, kind)]


def _tell(console: Console, stage: str, through: int, aside: Sequence[Aside]) -> None:
    reasons = ", ".join(f"{name.partition(': ')[2]} {count}" for name, count in counted(aside).items())
    _say(console, f"{stage}: {through} through, {len(aside)} set aside{f' ({reasons})' if reasons else ''}")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
