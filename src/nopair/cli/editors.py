"""Commands that make editors and edit."""

from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from nopair.cli.common import Computed, Device, Dtype, Folder, RecipeName, Seed, app, echo, tell
from nopair.errors import NopairError
from nopair.planning.cards import CARDS, EFFICIENCY

SHIPPED: Final = "tiny:editor"


@app.command()
def demo(output: Folder = Path("runs/demo"), seed: Seed = 0) -> None:
    """Train a small editor from scratch, score it, and write a report: DIR/report.html.

    Needs 2 CPU cores, 8 to 17 minutes, and no network. The folder also gets the editor itself, the picture of
    the results (grid.png) and all numbers (results.json).
    """
    from nopair.evaluation.demo import demo as run_demo

    run_demo(output, seed)


@app.command()
def edit(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="An image, a folder of images, or a .jsonl file of jobs.")
    ],
    instruction: Annotated[
        str | None, typer.Argument(metavar="INSTRUCTION", help="What to change. Left out with a .jsonl file.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="OUT", help="Image to write; a folder if IMAGE is many.")
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="DIR", help="The editor: a model folder, or the one shipped.")
    ] = SHIPPED,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Another seed gives another result.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Sampling steps, instead of those the editor was trained for.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images edited at a time; the results do not depend on it.")] = 8,
    device: Device = "auto",
    dtype: Computed = "auto",
    bits: Annotated[
        Literal["4", "8"] | None, typer.Option(help="Quantise the editor, as base.bits in training; needs a GPU.")
    ] = None,
) -> None:
    """Edit an image, or many, as an instruction says.

    Reads and writes PNG, JPEG and WebP of any size. A line of a .jsonl file is one job:
    `{"image": "a.png", "instruction": "remove the hat", "output": "b.png", "seed": 1}`, the seed being optional. Of
    many images, one that fails is told and the others go on; the exit code then is 2.
    """
    from nopair.data.jobs import Failure, left_out, read_jobs

    jobs, failures = read_jobs(image, instruction, output, seed)
    if others := left_out(image):
        echo(f"note: {others}", err=True)
    for failure in failures:
        tell(failure)
    if jobs:
        from nopair.device import choose_device
        from nopair.editor import Editor, run_jobs
        from nopair.precision import dtype_called

        quantised = None if bits is None else 4 if bits == "4" else 8
        editor = Editor.load(model, choose_device(device), dtype_called(dtype), quantised)
        editor = editor if steps is None else editor.with_steps(steps)
        asked = len(jobs) + len(failures)
        for job, error in run_jobs(editor, jobs, batch):
            if error is None:
                echo(str(job.output))
            elif asked == 1:
                raise error
            else:
                failures.append(Failure(job.where, error))
                tell(failures[-1])
        if model == SHIPPED:
            echo(
                f"note: {SHIPPED} knows drawn scenes of coloured shapes and no photos; --model names another", err=True
            )
    if failures:
        raise typer.Exit(NopairError.exit_code)


@app.command()
def train(
    recipe: RecipeName,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to change, such as npedit.lr=1e-4.")
    ] = None,
    resume: Annotated[
        Literal["latest"] | None, typer.Option(help="Go on from the newest complete checkpoint in the output folder.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder of the run, instead of the recipe's own."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train an editor as a recipe says. Ctrl-C saves first; `--resume latest` goes on from there: bit for bit on the
    CPU; on a GPU, kernels are not asked to be deterministic, and the last digits may differ.

    On several GPUs: `torchrun --nproc-per-node 8 -m nopair train RECIPE`.
    """
    from nopair.config import load_recipe
    from nopair.settings import path_override
    from nopair.training.run import train as run_train

    changes = [*(overrides or []), *([] if output is None else [path_override("output", output)])]
    run_train(load_recipe(recipe, changes), resume=resume is not None, device=device)


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to change, such as judge.bits=4.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    ranks: Annotated[int, typer.Option(min=1, help="Processes (GPUs) that share each batch.")] = 1,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="What is planned for.")] = "cuda",
    switches: Annotated[bool, typer.Option(help="Also plan with each switch changed; takes longer.")] = True,
    card: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"Estimate time on a known card: {', '.join(CARDS)}.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(metavar="N", help="Or on a card of N TFLOP/s (bfloat16, dense).")
    ] = None,
    efficiency: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help=f"Share of that which training reaches, above 0 to 1; else {EFFICIENCY}."),
    ] = None,
) -> None:
    """Tell what a recipe will cost before it costs anything: memory by phase and owner, operations, what would save.

    Needs no GPU and no weights: a local model folder, or the name of a published model that nopair knows.
    """
    from nopair.config import load_recipe
    from nopair.planning.cards import throughput
    from nopair.planning.command import show_plan

    speed = throughput(card, tflops, efficiency)
    show_plan(load_recipe(recipe, overrides or []), speed, ranks, device, switches=switches, as_json=as_json)


@app.command()
def preview(
    recipe: RecipeName,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to change, such as data.path=photos.jsonl.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Picture to write.")] = Path(
        "preview.png"
    ),
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Records to show.")] = 8,
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Calls of the teacher for each picture.")] = 20,
    device: Device = "auto",
) -> None:
    """Draw what a recipe's base makes of the edited captions of its data: what it cannot draw, no editor will learn.

    Loads the base alone. A row for each record: the photo, its words, what the base draws from noise as training will
    ask it to, and where it sees the edit in the photo.
    """
    from rich.console import Console

    from nopair.config import load_recipe
    from nopair.device import choose_device
    from nopair.evaluation.preview import preview as draw

    draw(load_recipe(recipe, overrides or []), output, count, steps, str(choose_device(device)), Console())


@app.command(name="import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The authors' zimage_npedit_internvl.pt.")],
    base: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the Z-Image it was trained from.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write the editor to.")],
    dtype: Dtype = "bf16",
) -> None:
    """Make an editor of the student that the authors of NP-Edit publish (huggingface.co/nupurkmr9/npedit)."""
    from nopair.exchange import import_editor

    import_editor(checkpoint, base, output, dtype)
    echo(f"the editor is in {output}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="EDITOR", help="The editor: a model folder, or tiny:editor.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write the copy to.")],
    dtype: Dtype = "bf16",
) -> None:
    """Copy an editor for use in stock diffusers, whose scheduler then samples as nopair does: see docs/export.md."""
    from nopair.exchange import export_editor

    export_editor(model, output, dtype)
    echo(f"the copy is in {output}")
