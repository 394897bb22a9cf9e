"""The last stage: records into a dataset, and beside them what was set aside."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from nopair.data.files import make_folder, write_atomic
from nopair.data.places import REJECTED
from nopair.data.records import Photo, Record, measure
from nopair.data.shards import Card, write_dataset
from nopair.errors import DataError
from nopair.synthesis.items import Aside, Verified
from nopair.synthesis.recipe import SynthesisRecipe
from nopair.synthesis.stages import stages_of

_HEX_OF_AN_ID: Final = 20


class Rejected(BaseModel):
    """One line of the file of what was set aside; see `nopair.synthesis.items.Aside`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    stage: str
    reason: str
    name: str
    detail: str


def record_of(
    verified: Verified, recipe: SynthesisRecipe, captioner: tuple[str, str], verifier: tuple[str, str]
) -> Record:
    """One record; its photo is inside. `captioner` and `verifier` are engine and model."""
    proposed = verified.proposed
    photo = proposed.described.photo
    content = photo.file.read_bytes()
    measured = measure(content, photo.name)
    return Record(
        id=f"{photo.digest[:_HEX_OF_AN_ID]}-{proposed.number}",
        image=Photo(bytes=content),
        height=measured.height,
        width=measured.width,
        image_hash=measured.image_hash,
        image_length=measured.image_length,
        instruction=proposed.instruction,
        caption=proposed.described.caption,
        edited_caption=proposed.edited_caption,
        category=proposed.category,  # pyright: ignore[reportArgumentType]
        subject=proposed.subject,
        source=recipe.source,
        licence=recipe.licence,
        stages=stages_of(verified, captioner, verifier),
        scores=verified.scores,
    )


def write(
    folder: Path,
    kept: Sequence[Verified],
    aside: Sequence[Aside],
    recipe: SynthesisRecipe,
    captioner: tuple[str, str],
    verifier: tuple[str, str],
    tick: Callable[[], None] = lambda: None,
) -> Card:
    """Write the dataset, in the order of `kept`, and the file of what was set aside, in the order of `aside`.

    `tick` is called after each record.

    Raises:
        OutputError: it cannot be written.
        DataError: nothing was kept.
    """
    make_folder(folder)
    write_rejected(folder, aside)

    def records() -> Iterator[Record]:
        for verified in kept:
            yield record_of(verified, recipe, captioner, verifier)
            tick()

    return write_dataset(folder, records(), dropped=counted(aside))


def counted(aside: Sequence[Aside]) -> dict[str, int]:
    """How many were set aside, by stage and reason."""
    return dict(sorted(Counter(f"{one.stage}: {one.reason}" for one in aside).items()))


def write_rejected(folder: Path, aside: Sequence[Aside]) -> None:
    """Write the file of what was set aside. Raises OutputError."""
    lines = (
        json.dumps({"stage": one.stage, "reason": one.reason, "name": one.name, "detail": one.detail}) for one in aside
    )
    write_atomic(folder / REJECTED, "".join(f"{line}\n" for line in lines).encode("ascii"))


def read_rejected(folder: Path) -> Iterator[Rejected]:
    """What was set aside; nothing if the dataset has no such file, as imported ones have none.

    Raises:
        DataError: a line is malformed.
    """
    path = folder / REJECTED
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield Rejected.model_validate_json(line)
            except ValidationError as error:
                raise DataError(f"{path}, line {number}: {error.errors()[0]['msg']}; take the line out") from None
