"""What is asked of a chat model and what it answers, whoever runs it. No network here."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nopair.endpoints.server import Usage

_YES: Final = "yes"
_NO: Final = "no"
_ROUNDING: Final = 0.01
"""How much above 0 a log-probability may be: servers compute them in half precision."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file's bytes; `media_type` such as image/png."""

    content: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to a chat model.

    Attributes:
        system: what the model is to do; our words only.
        parts: what it is shown, texts and images in order.
        schema: JSON schema that the answer has to fit; None for free text.
        max_tokens: most tokens of the answer.
        temperature: 0 for the likeliest answer.
        seed: of the sampling, for servers that have one.
        top: how many of the likeliest first tokens to tell, with their log-probabilities; 0 for none, at most 20.
    """

    system: str
    parts: tuple[str | Picture, ...]
    schema: Mapping[str, Any] | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = None
    top: int = 0

    def digest(self, model: str) -> str:
        """Hex digest of all that is asked, and of whom: equal for equal questions, across runs and machines."""
        parts = [
            part if isinstance(part, str) else {part.media_type: hashlib.sha256(part.content).hexdigest()}
            for part in self.parts
        ]
        rest = [self.schema, self.max_tokens, self.temperature, self.seed, self.top]
        asked = json.dumps([model, self.system, parts, *rest], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(asked.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. `first` holds the likeliest first tokens with their natural log-probabilities, if they were asked for.

    `finished` is False where the answer was cut at `max_tokens`. `model` is who the server says has answered; "" if it
    does not.
    """

    text: str
    usage: Usage
    first: tuple[tuple[str, float], ...] = ()
    finished: bool = True
    model: str = ""


def is_log_probability(value: float) -> bool:
    """Whether a server's number can be one: finite, and not above 0 by more than rounding."""
    return math.isfinite(value) and value <= _ROUNDING


def yes_probability(first: tuple[tuple[str, float], ...]) -> float | None:
    """P(Yes) / (P(Yes) + P(No)) by the likeliest first tokens, each answer summed over its spellings; in [0, 1].

    An answer that is not among them is less likely than any that is, and counts as 0. None if neither is there, or a
    number is no log-probability: the model did not answer, and nobody guesses for it.
    """
    if not all(is_log_probability(value) for _, value in first):
        return None
    yes, no = (
        sum(math.exp(value) for token, value in first if token.strip(" \n\tĠ▁").lower() == word) for word in (_YES, _NO)
    )
    return yes / (yes + no) if yes + no > 0 else None
