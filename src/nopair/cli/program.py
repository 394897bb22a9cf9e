"""The program: what comes before any command, and what becomes of errors and signals."""

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated, NoReturn

import typer

from nopair import __version__
from nopair.cli.common import app, tell
from nopair.errors import Interrupted, NopairError
from nopair.training.signals import STOPS


def _print_version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"nopair {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def nopair(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. Works in any place.")] = False,
) -> None:
    """Turn a text-to-image model into an image editor that follows instructions, without a single before/after pair.

    New here? `nopair demo` trains a small editor in front of your eyes, in minutes and without a GPU.

    `nopair edit photo.png "make the red circle blue" -o new.png` edits an image.

    `nopair train RECIPE` trains an editor of your own.
    """


def main() -> NoReturn:
    """Run `nopair` and exit: 0, 2 or 3 for an error of the user's (one line), 130, 143 or 129 when stopped by a signal.

    Any other exception is a bug and shows its traceback.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # also those of loading local weights
    for number in set(STOPS) - {signal.SIGINT}:  # Python has its own exception for that one
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="nopair")
    except NopairError as error:
        _fail(error, debug="--debug" in sys.argv[1:])
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise SystemExit(stop.exit_code) from None
    raise SystemExit(0)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """An exception instead of sudden death, so that unfinished files are removed."""
    raise Interrupted(128 + number)


def _fail(error: NopairError, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    tell(error)
    raise SystemExit(error.exit_code) from None
