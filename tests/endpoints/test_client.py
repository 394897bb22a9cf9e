"""The client against a real local server that fails in every way a server can."""

import asyncio
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from email.utils import formatdate
from types import ModuleType
from typing import Any

import pytest

from nopair.endpoints.client import Endpoint
from nopair.endpoints.messages import Ask, Picture, Reply
from nopair.endpoints.server import Server, Usage
from nopair.errors import ConfigError, EndpointError, RefusedError, UnavailableError

KEY = "sk-very-secret-0123456789"
ASK = Ask("Describe the photo.", ("here it is", Picture(b"\x89PNG bytes", "image/png")))
FAR = "Mon, 01 Jan 99999999999999 00:00:00 GMT"
EARLY = "Mon, 01 Jan 0001 00:00:00 -0000"
QUICK: dict[str, Any] = {"first_wait": 0.01, "longest_wait": 5.0, "timeout": 5.0, "attempts": 3}


def server_of(url: str, **changes: Any) -> Server:
    return Server(**{"url": url, "model": "toy", **QUICK, **changes})


def chat(server: Server, asks: Sequence[Ask] = (ASK,)) -> tuple[list[Any], Usage]:
    """Replies or errors, in the order of the questions, and what it took."""
    return asyncio.run(asked_of(server, asks))


async def asked_of(server: Server, asks: Sequence[Ask] = (ASK,)) -> tuple[list[Any], Usage]:
    async with Endpoint(server) as endpoint:
        replies = await asyncio.gather(*map(endpoint.chat, asks), return_exceptions=True)
        return list(replies), endpoint.usage


def test_a_question_arrives_whole_and_so_does_the_answer(endpoint_server: ModuleType) -> None:
    ask = Ask(
        "Only JSON.",
        ("one", Picture(b"first", "image/png"), "two", Picture(b"second", "image/jpeg")),
        schema={"type": "object", "properties": {"a": {"type": "string"}}},
        max_tokens=7,
        temperature=0.5,
        seed=11,
        top=3,
    )
    said = (("Yes", -0.1), ("No", -2.5), ("Maybe", -4.0))
    with endpoint_server.serve(lambda _: endpoint_server.Say("Yes", said, usage=(20, 3))) as server:
        (reply,), usage = chat(server_of(server.url, extra={"chat_template_kwargs": {"enable_thinking": False}}), [ask])
    assert reply == Reply("Yes", Usage(1, 0, 20, 3), said, model="toy")
    assert usage == Usage(1, 0, 20, 3)
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    body = asked.json
    assert body["model"] == "toy"
    assert body["max_tokens"] == 7
    assert body["temperature"] == 0.5
    assert body["seed"] == 11
    assert body["top_logprobs"] == 3
    assert body["response_format"]["json_schema"]["schema"] == ask.schema
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert [part["type"] for part in body["messages"][1]["content"]] == ["text", "image_url", "text", "image_url"]
    assert asked.images == [b"first", b"second"]
    assert asked.system == "Only JSON."


def test_a_model_that_knows_other_fields_is_asked_with_those(endpoint_server: ModuleType) -> None:
    with endpoint_server.serve(lambda _: endpoint_server.Say("a")) as server:
        chat(server_of(server.url, max_tokens_field="max_completion_tokens", temperature="omit"))
        chat(server_of(server.url))
    other, usual = (asked.json for asked in server.asked)
    assert other["max_completion_tokens"] == usual["max_tokens"] == 512
    assert not {"max_tokens", "temperature"} & set(other)
    assert usual["temperature"] == 0
    assert "max_completion_tokens" not in usual


def test_an_answer_cut_at_its_limit_says_so(endpoint_server: ModuleType) -> None:
    with endpoint_server.serve(lambda _: endpoint_server.Say('{"a', finish="length")) as server:
        (reply,), _ = chat(server_of(server.url))
    assert not reply.finished


@pytest.mark.parametrize("failure", ["429", "500", "503", "408", "cut", "no json", "html", "empty", "other", "no text"])
def test_a_passing_failure_is_tried_again(endpoint_server: ModuleType, failure: str) -> None:
    answers = {
        "429": endpoint_server.Fail(429),
        "500": endpoint_server.Fail(500),
        "503": endpoint_server.Fail(503),
        "408": endpoint_server.Fail(408),
        "cut": endpoint_server.Cut(),
        "no json": endpoint_server.Raw(b'{"choices": ['),
        "html": endpoint_server.Raw(b"<html>gateway</html>", "text/html"),
        "empty": endpoint_server.Raw(b"{}"),
        "other": endpoint_server.Raw(b'["choices"]'),
        "no text": endpoint_server.Say(None),
    }
    script = lambda asked: answers[failure] if asked.number < 2 else endpoint_server.Say("good")  # noqa: E731
    with endpoint_server.serve(script) as server:
        (reply,), usage = chat(server_of(server.url))
    assert isinstance(reply, Reply), reply
    assert reply.text == "good"
    assert usage.retries == 2
    assert len(server.asked) == 3


