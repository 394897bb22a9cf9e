"""Photos of one's own as training data: a JSON Lines file that says what to ask of each.

A line: {"image", "instruction", "caption", "edited_caption", "category", "subject"?}, the image's path relative to the
file. There is no key for an edited image, and an unknown key is an error.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from nopair.data.images import cover, load_image
from nopair.data.records import Category, Words
from nopair.errors import DataError, ImageError
from nopair.types import EditBatch

NOTHING: Final = "leave everything as it is"


class PhotoLine(BaseModel):
    """One line of the file. `subject` is the noun of the object the edit is about; a removal needs it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    image: Words
    instruction: Words
    caption: Words
    edited_caption: Words
    category: Category
    subject: str = ""


@dataclass(frozen=True, slots=True)
class PhotoSource:
    """An endless stream over a file's lines, shuffled anew for each pass; a `nopair.data.loader.Source`.

    Record `index` depends on the fields and `index` only. Photos are scaled to cover height x width and cut to it in
    the middle. A share of records, `nothing_share`, become `nothing`: the photo as it is, all words agreeing with that.
    """

    file: Path
    lines: tuple[PhotoLine, ...]
    height: int
    width: int
    seed: int
    nothing_share: float

    @classmethod
    def read(cls, file: Path, height: int, width: int, seed: int, nothing_share: float) -> "PhotoSource":
        """Read the lines; the photos themselves are read when they are asked for.

        Raises:
            DataError: the file cannot be read or is empty, a line is malformed, or names an image that is not there.
        """
        try:
            rows = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read ({error}); give a .jsonl file with a photo per line") from None
        lines = tuple(_parse(file, number, row) for number, row in enumerate(rows, 1) if row.strip())
        if not lines:
            raise DataError(f"{file}: is empty; give a .jsonl file with a photo per line")
        return cls(file, lines, height, width, seed, nothing_share)

    def batch(self, indices: Sequence[int]) -> EditBatch:
        """Those records, stacked.

        Raises:
            DataError: a photo cannot be read.
        """
        lines = [self.line(index) for index in indices]
        return EditBatch(
            reference=torch.stack([self._photo(line) for line in lines]),
            instructions=tuple(line.instruction for line in lines),
            captions=tuple(line.caption for line in lines),
            edited_captions=tuple(line.edited_caption for line in lines),
            categories=tuple(line.category for line in lines),
            subjects=tuple(line.subject for line in lines),
        )

    def line(self, index: int) -> PhotoLine:
        """What record `index` asks."""
        one_pass, place = divmod(index, len(self.lines))
        order = list(range(len(self.lines)))
        random.Random(f"photos {self.seed} {one_pass}").shuffle(order)
        line = self.lines[order[place]]
        if random.Random(f"nothing {self.seed} {index}").random() >= self.nothing_share:
            return line
        return line.model_copy(
            update={
                "instruction": NOTHING,
                "edited_caption": line.caption,
                "category": "nothing",
                "subject": "",
            }
        )

    def _photo(self, line: PhotoLine) -> Float[Tensor, "3 height width"]:
        try:
            return cover(load_image(self.file.parent / line.image), self.height, self.width)
        except ImageError as error:
            raise DataError(f"{self.file}: {error}; take its line out or mend the image") from error


def _parse(file: Path, number: int, row: str) -> PhotoLine:
    where = f"{file}, line {number}"
    try:
        line = PhotoLine.model_validate_json(row)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{where}: {key + ': ' if key else ''}{problem['msg']}") from None
    if line.category == "remove" and not line.subject.strip():
        raise DataError(f"{where}: a removal needs a subject, the noun of what is to go")
    if not (file.parent / line.image).is_file():
        raise DataError(f"{where}: there is no image {line.image}; paths are relative to {file.name}")
    return line
