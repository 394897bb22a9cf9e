"""A signal is no error that a library may take for one of its own."""

import jinja2
import jinja2.lexer
import pytest

from nopair.errors import Interrupted


def test_a_library_that_catches_every_exception_lets_a_signal_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """As jinja does while it reads a chat template."""

    def stopped(*_: object) -> None:
        raise Interrupted(143)

    monkeypatch.setattr(jinja2.lexer.Lexer, "_normalize_newlines", stopped)
    with pytest.raises(Interrupted):
        jinja2.Environment(autoescape=True).from_string("{{ 'a text' }}")
