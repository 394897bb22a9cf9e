"""What is asked about one photo or one edit: describe it, think of edits, check them.

Each function takes one item and gives what became of it, and nothing but its arguments and the answers decides that.
"""

import hashlib
import random
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from nopair.data.records import Score, Stage
from nopair.endpoints.messages import Ask, Picture, Reply, yes_probability
from nopair.synthesis.asking import Answer, Asker, UnusableError
from nopair.synthesis.items import Aside, Described, Found, Proposed, Verified
from nopair.synthesis.recipe import FREE_FORM, CaptionConfig, ProposeConfig, SynthesisRecipe, VerifyConfig
from nopair.synthesis.texts import as_data, tidy
from nopair.synthesis.wording import PromptText, prompt_text

CAPTION: Final = "caption"
PROPOSE: Final = "propose"
VERIFY: Final = "verify"
CAPTION_PROMPT: Final = "caption-1"
PROPOSE_PROMPT: Final = "propose-1"
FREE_FORM_PROMPT: Final = "free-form-1"
QUESTIONS: Final = {
    "applicable": "verify-applicable-1",
    "object": "verify-object-1",
    "specific": "verify-specific-1",
}
"""What is asked of an edit, in this order, each with its prompt."""
FAILED: Final = {
    "applicable": "not applicable to the photo",
    "object": "its object is not in the photo",
    "specific": "not specific",
}
_WITHOUT_OBJECT: Final = frozenset({"add", "style", "text", "background"})
"""Kinds of edit whose object need not be in the photo."""
_TOP: Final = 20
_SEEDS: Final = 2**31


def _said(text: str) -> str:
    text = tidy(text)
    if not text:
        raise ValueError("says nothing")
    return text


Line = Annotated[str, Field(max_length=400), AfterValidator(_said)]
Paragraph = Annotated[str, Field(max_length=2000), AfterValidator(_said)]
Noun = Annotated[str, Field(max_length=100), AfterValidator(tidy)]


class CaptionAnswer(Answer):
    """What a description has to be."""

    caption: Paragraph
    subject: Noun


class Edit(Answer):
    """One edit thought of."""

    category: str
    instruction: Line
    edited_caption: Paragraph
    object: Noun


class EditsAnswer(Answer):
    """The edits thought of for one photo."""

    edits: Annotated[tuple[Edit, ...], Field(max_length=50, strict=False)]


class NewPicture(Answer):
    """One new picture of a subject."""

    instruction: Line
    edited_caption: Paragraph


class PicturesAnswer(Answer):
    """The new pictures thought of for one photo."""

    pictures: Annotated[tuple[NewPicture, ...], Field(max_length=50, strict=False)]


# Caption --------------------------------------------------------------------------------------------------------------


async def describe(photo: Found, asker: Asker, config: CaptionConfig, recipe: SynthesisRecipe) -> Described | Aside:
    """Ask for a photo's caption and subject.

    Raises:
        UnavailableError, EndpointError: see `Engine.chat`.
    """
    ask = Ask(
        prompt_text(CAPTION_PROMPT).text,
        (_picture(photo),),
        _object(caption=_TEXT, subject=_TEXT),
        config.max_tokens,
        config.temperature,
        _seed(recipe, CAPTION, photo),
    )
    try:
        answer = await asker.answer(ask, CaptionAnswer, config.retries)
    except UnusableError as error:
        return Aside(CAPTION, error.reason, photo.name, error.detail)
    return Described(photo, answer.caption, answer.subject)


# Propose --------------------------------------------------------------------------------------------------------------


def categories_of(photo: Found, recipe: SynthesisRecipe) -> tuple[str, ...]:
    """The kinds of edit a photo is asked for: each kind equally likely, decided by seed and photo alone.

    So a photo keeps its kinds, and its paid answers, when others are added to the folder.
    """
    config = recipe.propose
    return tuple(random.Random(_seed(recipe, "kinds", photo)).sample(config.categories, config.per_image))


async def propose(
    described: Described, asker: Asker, config: ProposeConfig, recipe: SynthesisRecipe
) -> list[Proposed | Aside]:
    """Ask for edits of a photo of the kinds that fall to it, and for new pictures of its subject if it has one.

    Raises:
        UnavailableError, EndpointError: see `Engine.chat`.
    """
    results = await _edits(described, asker, config, recipe)
    if config.free_form and described.subject:
        results += await _pictures(described, asker, config, recipe)
    first: dict[str, int] = {}
    for place, result in enumerate(results):
        if isinstance(result, Proposed) and first.setdefault(result.instruction.casefold(), place) != place:
            results[place] = _dropped(described, "instruction given twice", result.instruction)
    numbered = []
    for result in results:
        if isinstance(result, Proposed):
            number = sum(isinstance(before, Proposed) for before in numbered)
            result = Proposed(described, number, *_words(result), result.stage)
        numbered.append(result)
    return numbered


