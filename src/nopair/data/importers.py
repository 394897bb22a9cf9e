"""Published data sets to records: the source photo and the instruction of each pair, and never the edited photo.

What a data set does not say (captions, mostly) is missing from the record, for `nopair synthesize` to write. A kind of
edit that is not surely one of ours is missing, too, rather than guessed.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from nopair.data.files import check_image, is_folder, read_photo, seen_from
from nopair.data.kinds import category_of
from nopair.data.places import CARD, is_hidden
from nopair.data.records import Measured, Photo, Record, measure, problem_of
from nopair.data.shards import Card, opened, parse, read_group, write_dataset
from nopair.data.tables import open_table
from nopair.errors import ConfigError, DataError, ImageError

_LOG: Final = logging.getLogger("nopair.data")

PICO: Final = "pico-banana-400k"
GPT: Final = "gpt-image-edit-1.5m"
LICENCES: Final = {PICO: "CC BY-NC-ND 4.0", GPT: "CC BY 4.0"}
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Draft:
    """What a data set says of one photo; `place` names it in messages."""

    place: str
    id: str
    photo: Path
    instruction: str | None
    caption: str | None
    edited_caption: str | None
    kind: str | None
    subject: str | None
    source: str
    licence: str


def import_dataset(kind: str, path: Path, folder: Path, *, by_path: bool = False, licence: str = UNKNOWN) -> Card:
    """Write the data set at `path` as a dataset; a key of `KINDS` says what it is.

    What cannot become a record is named in the log and counted in the card, as are kinds of edit without a category of
    ours. Photos are stored inside, or `by_path`
    left where they are. `licence` is that of photos of one's own; published data sets have theirs.

    Raises:
        DataError: `path` cannot be read as that kind, nothing of it can be used, or `folder` has the files to be read.
        ConfigError: `by_path` for a kind that does not have it.
        OutputError: the dataset cannot be written.
    """
    if by_path and kind not in KINDS:
        raise ConfigError(f"--by-path is for published data sets ({', '.join(KINDS)}), not for {kind}; leave it out")
    dropped: Counter[str] = Counter()
    others: Counter[str] = Counter()
    if kind in ("records", "photos"):
        _require_elsewhere(path, folder)
    if kind == "records":
        return write_dataset(folder, _stored(path, folder), dropped=dropped)
    if kind == "photos":
        return write_dataset(folder, _own(path, licence, dropped), dropped=dropped)
    records = _drafted(KINDS[kind](path), folder, by_path, dropped, others)
    return write_dataset(folder, records, dropped=dropped, other_kinds=others)


def pico_banana(path: Path) -> Iterator[Draft]:
    """Lines of sft.jsonl, to which the data set's mapping script has added `local_input_image`. The short wording of
    the instruction is taken where there is one. Ids are line numbers: others are known to repeat."""
    file = path / "sft.jsonl" if is_folder(path) else path
    for number, tree in _lines(file):
        photo = _text(tree, "local_input_image")
        yield Draft(
            place=f"{file}, line {number}",
            id=f"{PICO}/{number}",
            photo=file.parent / (photo or ""),
            instruction=_text(tree, "summarized_text") or _text(tree, "text"),
            caption=None,
            edited_caption=None,
            kind=_text(tree, "edit_type"),
            subject=None,
            source=PICO,
            licence=LICENCES[PICO],
        )


def gpt_image_edit(path: Path) -> Iterator[Draft]:
    """Objects with `input`, `instruction`, `task` and maybe `input_description`, in a .json list or .jsonl file."""
    for number, tree in _objects(path):
        yield Draft(
            place=f"{path}, entry {number}",
            id=f"{GPT}/{number}",
            photo=path.parent / (_text(tree, "input") or ""),
            instruction=_text(tree, "instruction"),
            caption=_text(tree, "input_description"),
            edited_caption=None,
            kind=_text(tree, "task"),
            subject=None,
            source=_text(tree, "dataset_source") or GPT,
            licence=LICENCES[GPT],
        )


def npedit(path: Path) -> Iterator[Draft]:
    """The authors' merged_edit_data.json, in which `category` is the noun of the object of a removal."""
    for number, tree in _objects(path):
        source = _text(tree, "dataset_source") or "npedit"
        known = [licence for name, licence in LICENCES.items() if name.split("-")[0] in source.lower()]
        yield Draft(
            place=f"{path}, entry {number}",
            id=f"npedit/{number}",
            photo=path.parent / (_text(tree, "input_image_path") or ""),
            instruction=_text(tree, "edit_instruction"),
            caption=_text(tree, "input_description"),
            edited_caption=_text(tree, "edited_caption"),
            kind=_text(tree, "edit_type"),
            subject=_text(tree, "category"),
            source=source,
            licence=known[0] if len(known) == 1 else UNKNOWN,
        )


KINDS: Final[Mapping[str, Callable[[Path], Iterator[Draft]]]] = {
    PICO: pico_banana,
    GPT: gpt_image_edit,
    "npedit": npedit,
}
"""Published data sets by name. Besides, `photos` is any form that can be trained on, and `records` Parquet files with
the columns of records."""


