"""Who is asked: a model behind an OpenAI-compatible endpoint, or one loaded here. Both answer the same requests."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, final, runtime_checkable

from pydantic import ValidationError

from nopair.endpoints.client import Endpoint
from nopair.endpoints.messages import Ask, Reply
from nopair.endpoints.server import Server, Usage
from nopair.errors import ConfigError
from nopair.evaluation.specs import Spec, parse_spec

KINDS: Final = ("endpoint", "local")
MOST_TOKENS: Final = 512
"""Of an answer."""
LONGEST_SIDE: Final = 1024
"""Pixels of the longer side of what a server is shown, as of the photos that synthesis keeps."""


@runtime_checkable
class Asked(Protocol):
    """A judge that is ready to answer."""

    @property
    def usage(self) -> Usage:
        """What was asked so far."""
        ...

    async def chat(self, ask: Ask) -> Reply:
        """The judge's words.

        Raises:
            RefusedError: not about this; other questions may pass.
            UnavailableError: no answer for now.
            EndpointError: none to any question.
        """
        ...


@runtime_checkable
class ScoringJudge(Protocol):
    """A judge as a result names it, and how to begin to ask it."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def version(self) -> str:
        """Which one exactly, as far as is known."""
        ...

    @property
    def model(self) -> str:
        """The model's own name, whatever tables call it."""
        ...

    @property
    def temperature(self) -> float | None:
        """At which it answers; None if that is left to its server."""
        ...

    @property
    def server(self) -> Server | None:
        """Where it is and what it costs; None if it runs here."""
        ...

    @property
    def most_tokens(self) -> int:
        """Of an answer."""
        ...

    @property
    def longest_side(self) -> int | None:
        """Pixels of the longer side that larger images are scaled to; None if they are shown as they are."""
        ...

    def session(self) -> AbstractAsyncContextManager[Asked]:
        """Ready to answer, for as long as the context lasts."""
        ...


@final
@dataclass(frozen=True, slots=True)
class EndpointJudge:
    """A `ScoringJudge` behind an address."""

    name: str
    version: str
    server: Server
    most_tokens: int = MOST_TOKENS
    longest_side: int | None = LONGEST_SIDE

    @property
    def model(self) -> str:
        """As its server knows it."""
        return self.server.model

    @property
    def temperature(self) -> float | None:
        """See `ScoringJudge.temperature`."""
        return None if self.server.temperature == "omit" else 0.0

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Asked]:
        """See `ScoringJudge.session`."""
        async with Endpoint(self.server) as endpoint:
            yield endpoint


def load_scoring_judge(text: str, device: str) -> ScoringJudge:
    """`endpoint:URL,model=NAME[,key=VARIABLE][,concurrency=N]…`, or `local:FOLDER[,dtype=bf16]`; both `[,name=…]`.

    Raises:
        ConfigError: another kind, an unknown option or a wrong value.
        ModelError: the local model cannot be used.
        MissingExtraError: the `openai` library is missing.
    """
    spec = parse_spec(text, KINDS)
    if spec.kind == "endpoint":
        return _endpoint(spec)
    from nopair.evaluation.scorers.local import LocalJudge  # imports transformers

    spec.only("name", "dtype", "tokens")
    tokens = spec.number("tokens", MOST_TOKENS)
    return LocalJudge.load(
        Path(spec.place), spec.options.get("name"), spec.options.get("dtype", "bf16"), device, tokens
    )


def _endpoint(spec: Spec) -> EndpointJudge:
    spec.only("name", "version", "tokens", "longest_side", *SERVER_OPTIONS, *CHAT_OPTIONS)
    server = server_of(spec)
    name, version = (spec.options.get(option, server.model) for option in ("name", "version"))
    tokens, side = spec.number("tokens", MOST_TOKENS), spec.number("longest_side", LONGEST_SIDE)
    return EndpointJudge(name, version, server, tokens, side)


SERVER_OPTIONS: Final = (
    "model", "key", "concurrency", "attempts", "timeout", "longest_wait", "input_price", "output_price", "currency",
    "image_tokens",
)  # fmt: skip
"""Options of a spec that say how to reach a server."""
CHAT_OPTIONS: Final = ("max_tokens_field", "temperature")
"""Those that say in which fields a chat model is asked."""


def server_of(spec: Spec) -> Server:
    """The server that a spec's place and options name.

    Raises:
        ConfigError: the model is not named, or a value is wrong.
    """
    if "model" not in spec.options:
        raise ConfigError(f"{spec.text}: which model? Add ,model=NAME")
    words = {"url": spec.place, "model": spec.options["model"]}
    words |= {name: value for name in ("currency", *CHAT_OPTIONS) if (value := spec.options.get(name)) is not None}
    if "key" in spec.options:
        words["key_variable"] = spec.options["key"]
    whole = {name: spec.number(name, 1) for name in ("concurrency", "attempts", "image_tokens") if name in spec.options}
    amounts = ("timeout", "longest_wait", "input_price", "output_price")
    parts = {name: value for name in amounts if (value := spec.amount(name)) is not None}
    try:
        return Server.model_validate(words | whole | parts)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(f"{spec.text}: {key}: {problem['msg']}") from error
