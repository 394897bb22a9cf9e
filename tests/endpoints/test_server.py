"""What a recipe says of a server, and what asking costs."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nopair.endpoints.messages import Ask, Picture, yes_probability
from nopair.endpoints.server import Server, Usage, told_cost


def server_of(**changes: Any) -> Server:
    return Server(**{"url": "http://localhost:8000/v1", "model": "toy", **changes})


@pytest.mark.parametrize(
    "url", ["http://me:secret@host/v1", "https://host/v1?api_key=secret", "https://me@host", "ftp://host", "host:80"]
)
def test_an_address_that_is_none_or_holds_a_key_is_refused_without_telling_the_key(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        server_of(url=url)
    assert "secret" not in refused.value.errors()[0]["msg"]


counts = st.integers(0, 10**12)


@given(counts, counts, counts, counts)
def test_costs_add_up(a: int, b: int, c: int, d: int) -> None:
    server = server_of(input_price=2.0, output_price=8.0)
    one, two = Usage(1, 0, a, b), Usage(1, 1, c, d)
    assert math.isclose(server.cost(one + two), server.cost(one) + server.cost(two), rel_tol=1e-9, abs_tol=1e-9)
    assert (one + two).requests == 2


def test_a_million_tokens_cost_their_price_and_unknown_ones_more() -> None:
    server = server_of(input_price=2.0, output_price=8.0, currency="EUR")
    words = "3 answers, 1000000 tokens sent, 1000000 received (10.00 EUR)"
    assert told_cost(server, Usage(3, 0, 10**6, 10**6)) == words
    assert told_cost(server, Usage(3, 1, 10**6, 10**6)).endswith("(at least 10.00 EUR)")
    assert told_cost(server_of(), Usage(3, 0, 7, 8)) == "3 answers, 7 tokens sent, 8 received (no prices are given)"


def test_probability_is_that_of_all_spellings() -> None:
    first = (("Yes", math.log(0.5)), (" yes", math.log(0.1)), ("No", math.log(0.2)), ("Perhaps", math.log(0.1)))
    assert yes_probability(first) == pytest.approx(0.75)
    assert yes_probability((("NO", -0.1),)) == 0.0
    assert yes_probability((("Perhaps", -0.1),)) is None
    assert yes_probability(()) is None


@pytest.mark.parametrize("odd", [1000.0, 0.5, math.nan, math.inf])
def test_impossible_numbers_are_no_answer(odd: float) -> None:
    """Journals of earlier versions may hold some."""
    assert yes_probability((("Yes", odd), ("No", -3.0))) is None
    assert yes_probability((("Perhaps", odd), ("No", -3.0))) is None


def test_equal_questions_have_equal_digests_and_others_do_not() -> None:
    ask = Ask("s", ("a", Picture(b"x", "image/png")))
    others = [
        Ask("t", ("a", Picture(b"x", "image/png"))),
        Ask("s", ("b", Picture(b"x", "image/png"))),
        Ask("s", ("a", Picture(b"y", "image/png"))),
        Ask("s", (Picture(b"x", "image/png"), "a")),
        Ask("s", ("a", Picture(b"x", "image/png")), seed=1),
        Ask("s", ("a", Picture(b"x", "image/png")), schema={"type": "object"}),
        Ask("s", ("a", Picture(b"x", "image/png")), top=5),
    ]
    digests = [ask.digest("m"), ask.digest("n"), *(other.digest("m") for other in others)]
    assert len(set(digests)) == len(digests)
    assert Ask("s", ("a", Picture(b"x", "image/png"))).digest("m") == digests[0]
