"""Commands about datasets."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from nopair.cli.common import Seed, app, data


@app.command()
def synthesize(
    photos: Annotated[
        Path,
        typer.Argument(metavar="PHOTOS", help="Folder of photos, with whatever is in it; or a dataset to complete."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to change, such as verify.threshold=0.7.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DATASET", help="Folder to write the dataset to.")
    ] = Path("dataset"),
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.")
    ] = "default",
    until: Annotated[
        Literal["scan", "caption", "propose", "verify", "write"],
        typer.Option(help="Last stage to run; a later run goes on from there."),
    ] = "write",
    ray: Annotated[
        int | None,
        typer.Option(min=1, metavar="PARTS", help="Ask from a Ray cluster (RAY_ADDRESS), the photos in so many parts."),
    ] = None,
) -> None:
    """Make a training set of unlabelled photos: scan, caption, propose edits, verify them, write.

    A dataset folder instead of photos, such as an imported one, gets the words that its records lack.

    Models are asked behind OpenAI-compatible servers, such as `vllm serve`, or in this process; the recipe names them.
    Started again, it goes on where it was stopped, and pays for no answer twice. See docs/synthesis.md.
    """
    from nopair.synthesis.command import run_synthesis

    run_synthesis(photos, output, recipe, overrides or [], until, ray)


@data.command(name="import")
def import_data(
    kind: Annotated[
        Literal["pico-banana-400k", "gpt-image-edit-1.5m", "npedit", "photos", "records"],
        typer.Argument(metavar="KIND", help="pico-banana-400k, gpt-image-edit-1.5m, npedit, photos or records."),
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The data set's folder or list.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DATASET", help="Dataset folder to write.")],
    by_path: Annotated[
        bool, typer.Option("--by-path", help="Leave the photos where they are, instead of storing them inside.")
    ] = False,
    licence: Annotated[str, typer.Option(metavar="NAME", help="Licence of photos of your own.")] = "unknown",
) -> None:
    """Make a dataset of a published data set's source photos and instructions, or of your own photos.

    Edited photos are never read. Captions that are missing stay so, for `nopair synthesize` to write. `npedit` is the
    authors' merged_edit_data.json; `photos` any form that can be trained on (docs/data.md); `records` Parquet files
    with the columns of records.
    """
    from nopair.data.command import run_import

    run_import(kind, path, output, licence, by_path=by_path)


@data.command()
def validate(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A dataset in any form.")],
) -> None:
    """Decode every photo, check every record, and print what is wrong: file, row, field and mend."""
    from nopair.data.command import run_validate

    run_validate(dataset)


@data.command()
def inspect(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A dataset folder.")],
    benchmark: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="A benchmark that must not be in it, such as GEdit-Bench. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PAGE", help="Page to write; DATASET/inspection.html.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Records on the page.")] = 60,
    seed: Seed = 0,
) -> None:
    """Count what is in a dataset, find what a benchmark would leak into it, and write a page to browse a sample."""
    from nopair.synthesis.inspect_command import run_inspection

    run_inspection(dataset, benchmark or [], output, samples, seed)
