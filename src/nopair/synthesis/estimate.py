"""What a run may cost, told before it starts: a bound for full-length answers, and how often they may be repeated."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nopair.endpoints.server import Server, Usage, told_cost
from nopair.synthesis.fill import FILL, FILL_PROMPT
from nopair.synthesis.recipe import LocalEngine, SynthesisRecipe
from nopair.synthesis.stages import (
    CAPTION,
    CAPTION_PROMPT,
    FREE_FORM_PROMPT,
    PROPOSE,
    PROPOSE_PROMPT,
    QUESTIONS,
    VERIFY,
)
from nopair.synthesis.wording import prompt_text

_CHARACTERS_PER_TOKEN: Final = 3
_TOKENS_OF_DATA: Final = 400
"""A caption with its quotes, at its longest that is usual."""


@dataclass(frozen=True, slots=True)
class Expected:
    """One stage's requests and tokens, of which each may be made up to `tries` times in all."""

    stage: str
    engine: Server | LocalEngine
    usage: Usage
    tries: int

    def __str__(self) -> str:
        if isinstance(self.engine, LocalEngine):
            return f"{self.stage}: {self.usage.requests} questions for {self.engine.path}, here"
        again = f", up to {self.tries} times that if none can be used at first" if self.tries > 1 else ""
        cost = told_cost(self.engine, self.usage)
        return f"{self.stage}: at most {cost}{again}, at {self.engine.url}, {self.engine.model}"


def expected(photos: int, recipe: SynthesisRecipe) -> Iterator[Expected]:
    """Each stage that asks, for so many photos."""
    edits = recipe.propose.per_image + recipe.propose.free_form
    caption = _usage(photos, [CAPTION_PROMPT], _images(recipe.caption.engine), recipe.caption.max_tokens)
    yield Expected(CAPTION, recipe.caption.engine, caption, 1 + recipe.caption.retries)
    prompts = [PROPOSE_PROMPT, *([FREE_FORM_PROMPT] if recipe.propose.free_form else [])]
    proposals = _usage(photos, prompts, 0, recipe.propose.max_tokens)
    yield Expected(PROPOSE, recipe.propose.engine, proposals, 1 + recipe.propose.retries)
    image = _images(recipe.verify.engine)
    yield Expected(VERIFY, recipe.verify.engine, _usage(photos * edits, list(QUESTIONS.values()), image, 1), 1)


def expected_of_records(photos: int, records: int, recipe: SynthesisRecipe) -> Iterator[Expected]:
    """Each stage that asks, for a dataset in which so many photos lack a caption and so many records other words."""
    caption = _usage(photos, [CAPTION_PROMPT], _images(recipe.caption.engine), recipe.caption.max_tokens)
    yield Expected(CAPTION, recipe.caption.engine, caption, 1 + recipe.caption.retries)
    filled = _usage(records, [FILL_PROMPT], 0, recipe.propose.max_tokens)
    yield Expected(FILL, recipe.propose.engine, filled, 1 + recipe.propose.retries)


def _images(engine: Server | LocalEngine) -> int:
    return engine.image_tokens if isinstance(engine, Server) else 0


def _usage(items: int, prompts: list[str], image: int, answer: int) -> Usage:
    words = sum(len(prompt_text(version).text) // _CHARACTERS_PER_TOKEN for version in prompts)
    sent = words + len(prompts) * (_TOKENS_OF_DATA + image)
    return Usage(requests=items * len(prompts), input_tokens=items * sent, output_tokens=items * len(prompts) * answer)
