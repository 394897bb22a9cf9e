"""The client: one server, many requests at a time, each tried a bounded number of times.

The transport is the `openai` library's (extra `synth`), whose own retries are off: here every attempt is counted, also
one whose answer arrived, and was paid, but was not what was asked for.
"""

import asyncio
import base64
import binascii
import email.utils
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar, final

from nopair.endpoints.messages import Ask, Picture, Reply, is_log_probability
from nopair.endpoints.server import Server, Usage
from nopair.errors import ContentRefusedError, EndpointError, MissingExtraError, RefusedError, UnavailableError

if TYPE_CHECKING:
    from openai import APIStatusError

T = TypeVar("T")
_PASSING: Final = frozenset({408, 409, 425, 429})
"""Statuses that may be another one at the next attempt; those from 500 on are, too."""
_OF_ONE_REQUEST: Final = frozenset({400, 413, 415, 422})
"""Statuses that refuse what was asked, not who asks."""
_FOR_ITS_CONTENT: Final = frozenset({400, 403, 422, 451})
"""Statuses that a content filter may have."""
_FILTERED: Final = re.compile(
    r"content[ _-]*(?:filter|policy|management[ _-]*policy)|safety[ _-]*(?:system|polic)|moderation[ _-]*blocked|"
    r"responsible[ _-]*ai",
    re.IGNORECASE,
)
"""What servers say then, in code or message."""
_LONGEST_QUOTE: Final = 200


class _MalformedReply(Exception):
    """A server answered 200 with something that is no answer."""


