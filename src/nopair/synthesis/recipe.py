"""A synthesis run as one frozen value: what its recipe says. How recipes are read is in `nopair.settings`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from nopair.data.records import CATEGORIES
from nopair.endpoints.server import Server
from nopair.settings import Count, Fraction, Natural, NotNegative, Section, Seed, Words, load

RECIPES: Final = "nopair.synthesis.recipes"
FREE_FORM: Final = "free-form"
EDITS: Final = tuple(name for name in CATEGORIES if name not in (FREE_FORM, "nothing"))
"""Kinds of edit that a photo's caption is enough to think of; the others are asked for in other ways."""


class ServerEngine(Server):
    """A model behind an OpenAI-compatible server."""

    kind: Literal["server"] = Field(description="where the model runs")


class LocalEngine(Section):
    """A vision-language model in this process, one request at a time; for trials and for few photos."""

    kind: Literal["local"] = Field(description="where the model runs")
    path: Words = Field(description="model folder of a family that `nopair judge audit` knows")
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="precision of its weights")
    device: Words = Field(default="auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N")


Engine = Annotated[ServerEngine | LocalEngine, Field(discriminator="kind")]


class ScanConfig(Section):
    """Which photos are taken, and how they are kept."""

    min_side: Count = Field(default=256, description="least pixels of the shorter side of a photo, as it is kept")
    longest_side: Count = Field(default=1024, description="pixels of the longer side that larger photos are scaled to")
    quality: Annotated[int, Field(ge=1, le=100)] = Field(default=95, description="JPEG quality that photos are kept at")
    near: Natural = Field(default=6, description="differing bits of 144 up to which two photos count as one")
    threads: Count = Field(default=4, description="photos decoded at a time")


class CaptionConfig(Section):
    """Describing each photo; needs a model with eyes."""

    engine: Engine = Field(description="the model that describes photos")
    max_tokens: Count = Field(default=300, description="most tokens of an answer")
    temperature: NotNegative = Field(default=0.0, description="0 for the likeliest answer; more for more variety")
    retries: Natural = Field(default=2, description="times a question is repeated whose answer cannot be used")


class ProposeConfig(Section):
    """Thinking of edits for each photo, from its description."""

    engine: Engine = Field(description="the language model that thinks of edits")
    max_tokens: Count = Field(default=1200, description="most tokens of an answer")
    temperature: NotNegative = Field(default=0.8, description="0 for the likeliest answer; more for more variety")
    retries: Natural = Field(default=2, description="times a question is repeated whose answer cannot be used")
    categories: tuple[Words, ...] = Field(default=EDITS, min_length=1, description="kinds of edit to ask for")
    per_image: Count = Field(default=5, description="kinds of edit asked for each photo, drawn from the categories")
    free_form: Natural = Field(default=1, description="new pictures asked for each photo with one clear subject")

    @model_validator(mode="after")
    def _possible(self) -> "ProposeConfig":
        for name in self.categories:
            if name not in EDITS:
                raise ValueError(f"categories names {name!r}, expected {', '.join(EDITS)}")
        if len(set(self.categories)) < len(self.categories):
            raise ValueError("categories names one twice")
        if self.per_image > len(self.categories):
            raise ValueError(f"per_image {self.per_image} is more than the {len(self.categories)} categories")
        return self


class VerifyConfig(Section):
    """Asking a model with eyes, by Yes or No, whether an edit suits its photo."""

    engine: Engine = Field(description="the model that verifies; its server has to tell log-probabilities")
    threshold: Fraction = Field(default=0.5, description="lowest probability of Yes with which an edit is kept")


class SynthesisRecipe(Section):
    """A complete synthesis run. Equal photos, recipe and answers give an equal dataset, byte for byte."""

    name: Words = Field(description="what the recipe is called")
    seed: Seed = Field(default=0, description="which kinds of edit each photo is asked for, and of the sampling")
    source: Words = Field(default="photos", description="where the photos are from; goes into each record")
    licence: Words = Field(default="unknown", description="licence of the photos; goes into each record")
    unanswered: Fraction = Field(
        default=0.0, description="share of a stage's photos or edits that may go without an answer and be set aside"
    )
    scan: ScanConfig = Field(default=ScanConfig(), description="choosing photos")
    caption: CaptionConfig = Field(description="describing photos")
    propose: ProposeConfig = Field(description="thinking of edits")
    verify: VerifyConfig = Field(description="checking edits")


def load_synthesis(name_or_path: str | Path, overrides: Sequence[str] = ()) -> SynthesisRecipe:
    """The recipe of a shipped name, or of a YAML file; see `nopair.settings.load`. Raises ConfigError."""
    return load(SynthesisRecipe, RECIPES, name_or_path, overrides)
