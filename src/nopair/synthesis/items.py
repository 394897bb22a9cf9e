"""What flows from stage to stage: photos, descriptions, edits, and what was set aside and why."""

from dataclasses import dataclass
from pathlib import Path

from nopair.data.records import Score, Stage


@dataclass(frozen=True, slots=True)
class Found:
    """A photo that was taken.

    Attributes:
        digest: SHA-256 of the original file, in hex: the photo's name in everything that is asked and written.
        name: of the original file, relative to the folder, or of its record; for people only. Never goes to a model.
        file: the photo as it is kept: an upright sRGB JPEG without metadata.
    """

    digest: str
    name: str
    file: Path


@dataclass(frozen=True, slots=True)
class Described:
    """A photo with its caption; `subject` is empty if the photo has no single one."""

    photo: Found
    caption: str
    subject: str


@dataclass(frozen=True, slots=True)
class Proposed:
    """One edit of a photo. `number` counts the edits of one photo; `stage` made it."""

    described: Described
    number: int
    category: str
    instruction: str
    edited_caption: str
    subject: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Verified:
    """An edit that passed, with the probabilities of Yes."""

    proposed: Proposed
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class Aside:
    """What did not get through.

    Attributes:
        stage, reason: where and why; both are few fixed words, fit for counting.
        name: of the original file, or the record's id.
        detail: more for people: an error, an instruction; words of strangers.
    """

    stage: str
    reason: str
    name: str
    detail: str = ""