@final
class Endpoint:
    """A server to ask, as an async context manager. Belongs to one event loop.

    Attributes:
        server: which one.
        usage: what was asked so far; also counts answers that could not be used.
    """

    def __init__(self, server: Server) -> None:
        """Reads the key from the environment; connects at the first request.

        Raises:
            ConfigError: the key is not set.
            MissingExtraError: the `openai` library is not installed.
        """
        try:
            from openai import AsyncOpenAI
        except ImportError:
            raise MissingExtraError("openai", "synth") from None
        self.server = server
        self.usage = Usage()
        self._key = server.key()
        # The library insists on a key; a server without one ignores it.
        self._client: AsyncOpenAI = AsyncOpenAI(
            base_url=server.url, api_key=self._key or "none", timeout=server.timeout, max_retries=0
        )
        self._free = asyncio.Semaphore(server.concurrency)

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def chat(self, ask: Ask) -> Reply:
        """The model's answer.

        Raises:
            ContentRefusedError: a filter or the model refuses this content.
            RefusedError: the server refuses this request for another reason; others may pass.
            UnavailableError: no answer after all attempts.
            EndpointError: the server refuses us altogether: wrong key, no such model or address.
        """
        return await self._attempts(lambda: self._chat(ask))

    async def edit_image(
        self, images: Sequence[Picture], prompt: str, fields: Mapping[str, Any] | None = None
    ) -> Picture:
        """One edited image, by `images/edits`. `fields` are further fields of the form, such as size or steps.

        Raises:
            RefusedError, UnavailableError, EndpointError: see `chat`.
        """
        return await self._attempts(lambda: self._edit(images, prompt, fields or {}))

    # One attempt ------------------------------------------------------------------------------------------------------

    async def _chat(self, ask: Ask) -> Reply:
        optional: dict[str, Any] = {self.server.max_tokens_field: ask.max_tokens}
        if self.server.temperature == "asked":
            optional["temperature"] = ask.temperature
        if ask.seed is not None:
            optional["seed"] = ask.seed
        if ask.schema is not None:
            constraint = {"name": "answer", "schema": dict(ask.schema), "strict": True}
            optional["response_format"] = {"type": "json_schema", "json_schema": constraint}
        if ask.top:
            optional |= {"logprobs": True, "top_logprobs": ask.top}
        completion: Any = await self._client.chat.completions.create(
            model=self.server.model,
            messages=[
                {"role": "system", "content": ask.system},
                {"role": "user", "content": [_content(part) for part in ask.parts]},  # pyright: ignore
            ],
            extra_body=dict(self.server.extra),
            **optional,
        )
        try:
            usage = _usage(completion.usage, "prompt_tokens", "completion_tokens")
            self.usage += usage
            choice = completion.choices[0]
            text, refusal = choice.message.content, choice.message.refusal
            filtered = choice.finish_reason == "content_filter"
            if isinstance(refusal, str) or filtered:
                words = self._without_key(refusal or text or "content filter")
                who = "a content filter" if filtered else "the model"
                raise ContentRefusedError(f"{self.server.url}: {who} refuses this: {self._quote(words)}", words)
            if not isinstance(text, str):
                raise _MalformedReply("a reply without text")
            first = _first(choice.logprobs) if ask.top else ()
        except (AttributeError, IndexError, OverflowError, TypeError, ValueError):
            raise _MalformedReply("something else than a chat completion") from None
        model = completion.model if isinstance(completion.model, str) else ""
        return Reply(text, usage, first, choice.finish_reason != "length", model)

    async def _edit(self, images: Sequence[Picture], prompt: str, fields: Mapping[str, Any]) -> Picture:
        files: Any = [
            (f"image{number}.{image.media_type.rpartition('/')[2]}", image.content, image.media_type)
            for number, image in enumerate(images)
        ]
        answer: Any = await self._client.images.edit(
            image=files if len(files) > 1 else files[0],
            prompt=prompt,
            model=self.server.model,
            n=1,
            extra_body={**self.server.extra, **fields},
        )
        try:
            self.usage += _usage(answer.usage, "input_tokens", "output_tokens")
            encoded, link = answer.data[0].b64_json, answer.data[0].url
            if encoded is None and link is not None:
                raise EndpointError(
                    f"{self.server.url}: sends a link instead of an image; ask for one with ,response_format=b64_json"
                )
            content = base64.b64decode(encoded or "", validate=True)
            if not content:
                raise _MalformedReply("an empty image")
        except (AttributeError, IndexError, TypeError, ValueError, binascii.Error):
            raise _MalformedReply("something else than an image") from None
        kind = answer.output_format if isinstance(answer.output_format, str) else "png"
        return Picture(content, f"image/{kind}")

    # All attempts -----------------------------------------------------------------------------------------------------

    async def _attempts(self, attempt: Callable[[], Awaitable[T]]) -> T:
        from openai import APIConnectionError, APIResponseValidationError, APIStatusError, APITimeoutError

        problem, asked_to_wait = "", None
        async with self._free:
            for number in range(self.server.attempts):
                if number:
                    self.usage += Usage(retries=1)
                    await asyncio.sleep(self._wait(number, asked_to_wait))
                asked_to_wait = None
                try:
                    async with asyncio.timeout(self.server.timeout):  # the library's is of each single byte
                        return await attempt()
                except _MalformedReply as malformed:
                    problem = f"the server sends {malformed}"
                except (APITimeoutError, TimeoutError):
                    problem = f"no answer in {self.server.timeout:g} s"
                except APIStatusError as error:
                    problem = self._refusal(error)
                    asked_to_wait = _retry_after(error.response.headers)
                    self._raise_if_final(error, problem, asked_to_wait)
                except (APIConnectionError, APIResponseValidationError, ValueError) as error:
                    problem = f"no usable answer ({self._quote(error.__cause__ or error)})"
        times = f"{self.server.attempts} attempt{'s' if self.server.attempts > 1 else ''}"
        raise UnavailableError(f"{self.server.url}: {problem}, after {times}; check the server and run again")

    def _raise_if_final(self, error: "APIStatusError", problem: str, asked_to_wait: float | None) -> None:
        """Raise what a further attempt cannot mend."""
        status = error.status_code
        if status in _FOR_ITS_CONTENT and _FILTERED.search(f"{error.code} {error.message}"):
            words = self._without_key(str(error))
            raise ContentRefusedError(f"{self.server.url}: refuses this content: {problem}", words) from None
        if status in _OF_ONE_REQUEST:
            raise RefusedError(f"{self.server.url}: refuses this request: {problem}") from None
        if status < 500 and status not in _PASSING:
            raise EndpointError(f"{self.server.url}: {problem}; check url, model and key_variable") from None
        if asked_to_wait is not None and asked_to_wait > self.server.longest_wait:
            raise UnavailableError(
                f"{self.server.url}: {problem}; it asks to wait {asked_to_wait:.0f} s, longest_wait is "
                f"{self.server.longest_wait:g} s; allow more, or run again later"
            ) from None

    def _wait(self, number: int, asked: float | None) -> float:
        """Seconds before attempt `number`: as the server asked, or doubling, half of it left to chance."""
        longest = min(self.server.first_wait * 2.0 ** min(number - 1, 60), self.server.longest_wait)
        jittered = longest * random.uniform(0.5, 1.0)
        return jittered if asked is None else asked + 0.1 * jittered  # not all at the same moment

    def _refusal(self, error: "APIStatusError") -> str:
        return f"status {error.status_code} ({self._quote(error)})"

    def _quote(self, error: object) -> str:
        words = self._without_key(" ".join(str(error).split())) or type(error).__name__
        return words if len(words) <= _LONGEST_QUOTE else f"{words[:_LONGEST_QUOTE]}..."

    def _without_key(self, text: str) -> str:
        """A server may say in an error or a refusal what it was sent. Answers are the model's, which sees no key."""
        return text if self._key is None else text.replace(self._key, "[key]")


def _content(part: str | Picture) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    encoded = base64.b64encode(part.content).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{part.media_type};base64,{encoded}"}}


def _usage(told: Any, sent: str, received: str) -> Usage:
    """One answer's usage; servers may leave it out."""
    there, back = getattr(told, sent, None), getattr(told, received, None)
    if isinstance(there, int) and isinstance(back, int) and there >= 0 and back >= 0:
        return Usage(requests=1, input_tokens=there, output_tokens=back)
    return Usage(requests=1, uncounted=1)


def _first(logprobs: Any) -> tuple[tuple[str, float], ...]:
    """The likeliest first tokens."""
    if logprobs is None or not logprobs.content:
        raise _MalformedReply("no log-probabilities, which were asked for")
    first = tuple((str(one.token), float(one.logprob)) for one in logprobs.content[0].top_logprobs)
    if not all(is_log_probability(value) for _, value in first):
        raise _MalformedReply("numbers that are no log-probabilities")
    return first


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, by a number or a date; None if it does not, or not understandably."""
    told = headers.get("retry-after")
    if told is None:
        return None
    try:
        seconds = float(told)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
        except (OverflowError, ValueError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None
