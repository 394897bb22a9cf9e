"""The record: one unlabelled photo and what to ask of it. The one schema of every dataset; docs/data.md explains it.

No field could hold an edited image, and an unknown field is an error. What nobody has written yet is None, which says
that it is missing, never an empty text or a guess. No torch: cheap to import.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nopair.data.headers import opened_image, orientation_of

Category = Literal[
    "add",
    "remove",
    "replace",
    "adjust",
    "action",
    "style",
    "text",
    "colour",
    "material",
    "background",
    "free-form",
    "nothing",
]
CATEGORIES: Final[tuple[str, ...]] = get_args(Category)
"""Kinds of edit: the paper's ten, `free-form` (a subject in a new picture), and `nothing` (the photo as it is)."""

NEEDED: Final = ("category", "caption", "edited_caption", "subject")
"""Fields that may be missing from a stored record and that training needs."""
NO_SUBJECT: Final = {
    "remove": "a removal needs a subject, the noun of what is to go",
    "free-form": "a free-form edit needs a subject, the noun of what is to be the same",
}
"""Categories that a judge asks about by their subject, and what is wrong with an empty one."""

Words = Annotated[str, Field(min_length=1, pattern=r"\S")]
"""Text that says something."""
Content = Annotated[bytes, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Probability = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Photo(_Part):
    """Where the photo is: inside the record, as the bytes of a PNG, JPEG or WebP file, or in a file of its own.

    `path` is relative to the dataset's folder, with `/`. Exactly one of the two is given.
    """

    bytes: Content | None = Field(default=None, repr=False)
    path: Words | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "Photo":
        if (self.bytes is None) == (self.path is None):
            raise ValueError("needs either bytes or a path")
        if self.path is not None and PurePosixPath(self.path).is_absolute():
            raise ValueError(f"the path {self.path!r} is not relative to the dataset's folder")
        return self


class Stage(_Part):
    """What made a field: a stage of synthesis with the version of its prompt, the engine and the model asked."""

    stage: Words
    prompt_version: Words
    engine: Words
    model: Words


class Score(_Part):
    """A verifier's answer to one of its questions, as the probability of Yes."""

    question: Words
    probability: Probability


class Record(_Part):
    """One photo and one thing to ask of it.

    `height` and `width` are those of the upright picture; `image_hash` is the SHA-256 of the file's bytes and
    `image_length` their number (see `measure`). `caption` describes the photo, `edited_caption` the wished-for result,
    `subject` is the noun of the object that the edit is about. A removal or a free-form edit cannot be judged without
    its subject; for other categories it may be empty.
    """

    id: Words
    image: Photo
    height: Count
    width: Count
    image_hash: Sha256
    image_length: Count
    instruction: Words
    caption: Words | None = None
    edited_caption: Words | None = None
    category: Category | None = None
    subject: str | None = None
    source: Words
    licence: Words
    stages: tuple[Stage, ...] = ()
    scores: tuple[Score, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Record":
        if self.image.bytes is not None and len(self.image.bytes) != self.image_length:
            raise ValueError(f"image_length is {self.image_length}, but the image has {len(self.image.bytes)} bytes")
        if self.category in NO_SUBJECT and self.subject is not None and not self.subject.strip():
            raise ValueError(f"{NO_SUBJECT[self.category]}; leave it out if it is not known")
        if self.category == "nothing" and self.edited_caption != self.caption:
            raise ValueError("to do nothing needs the same edited_caption and caption")
        return self

    @property
    def missing(self) -> tuple[str, ...]:
        """What training needs and nobody has written yet, of `NEEDED`."""
        return tuple(name for name in NEEDED if getattr(self, name) is None)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a record says of its image file."""

    height: int
    width: int
    image_hash: str
    image_length: int


def measure(content: bytes, name: str) -> Measured:
    """Read an image file's header: the size of the upright picture, as `nopair.data.images` decodes it. `name` is for
    errors. Pixels are decoded only of a PNG whose metadata may come after them.

    Raises:
        ImageError: not a PNG, JPEG or WebP file, or over `nopair.data.headers.MAX_PIXELS`.
    """
    with opened_image(io.BytesIO(content), name) as image:
        width, height = image.size
        if image.format == "PNG" and "exif" not in image.info:
            image.load()
        turned = orientation_of(image) in (5, 6, 7, 8)
    height, width = (width, height) if turned else (height, width)
    return Measured(height, width, hashlib.sha256(content).hexdigest(), len(content))


def problem_of(error: ValidationError) -> str:
    """The first thing that is wrong with a record, in one line that begins with the field's name."""
    problems = error.errors(include_url=False)
    # An unknown field may be a missing one under another name, so it is told first.
    problem = min(problems, key=lambda one: one["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        missing = [one["loc"][-1] for one in problems if one["type"] == "missing"]
        lacking = f", and there is no {missing[0]}" if missing else ""
        return f"{key}: unknown field{lacking}; docs/data.md has the fields"
    if problem["type"] == "missing":
        return f"{key}: is missing; docs/data.md has the fields"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
