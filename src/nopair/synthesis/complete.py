"""A dataset whose records lack words, such as an imported one, to one that can be trained on.

scan      read the records; keep the photos that have no caption, as models see them
caption   describe each of those photos once, however many records it has
fill      edited caption, kind of edit and object, where one is missing
write     all records that are complete now, in their order, photos as they are; aside what is not

Nothing that a record says is changed, and the dataset itself is only read.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from nopair.data.files import make_folder, read_photo, remove_parts, seen_from, write_atomic
from nopair.data.images import decode_image
from nopair.data.places import WORK, check_dataset_folder
from nopair.data.records import Photo, Record, Stage
from nopair.data.shards import Card, read_records, write_dataset
from nopair.errors import ConfigError, DataError, ImageError, UnavailableError
from nopair.settings import dump
from nopair.synthesis.asking import Asker
from nopair.synthesis.estimate import expected_of_records
from nopair.synthesis.fill import FILL, Filled, Lacking, fill, without_asking
from nopair.synthesis.items import Aside, Described, Found
from nopair.synthesis.journal import Journal
from nopair.synthesis.progress import progress
from nopair.synthesis.recipe import SynthesisRecipe
from nopair.synthesis.run import Until, Work, identity, require_keys
from nopair.synthesis.scan import STAGE as SCAN
from nopair.synthesis.scan import keep, place_of, small
from nopair.synthesis.stages import CAPTION, CAPTION_PROMPT, describe
from nopair.synthesis.texts import printable
from nopair.synthesis.through import of_kind, say, tell, through
from nopair.synthesis.write import REJECTED, counted, write_rejected

_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Surveyed:
    """All records without their photos, in order; by digest the photos that need a caption, or why there is none."""

    records: tuple[Lacking, ...]
    photos: Mapping[str, Found | Aside]


async def complete(
    source: Path, dataset: Path, recipe: SynthesisRecipe, console: Console, until: Until = "write"
) -> Card | None:
    """Run the stages up to `until` (`propose` and `verify` stand for the same here). The card, if it was written.

    Raises:
        ConfigError: both folders are one; or, as MissingExtraError, ModelError, JudgeError: an engine cannot be opened.
        EndpointError: a server cannot be used; with too many questions left open, `UnavailableError`.
        OutputError, DataError: a dataset or the journal cannot be written or read; or nothing was kept.
    """
    if dataset.resolve() == source.resolve():
        raise ConfigError(f"{source}: a dataset cannot be completed in its own place; name another folder with -o")
    require_keys({"caption": recipe.caption.engine, "propose": recipe.propose.engine}, until)
    check_dataset_folder(dataset)
    work = Work(dataset / WORK)
    make_folder(work.folder)
    with Journal(work.answers) as journal:
        write_atomic(work.folder / "recipe.yaml", dump(recipe).encode("utf-8"))
        surveyed = survey(source, work, recipe, console)
        if until == SCAN:
            return None
        captions = await _captions(surveyed, journal, recipe, console)
        if until == CAPTION:
            return None
        filled = await _fill(surveyed.records, captions, journal, recipe, console)
    if until != "write":
        return None
    aside = [*of_kind(Aside, list(surveyed.photos.values())), *_no_caption(captions), *of_kind(Aside, filled)]
    return _write(source, dataset, filled, captions, aside, recipe, console)


def survey(source: Path, work: Work, recipe: SynthesisRecipe, console: Console) -> Surveyed:
    """The first stage, and what the others may cost. A photo that is kept already is not decoded again;
    what a killed run left unfinished among the kept ones is removed, so the caller holds the journal.

    Raises:
        DataError, OutputError: see `complete`.
    """
    for place in work.kept.glob("??"):
        remove_parts(place)
    records: list[Lacking] = []
    photos: dict[str, Found | Aside] = {}
    with progress(SCAN, Card.read(source).records, console) as tick, ThreadPoolExecutor(recipe.scan.threads) as threads:
        waiting = read_records(source)
        while some := list(islice(waiting, _AT_ONCE)):
            records += map(Lacking.of, some)
            new = {
                one.image_hash: one for one in reversed(some) if one.caption is None and one.image_hash not in photos
            }
            looks = [threads.submit(_look, source, record, recipe, work.kept) for record in new.values()]
            photos |= {digest: look.result() for digest, look in zip(new, looks, strict=True)}
            for _ in some:
                tick("")
    if len({one.id for one in records}) < len(records):
        raise DataError(f"{source}: records share ids; nopair data validate names them; give each record its own")
    described = len(of_kind(Found, list(photos.values())))
    asking = sum(one.asks for one in records)
    lacking = sum(one.asks or None in (one.caption, one.edited_caption, one.subject) for one in records)
    say(console, f"{SCAN}: {lacking} of {len(records)} records lack words")
    tell(console, SCAN, described, of_kind(Aside, list(photos.values())))
    for one in expected_of_records(described, asking, recipe):
        say(console, str(one))
    return Surveyed(tuple(records), photos)


def _look(source: Path, record: Record, recipe: SynthesisRecipe, kept: Path) -> Found | Aside:
    """The photo of a record, kept as a model sees it."""
    name = printable(record.id)
    found = Found(record.image_hash, name, kept / place_of(record.image_hash, recipe.scan))
    if found.file.is_file():
        return found
    try:
        path = record.image.path
        content = read_photo(source / path) if path is not None else record.image.bytes or b""
        if hashlib.sha256(content).hexdigest() != record.image_hash:
            return Aside(SCAN, "not the photo that the record was made from", name)
        pixels = decode_image(content, "the photo")
    except ImageError as error:
        return Aside(SCAN, "not readable", name, printable(str(error)))
    keep(small(pixels, recipe.scan), record.image_hash, recipe.scan, kept)
    return found


# The stages that ask --------------------------------------------------------------------------------------------------


async def _captions(
    surveyed: Surveyed, journal: Journal, recipe: SynthesisRecipe, console: Console
) -> dict[str, Described | Aside]:
    """By digest, the captions of the photos that had none."""
    config = recipe.caption
    photos = of_kind(Found, list(surveyed.photos.values()))

    def work(asker: Asker) -> Callable[[Found], Awaitable[Described | Aside]]:
        return lambda photo: describe(photo, asker, config, recipe)

    found = await through(CAPTION, photos, work, config.engine, journal, recipe, console)
    results = {
        photo.digest: Aside(CAPTION, "no answer", photo.name, str(one)) if isinstance(one, UnavailableError) else one
        for photo, one in zip(photos, found, strict=True)
    }
    tell(console, CAPTION, len(of_kind(Described, list(results.values()))), _no_caption(results))
    return results


async def _fill(
    records: Sequence[Lacking],
    captions: Mapping[str, Described | Aside],
    journal: Journal,
    recipe: SynthesisRecipe,
    console: Console,
) -> list[Filled | Aside | None]:
    """For each record its words, why it has none, or None: its photo has no caption."""
    config = recipe.propose
    told = [_captioned(record, captions) for record in records]
    asking = [(place, record) for place, record in enumerate(told) if record is not None and record.asks]

    def work(asker: Asker) -> Callable[[tuple[int, Lacking]], Awaitable[Filled | Aside]]:
        return lambda one: fill(one[1], _caption(one[1]), asker, config, recipe)

    found = await through(FILL, asking, work, config.engine, journal, recipe, console)
    results: list[Filled | Aside | None] = [
        None if record is None or record.asks else without_asking(record, _caption(record)) for record in told
    ]
    for (place, record), one in zip(asking, found, strict=True):
        gone = isinstance(one, UnavailableError)
        results[place] = Aside(FILL, "no answer", record.name, str(one)) if gone else one
    tell(console, FILL, len(of_kind(Filled, results)), of_kind(Aside, results))
    return results


def _captioned(record: Lacking, captions: Mapping[str, Described | Aside]) -> Lacking | None:
    if record.caption is not None:
        return record
    described = captions.get(record.digest)
    return dataclasses.replace(record, caption=described.caption) if isinstance(described, Described) else None


def _caption(record: Lacking) -> str:
    assert record.caption is not None, "those without one were left out"
    return record.caption


def _no_caption(captions: Mapping[str, Described | Aside]) -> list[Aside]:
    return of_kind(Aside, list(captions.values()))


# Write ----------------------------------------------------------------------------------------------------------------


def _write(
    source: Path,
    dataset: Path,
    filled: Sequence[Filled | Aside | None],
    captions: Mapping[str, Described | Aside],
    aside: Sequence[Aside],
    recipe: SynthesisRecipe,
    console: Console,
) -> Card:
    """Photos stay inside or where they are. Records without a caption are counted beside the photos they are of."""
    write_rejected(dataset, aside)
    if not of_kind(Filled, filled):
        reasons = ", ".join(f"{name} {count}" for name, count in counted(aside).items())
        raise DataError(f"{dataset}: no record is complete; set aside, see {REJECTED}: {reasons}")
    dropped = Counter(Card.read(source).dropped) + Counter(counted(of_kind(Aside, filled)))
    dropped["no caption for the photo"] += filled.count(None)
    stage = _stage_of_captions(recipe)

    def records() -> Iterator[Record]:
        for record, words in zip(read_records(source), filled, strict=True):
            if isinstance(words, Filled):
                yield _record(record, words, captions.get(record.image_hash), stage, source, dataset)
            tick("")

    with progress("write", len(filled), console) as tick:
        card = write_dataset(dataset, records(), dropped=+dropped)
    counts = ", ".join(f"{name} {count}" for name, count in card.categories.items())
    say(console, f"write: {card.records} records in {dataset} ({counts})")
    return card


def _record(
    record: Record, words: Filled, described: Described | Aside | None, stage: Stage, source: Path, dataset: Path
) -> Record:
    stages = record.stages
    caption = record.caption
    if caption is None:
        assert isinstance(described, Described), "others were left out"
        caption, stages = described.caption, (*stages, stage)
    if words.stage is not None:
        stages = (*stages, words.stage)
    image = record.image
    if image.path is not None:
        image = Photo(path=seen_from(dataset, source / image.path))
    fields: dict[str, Any] = dict(record) | {"image": image, "caption": caption, "stages": stages}
    fields |= {"edited_caption": words.edited_caption, "category": words.category, "subject": words.subject}
    return Record(**fields)


def _stage_of_captions(recipe: SynthesisRecipe) -> Stage:
    engine, model = identity(recipe.caption.engine)
    return Stage(stage=CAPTION, prompt_version=CAPTION_PROMPT, engine=engine, model=model)
