"""A whole synthesis: one stage after another, each going on where an earlier run stopped."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from nopair.data.files import make_folder, write_atomic
from nopair.data.places import WORK, check_dataset_folder
from nopair.data.shards import Card
from nopair.errors import ConfigError, DataError, UnavailableError
from nopair.settings import dump
from nopair.synthesis.asking import Asker
from nopair.synthesis.estimate import expected
from nopair.synthesis.items import Aside, Described, Found, Proposed, Verified
from nopair.synthesis.journal import Journal
from nopair.synthesis.progress import progress
from nopair.synthesis.recipe import LocalEngine, ServerEngine, SynthesisRecipe
from nopair.synthesis.scan import STAGE as SCAN
from nopair.synthesis.scan import Scanned, list_files, scan
from nopair.synthesis.stages import CAPTION, PROPOSE, VERIFY, describe, propose, verify
from nopair.synthesis.through import of_kind, say, tell, through
from nopair.synthesis.write import REJECTED, counted, write, write_rejected

Until = Literal["scan", "caption", "propose", "verify", "write"]


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
        ImageError: there are no photos, or a folder of them cannot be read.
        ConfigError: photos and dataset are one folder; or, as MissingExtraError, ModelError, JudgeError: an engine
            cannot be opened.
        EndpointError: a server cannot be used; with too many questions left open, `UnavailableError`.
        OutputError, DataError: the dataset or a journal cannot be written or read; or nothing was kept.
    """
    require_keys(
        {"caption": recipe.caption.engine, "propose": recipe.propose.engine, "verify": recipe.verify.engine}, until
    )
    work = Work(dataset / WORK)
    scanned = look_through(photos, dataset, recipe, console)
    if until == "scan":
        return None
    with Journal(work.answers) as journal:
        kept, aside = await ask_all(scanned.photos, journal, recipe, console, until)
    if until != "write":
        return None
    return finish(dataset, kept, [*scanned.aside, *aside], recipe, console)


def require_keys(engines: Mapping[Until, ServerEngine | LocalEngine], until: Until) -> None:
    """Find out before the first answer is paid that the key of a later stage, up to `until`, is not set.

    Raises:
        ConfigError: it is not.
    """
    stages = get_args(Until)
    for stage, engine in engines.items():
        if isinstance(engine, ServerEngine) and stages.index(stage) <= stages.index(until):
            engine.key()


def look_through(photos: Path, dataset: Path, recipe: SynthesisRecipe, console: Console) -> Scanned:
    """The first stage, and what the others may cost. A dataset that lies among the photos is none of them.

    Raises:
        ConfigError, ImageError, OutputError, DataError: see `synthesize`.
    """
    if dataset.resolve() == photos.resolve():
        raise ConfigError(f"{photos}: a dataset cannot be made in the folder of its photos; name another with -o")
    check_dataset_folder(dataset)
    work = Work(dataset / WORK)
    make_folder(work.folder)
    write_atomic(work.folder / "recipe.yaml", dump(recipe).encode("utf-8"))
    files = len(list_files(photos, dataset))
    with Journal(work.scanned) as journal, progress(SCAN, files, console) as tick:
        scanned = scan(photos, recipe.scan, journal, work.kept, lambda: tick(""), dataset)
    tell(console, SCAN, len(scanned.photos), scanned.aside)
    for one in expected(len(scanned.photos), recipe):
        say(console, str(one))
    return scanned


async def ask_all(
    photos: Sequence[Found], journal: Journal, recipe: SynthesisRecipe, console: Console, until: Until = "write"
) -> tuple[list[Verified], list[Aside]]:
    """The stages that ask, up to `until`: edits that passed, by photo, and what was set aside, by stage and photo.

    Raises:
        ConfigError, MissingExtraError, ModelError, JudgeError, EndpointError, OutputError, DataError: see `synthesize`.
    """
    described = await _describe(photos, journal, recipe, console)
    aside = of_kind(Aside, described)
    if until == "caption":
        return [], aside
    proposed = await _propose(of_kind(Described, described), journal, recipe, console)
    aside += of_kind(Aside, proposed)
    if until == "propose":
        return [], aside
    verified = await _verify(of_kind(Proposed, proposed), journal, recipe, console)
    return of_kind(Verified, verified), aside + of_kind(Aside, verified)


def finish(
    dataset: Path, kept: Sequence[Verified], aside: Sequence[Aside], recipe: SynthesisRecipe, console: Console
) -> Card:
    """Write the dataset and tell what is in it. For errors see `nopair.synthesis.write.write`."""
    if not kept:
        write_rejected(dataset, aside)
        raise DataError(
            f"{dataset}: no edit got through; set aside, see {REJECTED}: "
            + ", ".join(f"{name} {count}" for name, count in counted(aside).items())
        )
    engines = identity(recipe.caption.engine), identity(recipe.verify.engine)
    with progress("write", len(kept), console) as tick:
        card = write(dataset, kept, aside, recipe, *engines, tick=lambda: tick(""))
    counts = ", ".join(f"{name} {count}" for name, count in card.categories.items())
    say(console, f"write: {card.records} records in {dataset} ({counts})")
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

    found = await through(CAPTION, photos, work, config.engine, journal, recipe, console)
    results = [
        Aside(CAPTION, "no answer", photo.name, str(one)) if isinstance(one, UnavailableError) else one
        for photo, one in zip(photos, found, strict=True)
    ]
    tell(console, CAPTION, len(of_kind(Described, results)), of_kind(Aside, results))
    return results


async def _propose(
    described: Sequence[Described], journal: Journal, recipe: SynthesisRecipe, console: Console
) -> list[Proposed | Aside]:
    config = recipe.propose

    def work(asker: Asker) -> Callable[[Described], Awaitable[list[Proposed | Aside]]]:
        return lambda one: propose(one, asker, config, recipe)

    found = await through(PROPOSE, described, work, config.engine, journal, recipe, console)
    results: list[Proposed | Aside] = []
    for one, edits in zip(described, found, strict=True):
        if isinstance(edits, UnavailableError):
            results.append(Aside(PROPOSE, "no answer", one.photo.name, str(edits)))
        else:
            results += edits
    tell(console, PROPOSE, len(of_kind(Proposed, results)), of_kind(Aside, results))
    return results


async def _verify(
    proposed: Sequence[Proposed], journal: Journal, recipe: SynthesisRecipe, console: Console
) -> list[Verified | Aside]:
    config = recipe.verify

    def work(asker: Asker) -> Callable[[Proposed], Awaitable[Verified | Aside]]:
        return lambda one: verify(one, asker, config, recipe)

    found = await through(VERIFY, proposed, work, config.engine, journal, recipe, console)
    results = [
        Aside(VERIFY, "no answer", edit.described.photo.name, str(one)) if isinstance(one, UnavailableError) else one
        for edit, one in zip(proposed, found, strict=True)
    ]
    tell(console, VERIFY, len(of_kind(Verified, results)), of_kind(Aside, results))
    return results