def _drafted(
    drafts: Iterator[Draft], folder: Path, by_path: bool, dropped: Counter[str], others: Counter[str]
) -> Iterator[Record]:
    for draft in drafts:
        if draft.instruction is None:
            _drop(dropped, "no instruction", draft.place)
            continue
        try:
            content = read_photo(draft.photo)
            facts = measure(content, str(draft.photo))
        except ImageError as error:
            _drop(dropped, "photo cannot be read", f"{draft.place}: {error}")
            continue
        photo = Photo(path=seen_from(folder, draft.photo)) if by_path else Photo(bytes=content)
        category = None if draft.kind is None else category_of(draft.kind)
        if draft.kind is not None and category is None:
            others[draft.kind] += 1
        fields = {
            "instruction": draft.instruction,
            "caption": draft.caption,
            "edited_caption": draft.edited_caption,
            "category": category,
            "subject": draft.subject,
            "source": draft.source,
            "licence": draft.licence,
        }
        yield _record(draft.place, draft.id, photo, facts, fields)


def _require_elsewhere(path: Path, folder: Path) -> None:
    """Shards that are written must not take the place of those that are still to be read. Raises DataError."""
    place = (folder / "data").resolve()
    read = [path, *path.rglob("*.parquet")] if is_folder(path) else [path]
    if any(file.resolve().is_relative_to(place) for file in read):
        raise DataError(f"{folder}: holds what is to be read; name another folder with -o")


def _own(path: Path, licence: str, dropped: Counter[str]) -> Iterator[Record]:
    """Whatever can be trained on, with its photos inside."""
    table = open_table(path)
    own = path.resolve().stem  # of `.`, too
    for row in range(len(table)):
        try:
            name, content = table.photo(row)
            facts = measure(content, name)
        except ImageError as error:
            _drop(dropped, "photo cannot be read", str(error))
            continue
        fields = table.ask(row).model_dump() | {"source": own, "licence": licence}
        yield _record(name, f"{own}/{row}", Photo(bytes=content), facts, fields)


def _stored(path: Path, folder: Path) -> Iterator[Record]:
    """Records in Parquet files that others have written, or of a dataset. Photos that are files of their own stay where
    they are: paths are relative to the dataset, or without one to the file's folder. Raises DataError."""
    ids: dict[bytes, str] = {}  # short digests: a million ids are some hundred megabytes otherwise
    for root, file in _shards(path):
        with opened(file) as shard:
            row = 0
            for group in range(shard.num_row_groups):
                for tree in read_group(file, shard, group).to_pylist():
                    where = f"{file}, row {row}"
                    record = parse(tree, where)
                    first = ids.setdefault(hashlib.blake2b(record.id.encode(), digest_size=8).digest(), where)
                    if first is not where:
                        raise DataError(f"{where}: id: {record.id!r} is that of {first}, too; give each record its own")
                    yield _moved(record, root, folder, where)
                    row += 1


def _shards(path: Path) -> list[tuple[Path, Path]]:
    """Parquet files in order, each with the folder that its paths are relative to."""
    if not is_folder(path):
        inside = path.parent.name == "data" and (path.parent.parent / CARD).is_file()
        return [(path.parent.parent if inside else path.parent, path)]
    if (path / CARD).is_file():
        return [(path, path / shard.path) for shard in Card.read(path).shards]
    files = [file for file in sorted(path.rglob("*.parquet")) if not is_hidden(file.relative_to(path))]
    return [found for file in files for found in _shards(file)]


def _moved(record: Record, root: Path, folder: Path, where: str) -> Record:
    """The record as a dataset in `folder` has it."""
    if record.image.path is None:
        return record
    photo = root / record.image.path
    try:
        check_image(photo)
    except ImageError as error:
        raise DataError(f"{where}: image: {error}") from error
    return record.model_copy(update={"image": Photo(path=seen_from(folder, photo))})


def _record(place: str, id: str, photo: Photo, facts: Measured, fields: Mapping[str, Any]) -> Record:
    try:
        return Record(
            id=id,
            image=photo,
            height=facts.height,
            width=facts.width,
            image_hash=facts.image_hash,
            image_length=facts.image_length,
            **fields,
        )
    except ValidationError as error:
        raise DataError(f"{place}: {problem_of(error)}; mend the entry or take it out") from error


def _drop(dropped: Counter[str], reason: str, what: str) -> None:
    dropped[reason] += 1
    _LOG.warning("left out, %s: %s", reason, what)


def _text(tree: Mapping[str, Any], key: str) -> str | None:
    """What it says, or None where that is nothing."""
    value = tree.get(key)
    return value.strip() or None if isinstance(value, str) else None


def _objects(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if path.suffix.lower() == ".jsonl":
        yield from _lines(path)
        return
    try:
        trees = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give the data set's .json or .jsonl file") from error
    if not isinstance(trees, list):
        raise DataError(f"{path}: holds no list; give the data set's .json or .jsonl file")
    for number, tree in enumerate(trees):
        yield number, _object(tree, f"{path}, entry {number}")


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(json.loads(line), f"{path}, line {number}")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give the data set's .jsonl file") from error


def _object(tree: object, place: str) -> Mapping[str, Any]:
    if not isinstance(tree, dict):
        raise DataError(f"{place}: should be an object; take it out")
    return tree
