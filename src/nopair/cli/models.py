"""Commands about the tiny models."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from nopair.cli.common import echo, tiny

_Part: TypeAlias = Literal["vae", "base", "judge", "judge-2", "judge-64", "judge-32", "editor", "all"]


@tiny.command()
def measure(
    judge: Annotated[str, typer.Argument(metavar="JUDGE", help="A tiny judge's folder, or tiny:judge.")] = "tiny:judge",
) -> None:
    """Print what stands on a tiny judge's card: its accuracy by kind of edit, question and kind of attempt.

    A minute or two. `nopair judge audit` measures more, for any judge.
    """
    from nopair.tiny.cards import judge_tables
    from nopair.weights import resolve

    echo(judge_tables(resolve(judge), resolve("tiny:base")))


@tiny.command()
def build(
    part: Annotated[_Part, typer.Argument(help="What to build.")] = "all",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write to, instead of the package's own."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each part, instead of its own number; for a trial.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Train on this judge, a folder or tiny:judge, not a new one."),
    ] = None,
) -> None:
    """Train the tiny models again, from nothing.

    Takes hours; uses a GPU if there is one; the same command goes on where it was stopped. Its runs are in runs/ within
    --output, or in ./runs/tiny.
    """
    from nopair.tiny.build import build as run_build
    from nopair.weights import packaged

    run_build(part, packaged() if output is None else output, steps, start)
