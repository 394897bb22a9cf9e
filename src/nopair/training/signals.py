"""Ctrl-C and SIGTERM as a request to stop at the next good moment."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """Which signal asked to stop, or None so far."""

    signal: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, the first SIGINT or SIGTERM only fills in the request; afterwards the former handlers are back.

    Once a request is there, Ctrl-C has its former meaning, which is to abort at once; a further SIGTERM changes
    nothing. A signal that was ignored before stays ignored, as `nohup` and background jobs expect. Outside the main
    thread, where Python has no signal handlers, the request stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # None is a handler that Python did not install and could not put back.
    former = {number: handler for number, handler in former.items() if handler not in (signal.SIG_IGN, None)}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            return
        request.signal = number
        if signal.SIGINT in former:
            signal.signal(signal.SIGINT, former[signal.SIGINT])
        # The console may be in the middle of a line and hold its lock; a plain write is always safe here.
        os.write(2, b"\nstopping after this step, then saving; Ctrl-C to abort without saving\n")

    for number in former:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
