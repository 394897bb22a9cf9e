"""Asking: an engine behind a journal, and answers that have to be of a form.

An answer is kept before it is used, so that it is paid once whatever happens next. What is asked, and nothing else, is
its key: the order in which answers come cannot matter.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar, final, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from nopair.endpoints.messages import Ask, Reply
from nopair.endpoints.server import Usage
from nopair.errors import RefusedError
from nopair.synthesis.journal import Journal

REFUSED: Final = "refused by the model's server"
_HOTTER: Final = 0.3
"""Least temperature of a repeated question: at 0 it would have the same answer."""


@runtime_checkable
class Engine(Protocol):
    """A model to ask, wherever it runs."""

    @property
    def name(self) -> str:
        """Kind of engine, for the records."""
        ...

    @property
    def model(self) -> str:
        """The model's name, for the records."""
        ...

    @property
    def concurrency(self) -> int:
        """How many questions it may be asked at a time."""
        ...

    @property
    def usage(self) -> Usage:
        """What was asked so far."""
        ...

    async def chat(self, ask: Ask) -> Reply:
        """The answer.

        Raises:
            RefusedError: this question is refused; others may pass.
            UnavailableError: no answer now; perhaps later.
        """
        ...


class Answer(BaseModel):
    """Base of the forms that answers have to be of: strict, and no field too many."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


A = TypeVar("A", bound=Answer)


class UnusableError(Exception):
    """A question was answered, as often as it may be asked, but not usably. `reason` is fit for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@final
class Asker:
    """One engine, one journal. `reused` counts answers that the journal had."""

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self.engine = engine
        self.journal = journal
        self.reused = 0

    async def reply(self, ask: Ask) -> Reply:
        """The answer, from the journal if it was given before.

        Raises:
            UnusableError: the engine refuses the question.
            UnavailableError, EndpointError: see `Engine.chat`.
        """
        key = ask.digest(f"{self.engine.name} {self.engine.model}")
        value = self.journal.get(key)
        if value is not None:
            self.reused += 1
        else:
            try:
                value = dataclasses.asdict(await self.engine.chat(ask))
            except RefusedError as refusal:  # not kept: nothing was paid, and the server may be set up better next time
                raise UnusableError(REFUSED, str(refusal)) from None
            self.journal.put(key, value)
        first = tuple((token, logprob) for token, logprob in value["first"])
        return Reply(value["text"], Usage(**value["usage"]), first, value["finished"])

    async def answer(self, ask: Ask, form: type[A], retries: int) -> A:
        """An answer of the form, asked for again if it is not.

        Raises:
            UnusableError: no answer was of the form, or the question is refused.
            UnavailableError, EndpointError: see `Engine.chat`.
        """
        problem = ""
        for attempt in range(retries + 1):
            asked = ask if not attempt else _again(ask, attempt)
            reply = await self.reply(asked)
            if not reply.finished:
                problem = f"cut at {ask.max_tokens} tokens"
                continue
            try:
                return form.model_validate_json(_unfenced(reply.text))
            except ValidationError as error:
                problem = _problem(error.errors(include_url=False, include_input=False)[0])
        raise UnusableError("answer not of the form asked for", problem)


def _again(ask: Ask, attempt: int) -> Ask:
    seed = None if ask.seed is None else ask.seed + attempt
    return dataclasses.replace(ask, seed=seed, temperature=max(ask.temperature, _HOTTER))


def _unfenced(text: str) -> str:
    """Models without a constraint like to put JSON into a code fence."""
    stripped = text.strip()
    if stripped.startswith("```") and stripped.endswith("```") and len(stripped) > 6:
        return stripped[3:-3].removeprefix("json")
    return stripped


def _problem(problem: Mapping[str, Any]) -> str:
    """Place and kind, and not a word of the answer."""
    place = ".".join(str(part) for part in problem["loc"] if isinstance(part, int))
    return f"{problem['type']}{f' at {place}' if place else ''}"