@pytest.mark.parametrize("way", ["Hang", "Drip"])
def test_a_server_that_does_not_answer_is_given_up_and_asked_again(endpoint_server: ModuleType, way: str) -> None:
    late = getattr(endpoint_server, way)()
    script = lambda asked: endpoint_server.Say("late") if asked.number else late  # noqa: E731
    with endpoint_server.serve(script) as server:
        (reply,), usage = asyncio.run(asyncio.wait_for(asked_of(server_of(server.url, timeout=1.0)), 30))
    assert reply.text == "late"
    assert usage.retries == 1


@pytest.mark.parametrize("failure", ["fail", "hang", "drip", "cut"])
def test_attempts_are_bounded(endpoint_server: ModuleType, failure: str) -> None:
    answers = {
        "fail": endpoint_server.Fail(500),
        "hang": endpoint_server.Hang(),
        "drip": endpoint_server.Drip(),
        "cut": endpoint_server.Cut(),
    }
    with endpoint_server.serve(lambda _: answers[failure]) as server:
        (error,), usage = chat(server_of(server.url, timeout=0.1))
    assert isinstance(error, UnavailableError)
    assert "after 3 attempts" in str(error)
    assert "\n" not in str(error)
    assert len(server.asked) == 3
    assert usage == Usage(retries=2)


def test_nobody_at_the_address_is_an_error_of_one_line() -> None:
    (error,), _ = chat(server_of("http://127.0.0.1:9/v1", attempts=1))
    assert isinstance(error, UnavailableError)
    assert "http://127.0.0.1:9/v1" in str(error)


@pytest.mark.parametrize("told", ["0.3", "date"])
def test_the_wait_that_a_server_asks_for_is_honoured(endpoint_server: ModuleType, told: str) -> None:
    """Asked of a clock that only ever says more: the second request may not arrive before its time."""
    arrivals: list[float] = []

    def script(asked: Any) -> Any:
        arrivals.append(time.time())
        if asked.number:
            return endpoint_server.Say("good")
        wanted.append(arrivals[0] + 0.3 if told == "0.3" else float(int(arrivals[0]) + 2))
        return endpoint_server.Fail(429, {"Retry-After": told if told == "0.3" else formatdate(wanted[0], usegmt=True)})

    wanted: list[float] = []
    with endpoint_server.serve(script) as server:
        (reply,), _ = chat(server_of(server.url))
    assert reply.text == "good"
    assert arrivals[1] >= wanted[0]


def test_a_longer_wait_than_allowed_is_not_cut_short_but_given_up(endpoint_server: ModuleType) -> None:
    with endpoint_server.serve(lambda _: endpoint_server.Fail(429, {"Retry-After": "3600"})) as server:
        (error,), _ = chat(server_of(server.url))
    assert isinstance(error, UnavailableError)
    assert "3600 s" in str(error)
    assert len(server.asked) == 1


@pytest.mark.parametrize("told", ["soon", "", "nan", "inf", "-5", "Mon, 99 Foo", FAR, EARLY])
def test_a_senseless_wait_counts_as_none(endpoint_server: ModuleType, told: str) -> None:
    script = lambda asked: (  # noqa: E731
        endpoint_server.Say("good") if asked.number else endpoint_server.Fail(429, {"Retry-After": told})
    )
    with endpoint_server.serve(script) as server:
        (reply,), _ = chat(server_of(server.url))
    assert isinstance(reply, Reply), reply


@pytest.mark.parametrize(("status", "kind"), [(400, RefusedError), (422, RefusedError), (401, EndpointError)])
def test_what_no_further_attempt_can_mend_is_not_repeated(
    endpoint_server: ModuleType, status: int, kind: type[EndpointError]
) -> None:
    with endpoint_server.serve(lambda _: endpoint_server.Fail(status, message="not\nlike this")) as server:
        (error,), _ = chat(server_of(server.url))
    assert type(error) is kind
    assert "not like this" in str(error)
    assert len(server.asked) == 1


def test_log_probabilities_that_are_missing_are_no_answer(endpoint_server: ModuleType) -> None:
    with endpoint_server.serve(lambda _: endpoint_server.Say("Yes")) as server:
        (error,), usage = chat(server_of(server.url), [Ask("s", ("Is it?",), top=5)])
    assert isinstance(error, UnavailableError)
    assert usage.requests == 3, "each was paid"


@pytest.mark.parametrize("odd", [1000.0, 0.5, math.nan, math.inf, -math.inf, 10**400])
def test_numbers_that_are_no_log_probabilities_are_no_answer(endpoint_server: ModuleType, odd: float) -> None:
    script = lambda asked: endpoint_server.Say("Yes", (("Yes", 0.001 if asked.number else odd), ("No", -3.0)))  # noqa: E731
    with endpoint_server.serve(script) as server:
        (reply,), usage = chat(server_of(server.url), [Ask("s", ("Is it?",), top=5)])
    assert reply.first == (("Yes", 0.001), ("No", -3.0))
    assert usage.requests == 2


