"""Which server to ask, and what it may cost: values that a recipe holds. No network here."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, field_validator

from nopair.errors import ConfigError
from nopair.settings import Count, NotNegative, Positive, Section, Words

_MILLION: Final = 1_000_000


class Server(Section):
    """One model behind an OpenAI-compatible endpoint, such as `vllm serve` or SGLang."""

    url: Words = Field(description="address of the API, such as http://localhost:8000/v1")
    model: Words = Field(description="the model's name on that server")
    key_variable: Words | None = Field(
        default=None, description="environment variable that holds the server's key; null for a server without one"
    )
    concurrency: Count = Field(default=16, description="requests under way at a time")
    timeout: Positive = Field(default=120.0, description="seconds until an answer is given up")
    attempts: Count = Field(default=6, description="times a request is sent before it is given up")
    first_wait: Positive = Field(default=1.0, description="seconds before the second attempt; doubles with each more")
    longest_wait: Positive = Field(default=60.0, description="most seconds between two attempts")
    input_price: NotNegative = Field(default=0.0, description="price of a million tokens sent")
    output_price: NotNegative = Field(default=0.0, description="price of a million tokens received")
    currency: Words = Field(default="USD", description="what prices are in")
    image_tokens: Count = Field(default=1024, description="tokens an image costs, for estimates before a run")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="what the server calls the most tokens of an answer"
    )
    temperature: Literal["asked", "omit"] = Field(
        default="asked", description="omit sends none, for models that refuse one and answer at their own"
    )
    extra: Mapping[str, JsonValue] = Field(
        default={}, description="further fields of each request, such as chat_template_kwargs"
    )

    @field_validator("url")
    @classmethod
    def _address_only(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url.partition('?')[0].rpartition('@')[2]!r} is no address; give http://host:port/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("keys do not belong into a recipe; name an environment variable in key_variable")
        return url

    def key(self) -> str | None:
        """The server's key, from the environment.

        Raises:
            ConfigError: the variable is not set, or holds what no request can carry. The key is not in the message.
        """
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ConfigError(f"the key of {self.url} is not set; export {self.key_variable}=...")
        if not all("!" <= character <= "~" for character in key):  # the transport would print the key with its error
            raise ConfigError(
                f"the key of {self.url} has a blank, a line end or a character outside ASCII in it; "
                f"export {self.key_variable}=... with the key alone"
            )
        return key

    def manner(self) -> str:
        """What of it changes answers beyond question and model, as text; "" for the defaults."""
        changed = self.model_dump(mode="json", include={"extra", "temperature"}, exclude_defaults=True)
        return json.dumps(changed, sort_keys=True) if changed else ""

    def cost(self, usage: "Usage") -> float:
        """What those tokens cost, in `currency`."""
        return (usage.input_tokens * self.input_price + usage.output_tokens * self.output_price) / _MILLION


@dataclass(frozen=True, slots=True)
class Usage:
    """What was asked so far, or would be.

    Attributes:
        requests: answers that were received; each was paid.
        uncounted: those of them for which the server told no tokens: the true cost is higher.
        input_tokens, output_tokens: tokens sent and received, as the server counts them.
        retries: attempts beyond the first of a request.
    """

    requests: int = 0
    uncounted: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    retries: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.uncounted + other.uncounted,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.retries + other.retries,
        )


def told_guess(server: Server) -> str:
    """What a plan's count of tokens rests on, in words: nobody knows before how a model counts an image's."""
    return f"{server.image_tokens} tokens for an image are a guess, image_tokens=N is another"


def told_cost(server: Server, usage: Usage) -> str:
    """Words for a person: answers, tokens and, where the server has prices, the cost; says where it did not count."""
    least = "at least " if usage.uncounted else ""
    priced = server.input_price > 0 or server.output_price > 0
    amount = f"{least}{server.cost(usage):.2f} {server.currency}" if priced else "no prices are given"
    return (
        f"{usage.requests} answers, {least}{usage.input_tokens} tokens sent, {usage.output_tokens} received ({amount})"
    )
