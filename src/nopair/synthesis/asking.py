"""Asking: an engine behind a journal, and answers that have to be of a form.

An answer is kept before it is used, so that it is paid once whatever happens next. What is asked, of whom and in which
manner, and nothing else, is its key: the order in which answers come cannot matter.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar, final, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from nopair.endpoints.messages import Ask, Reply
from nopair.endpoints.server import Usage
from nopair.errors import EndpointError, RefusedError
from nopair.synthesis.journal import Journal

REFUSED: Final = "refused by the model's server"
_REFUSAL: Final = "refused"
"""What the journal holds in place of an answer: what the server said."""
_MISSHAPEN: Final = "answer not of the form asked for"
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
    def manner(self) -> str:
        """What else of it changes its answers, see `nopair.endpoints.server.Server.manner`; "" for the usual."""
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
R = TypeVar("R")


class UnusableError(Exception):
    """A question was answered, as often as it may be asked, but not usably. `reason` is fit for counting."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@final
class Asker:
    """One engine, one journal.

    Attributes:
        reused: answers that the journal had.
        silent: why unusable answers of an earlier run were not asked for anew; None if they were, or there are none.
    """

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self.engine = engine
        self.journal = journal
        self.reused = 0
        self.silent: EndpointError | None = None
        self._answers = False
        self._refusals: dict[str, str] = {}

    async def reply(self, ask: Ask) -> Reply:
        """The answer, from the journal if it was given before.

        Raises:
            UnusableError: the engine refuses the question, or did before.
            UnavailableError, EndpointError: see `Engine.chat`.
        """
        value = self.journal.get(self._key(ask))
        if value is not None:
            if _REFUSAL in value:
                raise UnusableError(REFUSED, value[_REFUSAL])
            self.reused += 1
            self._keep_refusals()
            first = tuple((token, logprob) for token, logprob in value["first"])
            return Reply(value["text"], Usage(**value["usage"]), first, value["finished"])
        try:
            return await self._anew(ask)
        except RefusedError as refusal:
            self._refusals[self._key(ask)] = str(refusal)
            if self._answers:
                self._keep_refusals()
            raise UnusableError(REFUSED, str(refusal)) from None

    async def usable(self, asks: Sequence[Ask], read: Callable[[Reply], R]) -> R:
        """What `read` makes of the first answer it can use; where it can use none, it raises `UnusableError`.

        Answers that an earlier run had, and none of them usable, are asked for anew: the server may be set up better by
        now. They stay as they are if it has no other: with its stage done, it may be gone.

        Raises:
            UnusableError: no answer is usable, or the question is refused.
            UnavailableError, EndpointError: see `Engine.chat`.
        """
        known = all(self._key(ask) in self.journal for ask in asks)
        try:
            return await _first(asks, self.reply, read)
        except UnusableError as error:
            if not known or error.reason == REFUSED or self.silent is not None:
                raise
            unusable = error
        try:
            return await _first(asks, self._anew, read)
        except RefusedError:
            raise unusable from None
        except EndpointError as error:
            self.silent = error
            raise unusable from None

    async def answer(self, ask: Ask, form: type[A], retries: int) -> A:
        """An answer of the form, asked for again if it is not.

        Raises:
            UnusableError: no answer was of the form, or the question is refused.
            UnavailableError, EndpointError: see `Engine.chat`.
        """

        def read(reply: Reply) -> A:
            if not reply.finished:
                raise UnusableError(_MISSHAPEN, f"cut at {ask.max_tokens} tokens")
            try:
                return form.model_validate_json(_unfenced(reply.text))
            except ValidationError as error:
                problem = _problem(error.errors(include_url=False, include_input=False)[0])
                raise UnusableError(_MISSHAPEN, problem) from None

        return await self.usable([ask, *(_again(ask, attempt) for attempt in range(1, retries + 1))], read)

    async def _anew(self, ask: Ask) -> Reply:
        reply = await self.engine.chat(ask)
        self.journal.put(self._key(ask), dataclasses.asdict(reply))
        self._keep_refusals()
        return reply

    def _keep_refusals(self) -> None:
        """Of an engine that answers other questions; one that refuses all of them may be set up better next time."""
        self._answers = True
        for key, words in self._refusals.items():
            self.journal.put(key, {_REFUSAL: words})
        self._refusals.clear()

    def _key(self, ask: Ask) -> str:
        manner = f" {self.engine.manner}" if self.engine.manner else ""
        return ask.digest(f"{self.engine.name} {self.engine.model}{manner}")


async def _first(asks: Sequence[Ask], reply: Callable[[Ask], Awaitable[Reply]], read: Callable[[Reply], R]) -> R:
    """What is read of the first answer that can be used; raises the last `UnusableError` if there is none."""
    *others, last = asks
    for ask in others:
        answer = await reply(ask)
        try:
            return read(answer)
        except UnusableError:
            continue
    return read(await reply(last))


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
