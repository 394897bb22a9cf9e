"""What commands share: the groups they belong to, options, and how a line is printed."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from nopair.data.files import shown

app = typer.Typer(
    name="nopair",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
tiny = typer.Typer(no_args_is_help=True, help="The tiny models that come with nopair.")
app.add_typer(tiny, name="tiny")
judges = typer.Typer(no_args_is_help=True, help="Judges: know yours before you train on it.")
app.add_typer(judges, name="judge")
data = typer.Typer(no_args_is_help=True, help="Datasets: photos with what to ask of each.")
app.add_typer(data, name="data")

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.")]
Folder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.")]
Dtype = Annotated[Literal["bf16", "fp16", "fp32"], typer.Option(help="Precision of the weights written.")]
Computed = Annotated[
    Literal["auto", "bf16", "fp16", "fp32"],
    typer.Option(help="Precision the editor computes in; auto is as it is stored on a GPU, and fp32 on a CPU."),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]

BenchmarkName = Annotated[
    str | None,
    typer.Option(
        metavar="KIND:PLACE", help="gedit:, imgedit:, dreambooth:, folder: or jsonl:, instead of the shapes world."
    ),
]
EditorNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND:PLACE", help="nopair:, diffusers:, endpoint: or outputs:, as often as there are editors."
    ),
]
JudgeNames = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND:PLACE",
        help="Who marks: endpoint:URL,model=NAME or local:FOLDER; may be several. In the shapes world: a model folder.",
    ),
]
ScorerName = Annotated[
    Literal["viescore", "imgedit", "similarity"] | None,
    typer.Option(help="How, instead of as the benchmark's makers do."),
]
RubricFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Official texts of the scorer, instead of nopair's own.")
]
FeatureNames = Annotated[
    list[str] | None, typer.Option(metavar="KIND:PLACE", help="dino:FOLDER and clip:FOLDER, for similarity.")
]


def tell(error: object) -> None:
    """An error, on one line."""
    echo("error: " + " ".join(str(error).splitlines()), err=True)


def echo(line: str, *, err: bool = False) -> None:
    """Names of files may hold bytes that are no text."""
    typer.echo(shown(line), err=err)
