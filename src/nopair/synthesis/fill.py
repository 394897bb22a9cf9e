"""What is asked about a record that lacks words: its edited caption, kind of edit and object, of one question.

What the record says already is never changed. As in `nopair.synthesis.stages`, nothing but the arguments and the
answers decides what comes out.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from nopair.data.records import CATEGORIES, NO_SUBJECT, Record, Stage
from nopair.endpoints.messages import Ask
from nopair.synthesis.asking import Answer, Asker, UnusableError
from nopair.synthesis.items import Aside
from nopair.synthesis.recipe import ProposeConfig, SynthesisRecipe
from nopair.synthesis.stages import Noun, Paragraph
from nopair.synthesis.texts import as_data, printable
from nopair.synthesis.wording import prompt_text

FILL: Final = "fill"
FILL_PROMPT: Final = "fill-1"
OTHER: Final = "other"
KINDS: Final = (*(name for name in CATEGORIES if name != "nothing"), OTHER)
"""What a record without a category may turn out to be."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """A record's words, without its photo; None is missing. `digest` is that of the photo's file."""

    id: str
    digest: str
    instruction: str
    caption: str | None
    edited_caption: str | None
    category: str | None
    subject: str | None

    @classmethod
    def of(cls, record: Record) -> "Lacking":
        """What a record has."""
        words = record.instruction, record.caption, record.edited_caption, record.category, record.subject
        return cls(record.id, record.image_hash, *words)

    @property
    def name(self) -> str:
        """For people."""
        return printable(self.id)

    @property
    def asks(self) -> bool:
        """Whether a model has to be asked, beyond the photo's caption. What does nothing follows from its caption."""
        return self.category != "nothing" and None in (self.edited_caption, self.category, self.subject)


@dataclass(frozen=True, slots=True)
class Filled:
    """The words a record gets, whether it had them or not; `stage` made those it had not, None if no question did."""

    edited_caption: str
    category: str
    subject: str
    stage: Stage | None


class FillAnswer(Answer):
    """What a model says of an edit."""

    edited_caption: Paragraph
    category: str
    object: Noun


def ask_of(lacking: Lacking, caption: str, config: ProposeConfig, recipe: SynthesisRecipe) -> Ask:
    """The question about an edit of a photo with that caption."""
    kinds = KINDS if lacking.category is None else (lacking.category,)
    text = {"type": "string"}
    fields = {"edited_caption": text, "category": {"type": "string", "enum": list(kinds)}, "object": text}
    digest = hashlib.sha256(f"{recipe.seed} {FILL} {lacking.id}".encode()).digest()
    return Ask(
        prompt_text(FILL_PROMPT).text,
        (as_data({"caption": caption, "instruction": lacking.instruction, "categories": ", ".join(kinds)}),),
        {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False},
        config.max_tokens,
        config.temperature,
        int.from_bytes(digest[:8]) % 2**31,
    )


async def fill(
    lacking: Lacking, caption: str, asker: Asker, config: ProposeConfig, recipe: SynthesisRecipe
) -> Filled | Aside:
    """Ask for what a record lacks.

    Raises:
        UnavailableError, EndpointError: see `Engine.chat`.
    """
    try:
        answer = await asker.answer(ask_of(lacking, caption, config, recipe), FillAnswer, config.retries)
    except UnusableError as error:
        return Aside(FILL, error.reason, lacking.name, error.detail)
    category = lacking.category or answer.category
    if category == OTHER:
        return Aside(FILL, "no kind of edit that nopair knows", lacking.name, lacking.instruction)
    if category not in (KINDS if lacking.category is None else (lacking.category,)):
        return Aside(FILL, "kind of edit not asked for", lacking.name, lacking.instruction)
    subject = answer.object if lacking.subject is None else lacking.subject
    if category in NO_SUBJECT and not subject.strip():
        return Aside(FILL, f"no object for {category}", lacking.name, lacking.instruction)
    stage = Stage(stage=FILL, prompt_version=FILL_PROMPT, engine=asker.engine.name, model=asker.engine.model)
    return Filled(lacking.edited_caption or answer.edited_caption, category, subject, stage)


def without_asking(lacking: Lacking, caption: str) -> Filled:
    """The words of a record that needs no question: it has them, or does nothing."""
    edited_caption = caption if lacking.category == "nothing" else lacking.edited_caption
    assert edited_caption is not None, "others ask"
    assert lacking.category is not None, "others ask"
    return Filled(edited_caption, lacking.category, lacking.subject or "", None)
