"""A signal asks; the second Ctrl-C insists; afterwards everything is as before."""

import signal
import threading
from collections.abc import Iterator

import pytest

from nopair.training.signals import STOPS, StopRequest, stop_on_signals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Python's own handlers, whatever the session was started under."""
    former = {number: signal.getsignal(number) for number in STOPS}
    for number in STOPS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
def test_the_first_signal_only_asks(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals() as stop:
        assert stop == StopRequest(None)
        signal.raise_signal(number)
        assert stop.signal == number
    assert "Ctrl-C to abort" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert all(signal.getsignal(other) is signal.SIG_DFL for other in STOPS[1:])


def test_a_closed_terminal_is_one_of_them() -> None:
    assert signal.SIGHUP in STOPS


@pytest.mark.parametrize("first", STOPS)
def test_ctrl_c_after_a_request_aborts(first: signal.Signals) -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == first


@pytest.mark.parametrize("first", STOPS)
def test_a_further_sigterm_changes_nothing(first: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == first
    assert capfd.readouterr().err.count("stopping") == 1


def test_the_handlers_come_back_after_an_error() -> None:
    with pytest.raises(KeyError), stop_on_signals():
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_a_thread_nothing_is_installed() -> None:
    seen: list[object] = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