def test_no_more_requests_are_under_way_than_allowed(endpoint_server: ModuleType) -> None:
    def script(asked: Any) -> Any:
        time.sleep(0.02)
        return endpoint_server.Say(asked.text)

    with endpoint_server.serve(script) as server:
        asks = [Ask("s", (str(number),)) for number in range(12)]
        replies, usage = chat(server_of(server.url, concurrency=3), asks)
    assert [reply.text for reply in replies] == [str(number) for number in range(12)]
    assert 1 < server.most_at_once <= 3
    assert usage.requests == 12


def test_answers_without_counts_are_known_to_be_uncounted(endpoint_server: ModuleType) -> None:
    with endpoint_server.serve(lambda _: endpoint_server.Say("a", usage=None)) as server:
        _, usage = chat(server_of(server.url))
    assert usage == Usage(requests=1, uncounted=1)


# Image edits ----------------------------------------------------------------------------------------------------------


def edit(server: Server, images: Sequence[Picture], fields: Mapping[str, Any] | None = None) -> Picture:
    async def run() -> Picture:
        async with Endpoint(server) as endpoint:
            return await endpoint.edit_image(images, "add a hat", fields)

    return asyncio.run(run())


@pytest.mark.parametrize("count", [1, 2])
def test_an_image_goes_out_and_another_comes_back(endpoint_server: ModuleType, count: int) -> None:
    images = [Picture(b"first-image", "image/png"), Picture(b"second-image", "image/jpeg")][:count]
    with endpoint_server.serve(lambda _: endpoint_server.Draw(b"edited")) as server:
        drawn = edit(server_of(server.url), images, {"size": "512x512", "seed": 3})
    assert drawn == Picture(b"edited", "image/png")
    (asked,) = server.asked
    assert asked.path == "/v1/images/edits"
    assert "multipart/form-data" in asked.headers["content-type"]
    for part in (b"add a hat", b"512x512", b'name="seed"', b"toy", *(image.content for image in images)):
        assert part in asked.body


@pytest.mark.parametrize("body", [b'{"data": []}', b'{"data": [{"b64_json": "%%%"}]}', b"{}"])
def test_something_else_than_an_image_is_an_error(endpoint_server: ModuleType, body: bytes) -> None:
    with endpoint_server.serve(lambda _: endpoint_server.Raw(body)) as server, pytest.raises(UnavailableError):
        edit(server_of(server.url, attempts=1), [Picture(b"a", "image/png")])


# The key --------------------------------------------------------------------------------------------------------------


def test_the_key_goes_to_the_server_and_nowhere_else(
    endpoint_server: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even if the server sends it back in an error."""
    monkeypatch.setenv("TOY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    script = lambda asked: (  # noqa: E731
        endpoint_server.Fail(401, message=f"bad key {KEY}") if asked.number else endpoint_server.Say("a")
    )
    with endpoint_server.serve(script) as server:
        chat(server_of(server.url, key_variable="TOY_KEY"))
        (error,), _ = chat(server_of(server.url, key_variable="TOY_KEY"))
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(error)
    assert error.__suppress_context__
    assert KEY not in caplog.text


def test_an_answer_stays_as_it_is_whatever_the_key(
    endpoint_server: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_KEY", "x")
    with endpoint_server.serve(lambda _: endpoint_server.Say("A fox in a box.")) as server:
        (reply,), _ = chat(server_of(server.url, key_variable="TOY_KEY"))
    assert reply.text == "A fox in a box."


def test_a_key_that_is_not_there_is_told_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOY_KEY", raising=False)
    with pytest.raises(ConfigError, match="export TOY_KEY"):
        Endpoint(server_of("http://127.0.0.1:9/v1", key_variable="TOY_KEY"))


@pytest.mark.parametrize("odd", ["\n", " ", "\r\n", "\t", "\x00", "\x7f", "é", "…", "\u2028"])
def test_a_key_that_no_request_can_carry_is_refused_without_telling_it(
    endpoint_server: ModuleType, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    monkeypatch.setattr("os.environ", {**os.environ, "TOY_KEY": f"sk-one{odd}sk-two"})
    with endpoint_server.serve(lambda _: endpoint_server.Say("a")) as server:
        with pytest.raises(ConfigError, match="export TOY_KEY") as refused:
            chat(server_of(server.url, key_variable="TOY_KEY"))
        assert not server.asked
    assert "sk-" not in str(refused.value)
    monkeypatch.setattr("os.environ", {**os.environ, "TOY_KEY": f" {KEY}\n"})
    assert server_of("http://127.0.0.1:9/v1", key_variable="TOY_KEY").key() == KEY


def test_a_foreign_key_of_the_environment_is_not_sent(
    endpoint_server: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with endpoint_server.serve(lambda _: endpoint_server.Say("a")) as server:
        chat(server_of(server.url))
    assert KEY not in json.dumps(dict(server.asked[0].headers))
