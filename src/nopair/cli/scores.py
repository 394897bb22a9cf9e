"""Commands that measure editors, judges and the oracle."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from nopair.cli.common import (
    BenchmarkName,
    Computed,
    Device,
    EditorNames,
    FeatureNames,
    Folder,
    JudgeNames,
    RubricFile,
    ScorerName,
    Seed,
    app,
    judges,
)
from nopair.errors import ConfigError

_PerCategory: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Edits of each kind; by default 32 in the shapes world, all of a benchmark.")
]
_MaybeSeed: TypeAlias = Annotated[
    int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.", show_default="0")
]
_Categories: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="A,B", help="Kinds of edit in the shapes world, such as free-form; by default the nine local ones."
    ),
]


@app.command()
def evaluate(
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="The editor: a model folder, or the one shipped.", show_default="tiny:editor"),
    ] = None,
    benchmark: BenchmarkName = None,
    editor: EditorNames = None,
    judge: JudgeNames = None,
    scorer: ScorerName = None,
    rubric: RubricFile = None,
    features: FeatureNames = None,
    language: Annotated[list[str] | None, typer.Option(help="Only instructions in this language: en, cn.")] = None,
    per_category: _PerCategory = None,
    categories: _Categories = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would take and cost.")] = False,
    seed: _MaybeSeed = None,
    output: Folder = Path("runs/evaluate"),
    device: Device = "auto",
    dtype: Computed = "auto",
) -> None:
    """Score an editor: on held-out scenes of the shapes world, or on a benchmark with --benchmark (docs/evaluation.md).

    In the shapes world, the oracle's verdict, and beside it a judge's: tiny:judge, or a model folder (--judge). On a
    benchmark, any editors, side by side: `nopair evaluate --benchmark gedit:GEdit-Bench
    --editor nopair:runs/mine/editor --editor outputs:their-images
    --judge endpoint:http://localhost:8000/v1,model=NAME`. The same command goes on where it was stopped.
    """
    if editor:
        _not_with_editors(model, seed, dtype)
    model, seed = "tiny:editor" if model is None else model, seed or 0
    if benchmark is None:
        from nopair.evaluation.world import evaluate as run_evaluate

        _only_with_benchmark(editor, scorer, rubric, features, language, dry_run)
        run_evaluate(model, per_category or 32, seed, output, device, dtype, **_in_the_world(judge, categories))
        return
    if categories is not None:
        raise ConfigError("--categories is for the shapes world; leave it out with --benchmark")
    from nopair.evaluation.scoreboard.command import Request, evaluate_benchmark

    request = Request(
        benchmark=benchmark,
        editors=tuple(editor or [f"nopair:{model},seed={seed},dtype={dtype}"]),
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


def _not_with_editors(model: str | None, seed: int | None, dtype: str) -> None:
    """Each editor has its own of these."""
    if model is not None:
        raise ConfigError(f"--model is one editor, and --editor names others; give it as --editor nopair:{model}, too")
    if seed is not None:
        raise ConfigError(f"--seed is that of --model; give each --editor its own, as in nopair:DIR,seed={seed}")
    if dtype != "auto":
        raise ConfigError(f"--dtype is that of --model; give each --editor its own, as in nopair:DIR,dtype={dtype}")


def _only_with_benchmark(*given: object) -> None:
    if any(given):
        raise ConfigError("editors and their options need a benchmark; give --benchmark KIND:PLACE, too")


def _in_the_world(judge: list[str] | None, categories: str | None) -> dict[str, Any]:
    """What is named of the shapes world's own options."""
    named: dict[str, Any] = {} if judge is None else {"judge": _one(judge)}
    return named | _kinds(categories)


def _kinds(categories: str | None) -> dict[str, Any]:
    """Kinds of edit, separated by commas."""
    return {} if categories is None else {"categories": tuple(name.strip() for name in categories.split(","))}


def _one(judge: list[str]) -> str:
    """The judge to ask in the shapes world."""
    if len(judge) > 1:
        raise ConfigError(f"in the shapes world one judge is asked, not {len(judge)}; give --judge once")
    if judge[0].startswith(("local:", "endpoint:")):
        raise ConfigError(
            f"{judge[0]} marks a benchmark; give --benchmark KIND:PLACE, too, or in the shapes world --judge FOLDER"
        )
    return judge[0]


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
    run_study(Request(name, seeds, quick, workers, output, device))


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
    categories: _Categories = None,
    starts: Annotated[
        int, typer.Option(min=0, help="Ascents of the gradient for each kind of edit; 0 leaves gradients out.")
    ] = 8,
    steps: Annotated[int, typer.Option(min=0, help="Steps of an ascent; 0 leaves ascents out.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Cases looked at at a time.")] = 16,
    device: Device = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Precision of the judge's weights, as a recipe's judge.dtype."),
    ] = "float32",
    bits: Annotated[
        Literal["4", "8"] | None, typer.Option(help="Quantise its language model, as judge.bits; 4 need a GPU.")
    ] = None,
    seed: Seed = 0,
    output: Folder = Path("runs/audit"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON instead of tables.")] = False,
) -> None:
    """Measure a judge on labelled edits: accuracy, calibration, bias, other wordings, and where its gradient leads.

    A line of cases.jsonl is one edit, with paths relative to FOLDER: `{"reference": "a.png", "edited": "b.png",
    "instruction": "remove the hat", "category": "remove", "subject": "hat", "edit_done": true, "rest_same": false,
    "target": "c.png"}`, the target, a right result, being optional. DIR/audit.json gets all numbers,
    DIR/report.html the same as a page with the surest mistakes.
    """
    from nopair.evaluation.audit.command import Place, Settings
    from nopair.evaluation.audit.command import audit as run_audit

    if cases is not None and categories is not None:
        raise ConfigError("--categories is for the shapes world; leave it out with --cases")
    settings = Settings(seed, per_category, starts, steps, batch, **_kinds(categories))
    place = Place(device, dtype, None if bits is None else 4 if bits == "4" else 8)
    run_audit(judge, cases, base, settings, output, place, as_json=as_json)
