"""Ctrl-C, SIGTERM and a closed terminal as a request to stop at the next good moment."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

STOPS: Final = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if name in signal.Signals.__members__
)
"""What asks a run to stop. SIGHUP, of a terminal that is gone, is not on every system."""


@dataclass(slots=True)
class StopRequest:
    """Which signal asked to stop, or None so far."""

    signal: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, the first of `STOPS` only fills in the request; afterwards the former handlers are back.

    Once a request is there, Ctrl-C has its former meaning, which is to abort at once; a further SIGTERM or SIGHUP
    changes nothing. A signal that was ignored before stays ignored, as `nohup` and background jobs expect. Outside the
    main thread, where Python has no signal handlers, the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.getsignal(number) for number in STOPS}
    # None is a handler that Python did not install and could not put back.
    former = {number: handler for number, handler in former.items() if handler not in (signal.SIG_IGN, None)}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            return
        request.signal = number
        if signal.SIGINT in former:
            signal.signal(signal.SIGINT, former[signal.SIGINT])
        # The console may be in the middle of a line and hold its lock; a plain write is always safe here.
        with contextlib.suppress(OSError):  # after a hang-up there may be no terminal to write to
            os.write(2, b"\nstopping after this step, then saving; Ctrl-C to abort without saving\n")

    for number in former:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
