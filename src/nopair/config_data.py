"""What a recipe says about data; see `nopair.config`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from nopair.data.records import CATEGORIES as PHOTO_CATEGORIES
from nopair.settings import Count, Fraction, Natural, NotNegative, Section, Seed, Words
from nopair.world.edits import ALL_CATEGORIES


class WorldDataConfig(Section):
    """Unlabelled scenes of the shapes world."""

    source: Literal["world"] = Field(description="where the photos come from")
    seed: Seed = Field(default=0, description="which sequence of scenes and instructions")
    nothing_share: Fraction = Field(default=0.01, description="share of instructions that ask for no change, 0 to 1")
    categories: tuple[Words, ...] | None = Field(
        default=None, min_length=1, description="kinds of edit to train; null for all but free-form"
    )
    captions: Literal["complete", "placeless"] = Field(
        default="complete", description="what the teacher is told: all but nuisances, or not even where things stand"
    )
    limit: Count | None = Field(
        default=None, description="different records to train on, over and over; null for as many as training asks for"
    )
    cache: Words | None = Field(
        default=None,
        description="folder for encoded prompts and references, made before training; the text encoder is then dropped",
    )

    @model_validator(mode="after")
    def _known_categories(self) -> "WorldDataConfig":
        require_categories("categories", self.categories or (), ALL_CATEGORIES)
        return self


class PhotoDataConfig(Section):
    """Photos of one's own, with what to ask of each: see `nopair.data.tables`."""

    source: Literal["photos"] = Field(description="where the photos come from")
    path: Words = Field(description="dataset folder, imagefolder, WebDataset tar files, or JSON Lines file")
    height: Count = Field(default=512, description="rows of pixels that are trained at, and the editor's default")
    width: Count = Field(default=512, description="columns of pixels that are trained at, and the editor's default")
    buckets: tuple[tuple[Count, Count], ...] = Field(
        default=(), description="further [height, width]; a photo gets the nearest ratio, and a batch has one size"
    )
    shares: Mapping[str, NotNegative] | None = Field(
        default=None,
        description="how often categories are shown, relative to each other, with `default` for those not named; "
        "null: each record once per pass",
    )
    seed: Seed = Field(default=0, description="order of the photos")
    nothing_share: Fraction = Field(default=0.01, description="share of records made to ask for no change, 0 to 1")
    max_broken: Natural = Field(
        default=0, description="photos that a run may find unreadable, each named in the log, before it stops"
    )
    workers: Natural = Field(default=2, description="threads that read photos ahead of training; 0 for none")
    cache: Words | None = Field(
        default=None,
        description="folder for encoded prompts and references, made before training; the text encoder is then dropped",
    )

    @model_validator(mode="after")
    def _sane(self) -> "PhotoDataConfig":
        names = self.shares or {}
        require_categories("shares", [name for name in names if name != "default"], PHOTO_CATEGORIES)
        if self.shares is not None and not any(self.shares.values()):
            raise ValueError("shares are all 0; give at least one category a share, or null")
        if len(self.buckets) > 100:
            raise ValueError(f"{len(self.buckets)} buckets, expected at most 100")
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("buckets name one size twice; height and width are a bucket already")
        return self

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of all buckets; the first is the editor's default."""
        return ((self.height, self.width), *self.buckets)


DataConfig = Annotated[WorldDataConfig | PhotoDataConfig, Field(discriminator="source")]


def require_categories(key: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises ValueError unless all are known."""
    for name in names:
        if name not in known:
            raise ValueError(f"{key} names the unknown category {name!r}, expected {', '.join(known)}")