async def _edits(
    described: Described, asker: Asker, config: ProposeConfig, recipe: SynthesisRecipe
) -> list[Proposed | Aside]:
    wanted = categories_of(described.photo, recipe)
    prompt = prompt_text(PROPOSE_PROMPT)
    kind = {"type": "string", "enum": list(wanted)}
    one = _object(category=kind, instruction=_TEXT, edited_caption=_TEXT, object=_TEXT)
    ask = Ask(
        prompt.text,
        (as_data({"caption": described.caption, "categories": ", ".join(wanted)}),),
        _object(edits={"type": "array", "items": one}),
        config.max_tokens,
        config.temperature,
        _seed(recipe, PROPOSE, described.photo),
    )
    try:
        answer = await asker.answer(ask, EditsAnswer, config.retries)
    except UnusableError as error:
        return [_dropped(described, error.reason, error.detail)]
    left, results = set(wanted), list[Proposed | Aside]()
    for edit in answer.edits:
        if edit.category not in left:
            reason = "second edit of its kind" if edit.category in wanted else "kind of edit not asked for"
            results.append(_dropped(described, reason, edit.instruction))
        elif edit.category == "remove" and not edit.object:
            results.append(_dropped(described, "no object for remove", edit.instruction))
        else:
            left.remove(edit.category)
            words = edit.category, edit.instruction, edit.edited_caption, edit.object
            results.append(Proposed(described, 0, *words, _stage(PROPOSE, prompt, asker)))
    return results


async def _pictures(
    described: Described, asker: Asker, config: ProposeConfig, recipe: SynthesisRecipe
) -> list[Proposed | Aside]:
    prompt = prompt_text(FREE_FORM_PROMPT)
    count = str(config.free_form)
    one = _object(instruction=_TEXT, edited_caption=_TEXT)
    ask = Ask(
        prompt.text,
        (as_data({"caption": described.caption, "subject": described.subject, "count": count}),),
        _object(pictures={"type": "array", "items": one}),
        config.max_tokens,
        config.temperature,
        _seed(recipe, FREE_FORM, described.photo),
    )
    try:
        answer = await asker.answer(ask, PicturesAnswer, config.retries)
    except UnusableError as error:
        return [_dropped(described, error.reason, error.detail)]
    stage = _stage(PROPOSE, prompt, asker)
    return [
        Proposed(described, 0, FREE_FORM, picture.instruction, picture.edited_caption, described.subject, stage)
        for picture in answer.pictures[: config.free_form]
    ]


def _words(proposed: Proposed) -> tuple[str, str, str, str]:
    return proposed.category, proposed.instruction, proposed.edited_caption, proposed.subject


def _dropped(described: Described, reason: str, detail: str) -> Aside:
    return Aside(PROPOSE, reason, described.photo.name, detail)


# Verify ---------------------------------------------------------------------------------------------------------------


async def verify(proposed: Proposed, asker: Asker, config: VerifyConfig, recipe: SynthesisRecipe) -> Verified | Aside:
    """Ask the questions that an edit has to pass, until one fails.

    Raises:
        UnavailableError, EndpointError: see `Engine.chat`.
    """
    photo = proposed.described.photo
    data = as_data({"instruction": proposed.instruction, "object": proposed.subject})
    scores: list[Score] = []
    for question, version in QUESTIONS.items():
        if question == "object" and (proposed.category in _WITHOUT_OBJECT or not proposed.subject):
            continue
        seed = _seed(recipe, VERIFY, photo)
        ask = Ask(prompt_text(version).text, (_picture(photo), data), max_tokens=1, seed=seed, top=_TOP)
        try:
            probability = await asker.usable([ask], partial(_probability, f"{version}: {proposed.instruction}"))
        except UnusableError as error:
            return Aside(VERIFY, error.reason, photo.name, error.detail)
        if probability < config.threshold:
            return Aside(VERIFY, FAILED[question], photo.name, f"{probability:.3f}: {proposed.instruction}")
        scores.append(Score(question=question, probability=probability))
    return Verified(proposed, tuple(scores))


def _probability(asked: str, reply: Reply) -> float:
    probability = yes_probability(reply.first)
    if probability is None:
        raise UnusableError("no answer of Yes or No", asked)
    return probability


# Parts of requests ----------------------------------------------------------------------------------------------------

_TEXT: Final = {"type": "string"}


def _object(**fields: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with just these fields."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _picture(photo: Found) -> Picture:
    return Picture(photo.file.read_bytes(), "image/jpeg")


def _seed(recipe: SynthesisRecipe, purpose: str, photo: Found) -> int:
    digest = hashlib.sha256(f"{recipe.seed} {purpose} {photo.digest}".encode("ascii")).digest()
    return int.from_bytes(digest[:8]) % _SEEDS


def _stage(name: str, prompt: PromptText, asker: Asker) -> Stage:
    return Stage(stage=name, prompt_version=prompt.version, engine=asker.engine.name, model=asker.engine.model)


def stages_of(verified: Verified, captioner: tuple[str, str], verifier: tuple[str, str]) -> tuple[Stage, ...]:
    """What made a record's fields; engine and model of those who described and verified."""
    asked = (score.question for score in verified.scores)
    return (
        Stage(stage=CAPTION, prompt_version=CAPTION_PROMPT, engine=captioner[0], model=captioner[1]),
        verified.proposed.stage,
        *(
            Stage(stage=VERIFY, prompt_version=QUESTIONS[question], engine=verifier[0], model=verifier[1])
            for question in asked
        ),
    )
