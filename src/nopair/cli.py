"""The command line: parse, call, print.

Whatever needs torch is imported inside the command that needs it, so that `--help` is instant.
"""

import os
import shlex
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

import typer

from nopair import __version__
from nopair.errors import ConfigError, Interrupted, NopairError

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

Folder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Dtype = Annotated[Literal["bf16", "fp16", "fp32"], typer.Option(help="Precision of the weights written.")]
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
    typer.Option(metavar="KIND:PLACE", help="Who marks: endpoint:URL,model=NAME or local:FOLDER; may be several."),
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


@app.command()
def demo(output: Folder = Path("runs/demo"), seed: Seed = 0) -> None:
    """Train a small editor from scratch, score it, and write a report: DIR/report.html.

    Needs 2 CPU cores and ten to twenty minutes, and no network. The folder also gets the editor itself, the picture of
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
    ] = "tiny:editor",
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Another seed gives another result.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Sampling steps, instead of those the editor was trained for.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images edited at a time; the results do not depend on it.")] = 8,
    device: Device = "auto",
) -> None:
    """Edit an image, or many, as an instruction says.

    Reads and writes PNG, JPEG and WebP of any size. A line of a .jsonl file is one job:
    `{"image": "a.png", "instruction": "remove the hat", "output": "b.png", "seed": 1}`, the seed being optional. Of
    many images, one that fails is told and the others go on; the exit code then is 2.
    """
    from nopair.data.jobs import Failure, read_jobs

    jobs, failures = read_jobs(image, instruction, output, seed)
    for failure in failures:
        _tell(failure)
    if jobs:
        from nopair.device import choose_device
        from nopair.editor import Editor, run_jobs

        editor = Editor.load(model, choose_device(device))
        editor = editor if steps is None else editor.with_steps(steps)
        asked = len(jobs) + len(failures)
        for job, error in run_jobs(editor, jobs, batch):
            if error is None:
                _print(str(job.output))
            elif asked == 1:
                raise error
            else:
                failures.append(Failure(job.where, error))
                _tell(failures[-1])
    if failures:
        raise typer.Exit(NopairError.exit_code)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.")],
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
    """Train an editor as a recipe says. Ctrl-C saves first; `--resume latest` goes on from there, bit for bit.

    On several GPUs: `torchrun --nproc-per-node 8 -m nopair train RECIPE`.
    """
    from nopair.config import load_recipe
    from nopair.settings import path_override
    from nopair.training.run import train as run_train

    changes = [*(overrides or []), *([] if output is None else [path_override("output", output)])]
    run_train(load_recipe(recipe, changes), resume=resume is not None, device=device)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a shipped recipe, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values to change, such as judge.bits=4.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    ranks: Annotated[int, typer.Option(min=1, help="Processes (GPUs) that share each batch.")] = 1,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="What is planned for.")] = "cuda",
    switches: Annotated[bool, typer.Option(help="Also plan with each switch changed; takes longer.")] = True,
    card: Annotated[str | None, typer.Option(metavar="NAME", help="Estimate time on a known card: h100.")] = None,
    tflops: Annotated[
        float | None, typer.Option(metavar="N", help="Or on a card of N TFLOP/s (bfloat16, dense).")
    ] = None,
    efficiency: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of that which training reaches, above 0 to 1.")
    ] = 0.35,
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
def evaluate(
    model: Annotated[
        str, typer.Option(metavar="DIR", help="The editor: a model folder, or the one shipped.")
    ] = "tiny:editor",
    benchmark: BenchmarkName = None,
    editor: EditorNames = None,
    judge: JudgeNames = None,
    scorer: ScorerName = None,
    rubric: RubricFile = None,
    features: FeatureNames = None,
    language: Annotated[list[str] | None, typer.Option(help="Only instructions in this language: en, cn.")] = None,
    per_category: Annotated[
        int | None,
        typer.Option(min=1, help="Edits of each kind; by default 32 in the shapes world, all of a benchmark."),
    ] = None,
    categories: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Kinds of edit in the shapes world, such as free-form; by default the nine local ones."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would take and cost.")] = False,
    seed: Seed = 0,
    output: Folder = Path("runs/evaluate"),
    device: Device = "auto",
) -> None:
    """Score an editor: on held-out scenes of the shapes world, or on a benchmark with --benchmark (docs/evaluation.md).

    In the shapes world, the oracle's verdict, and the judge's beside it. On a benchmark, any editors, side by side:
    `nopair evaluate --benchmark gedit:GEdit-Bench --editor nopair:runs/mine/editor --editor outputs:their-images
    --judge endpoint:http://localhost:8000/v1,model=NAME`. The same command goes on where it was stopped.
    """
    if benchmark is None:
        from nopair.evaluation.world import evaluate as run_evaluate

        _only_with_benchmark(editor, judge, scorer, rubric, features, language, dry_run)
        named = {} if categories is None else {"categories": tuple(name.strip() for name in categories.split(","))}
        run_evaluate(model, per_category or 32, seed, output, device, **named)
        return
    if categories is not None:
        raise ConfigError("--categories is for the shapes world; leave it out with --benchmark")
    from nopair.evaluation.scoreboard.command import Request, evaluate_benchmark

    request = Request(
        benchmark=benchmark,
        editors=tuple(editor or [f"nopair:{model},seed={seed}"]),
        judges=tuple(judge or ()),
        features=tuple(features or ()),
        scorer=scorer,
        rubric=rubric,
        languages=tuple(language or ()),
        per_category=per_category,
        output=output,
        device=device,
        dry_run=dry_run,
        command=shlex.join(["nopair", *sys.argv[1:]]),
    )
    evaluate_benchmark(request)


def _only_with_benchmark(*given: object) -> None:
    if any(given):
        raise ConfigError("editors, judges and their options need a benchmark; give --benchmark KIND:PLACE, too")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="FOLDER", help="An evaluation on a benchmark: its --output.")],
    second: Annotated[str, typer.Argument(metavar="FOLDER", help="Another; FOLDER:EDITOR if it holds several.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of a table.")] = False,
) -> None:
    """Say how much better the second is, on the edits that both have marks for, with paired bootstrap intervals."""
    from nopair.evaluation.scoreboard.comparison import compare_runs

    compare_runs(first, second, as_json=as_json)


@app.command()
def study(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which; `all` for one after the other, none for a list.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of each configuration, instead of 3.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Runs of a few steps: what a study does, and nothing learnt.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time; with more than 1, each on one thread.")] = 1,
    output: Folder = Path("runs/studies"),
    device: Device = "auto",
) -> None:
    """Re-run a claim of the paper in the shapes world: editors trained side by side, scored by the oracle.

    The same command goes on where it was stopped, and leaves out what is done. DIR/NAME gets report.html, results.json
    and results.md. See docs/results.md.
    """
    from nopair.evaluation.studies.command import Request, list_studies
    from nopair.evaluation.studies.command import study as run_study

    if name is None:
        list_studies()
        return
    command = shlex.join(["nopair", *sys.argv[1:]])
    run_study(Request(name, seeds, quick, workers, output, device, command))


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
    _print(f"the editor is in {output}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="EDITOR", help="The editor: a model folder, or tiny:editor.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write the copy to.")],
    dtype: Dtype = "bf16",
) -> None:
    """Copy an editor for use in stock diffusers, whose scheduler then samples as nopair does: see docs/export.md."""
    from nopair.exchange import export_editor

    export_editor(model, output, dtype)
    _print(f"the copy is in {output}")


@app.command()
def oracle(count: Annotated[int, typer.Option(min=1, help="Scenes to try.")] = 200) -> None:
    """Print how often the oracle, which scores edits in the shapes world, is itself wrong."""
    from nopair.evaluation.world import print_oracle

    print_oracle(count)


@judges.command()
def audit(
    judge: Annotated[str, typer.Argument(metavar="JUDGE", help="A judge's folder, or tiny:judge.")],
    cases: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Labelled cases, listed in its cases.jsonl, instead of the shapes world's."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Base in whose latents gradients are taken, too; tiny:base for the shapes world."
        ),
    ] = None,
    per_category: Annotated[int, typer.Option(min=1, help="Held-out scenes for each kind of edit.")] = 16,
    starts: Annotated[
        int, typer.Option(min=0, help="Ascents of the gradient for each kind of edit; 0 leaves gradients out.")
    ] = 8,
    steps: Annotated[int, typer.Option(min=0, help="Steps of an ascent; 0 leaves ascents out.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Cases looked at at a time.")] = 16,
    seed: Seed = 0,
    output: Folder = Path("runs/audit"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of tables.")] = False,
) -> None:
    """Measure a judge on labelled edits: accuracy, calibration, bias, other wordings, and where its gradient leads.

    A line of cases.jsonl is one edit, with paths relative to FOLDER: `{"reference": "a.png", "edited": "b.png",
    "instruction": "remove the hat", "category": "remove", "subject": "hat", "edit_done": true, "rest_same": false,
    "target": "c.png"}`, the target, a right result, being optional. DIR/audit.json gets all numbers.
    """
    from nopair.evaluation.audit.command import Settings
    from nopair.evaluation.audit.command import audit as run_audit

    settings = Settings(seed, per_category, starts, steps, batch)
    run_audit(judge, cases, base, settings, output, as_json=as_json)


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


@tiny.command()
def measure(
    judge: Annotated[str, typer.Argument(metavar="JUDGE", help="A tiny judge's folder, or tiny:judge.")] = "tiny:judge",
) -> None:
    """Print what stands on a tiny judge's card: its accuracy by kind of edit, question and kind of attempt.

    A minute or two. `nopair judge audit` measures more, for any judge.
    """
    from nopair.tiny.cards import judge_tables
    from nopair.weights import resolve

    _print(judge_tables(resolve(judge), resolve("tiny:base")))


@tiny.command()
def build(
    part: Annotated[Literal["vae", "base", "judge", "editor", "all"], typer.Argument(help="What to build.")] = "all",
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

    Takes hours; uses a GPU if there is one; goes on where it was stopped.
    """
    from nopair.tiny.build import build as run_build
    from nopair.weights import packaged

    run_build(part, packaged() if output is None else output, steps, start)


def main() -> NoReturn:
    """Run `nopair` and exit: 0, 2 or 3 for an error of the user's (one line), 130 or 143 when stopped by a signal.

    Any other exception is a bug and shows its traceback.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # also those of loading local weights
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, _stop)
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
    _tell(error)
    raise SystemExit(error.exit_code) from None


def _tell(error: object) -> None:
    _print("error: " + " ".join(str(error).splitlines()), err=True)


def _print(line: str, *, err: bool = False) -> None:
    """Names of files may hold bytes that are no text."""
    typer.echo(typer.format_filename(line), err=err)
