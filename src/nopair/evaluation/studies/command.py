"""`nopair study`: do what is left of a study, sum it up, show it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nopair.data.files import write_atomic
from nopair.device import choose_device
from nopair.errors import ConfigError
from nopair.evaluation.studies.catalogue import STUDIES
from nopair.evaluation.studies.crew import run_all
from nopair.evaluation.studies.design import FULL, QUICK, Study
from nopair.evaluation.studies.kept import write_json
from nopair.evaluation.studies.report import cells, heads, markdown, price, render_study
from nopair.evaluation.studies.results import sum_up
from nopair.evaluation.studies.run import Job
from nopair.training.metrics import say

ALL = "all"


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for. `seeds` is None for the scale's own."""

    name: str
    seeds: int | None
    quick: bool
    workers: int
    root: Path
    device: str


def list_studies() -> None:
    """Print what there is."""
    table = Table(title="studies")
    for column in ("name", "question", "configurations"):
        table.add_column(column)
    for study in STUDIES.values():
        table.add_row(study.name, study.question, ", ".join(variant.name for variant in study.variants))
    Console().print(table)


def study(request: Request) -> None:
    """Run a study, or all. Raises ConfigError for a name that is none; else as `crew.run_all`."""
    if request.name != ALL and request.name not in STUDIES:
        raise ConfigError(f"there is no study {request.name!r}; choose {', '.join(STUDIES)}, or {ALL}")
    chosen = list(STUDIES.values()) if request.name == ALL else [STUDIES[request.name]]
    for one in chosen:
        _study(one, request)


def _study(one: Study, request: Request) -> None:
    scale = QUICK if request.quick else FULL
    if request.seeds is not None:
        scale = dataclasses.replace(scale, seeds=tuple(range(request.seeds)))
    root = request.root / "quick" if request.quick else request.root
    device = str(choose_device(request.device))
    threads = 1 if request.workers > 1 else None
    jobs = [Job(one, variant, seed, scale, root, device, threads) for seed in scale.seeds for variant in one.variants]
    console = Console()
    console.print(f"[bold]{one.name}[/bold]: {one.question}")
    run_all(jobs, request.workers, console)
    found = sum_up(one, jobs, _command(one, request))
    folder = root / one.name
    write_json(folder / "results.json", found)
    write_atomic(folder / "results.md", (markdown(found) + "\n").encode())
    write_atomic(folder / "report.html", render_study(found).encode())
    for table in _tables(found):
        console.print(table)
    say(console, f"report: {folder / 'report.html'}")


def _command(one: Study, request: Request) -> str:
    """What makes these results again, anywhere."""
    seeds = "" if request.seeds is None else f" --seeds {request.seeds}"
    return f"nopair study {one.name}{' --quick' if request.quick else ''}{seeds}"


def _tables(found: dict[str, Any]) -> list[Table]:
    """Scores, and what an audit says of the judges, apart: together they do not fit a terminal."""
    titles = [f"{found['study']}: {found['edits']} held-out edits, means over seeds", "the judges they trained under"]
    names = heads(found)[: -len(price(found))]
    audit = names.index("judge: rest") + 1
    parts = [range(audit), [0, *range(audit, len(names))]]
    return [_table(title, found, part) for title, part in zip(titles, parts, strict=True) if len(part) > 1]


def _table(title: str, found: dict[str, Any], places: Sequence[int]) -> Table:
    names = heads(found)
    table = Table(title=title)
    for place in places:
        table.add_column(names[place], justify="right" if place else "left")
    for one in found["configurations"]:
        row = cells(one)
        table.add_row(*(row[place] for place in places))
    return table
