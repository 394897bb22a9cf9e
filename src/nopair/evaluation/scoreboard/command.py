"""`nopair evaluate --benchmark`: opens the parts, edits, asks, writes and prints. Goes on where it was stopped."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, TaskID

from nopair.data.files import file_name, make_folder, write_atomic
from nopair.data.locks import locked
from nopair.device import release
from nopair.errors import ConfigError, EndpointError, OutputError
from nopair.evaluation.benchmarks.base import Benchmark, Item
from nopair.evaluation.benchmarks.load import load_benchmark
from nopair.evaluation.editors.base import Contestant
from nopair.evaluation.editors.endpoint import USAGE
from nopair.evaluation.editors.load import load_contestant
from nopair.evaluation.scoreboard.families import training_judges
from nopair.evaluation.scoreboard.gallery import FIRST, Shown, write_gallery
from nopair.evaluation.scoreboard.means import Sample
from nopair.evaluation.scoreboard.outputs import Made, make_outputs
from nopair.evaluation.scoreboard.places import outputs_of, replies_of
from nopair.evaluation.scoreboard.plan import planned
from nopair.evaluation.scoreboard.report import render_report
from nopair.evaluation.scoreboard.results import RESULTS, Comparison, EditorFacts, JudgeFacts
from nopair.evaluation.scoreboard.tables import tables
from nopair.evaluation.scorers.asking import Task
from nopair.evaluation.scorers.marking import Marked, Marker, ScorerName, markers_of, rubric_facts
from nopair.evaluation.scorers.store import Store, usage_of
from nopair.evaluation.specs import Spec, parse_spec
from nopair.evaluation.spending import Spending, spent

RUN: Final = "run.json"
REPORT: Final = "report.html"
SCORERS: Final[Mapping[str, ScorerName]] = {"gedit": "viescore", "imgedit": "imgedit", "dreambooth": "similarity"}
"""What a benchmark's makers score with. Edits of one's own get VIEScore."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked for, in the words of the command line."""

    benchmark: str
    editors: tuple[str, ...]
    judges: tuple[str, ...]
    features: tuple[str, ...]
    scorer: ScorerName | None
    rubric: Path | None
    languages: tuple[str, ...]
    per_category: int | None
    output: Path
    device: str
    dry_run: bool
    command: str


def evaluate_benchmark(request: Request) -> None:
    """Make the outputs that are not there, have those marked that are not marked, and write all that is known.

    A dry run may look on while another run writes.

    Raises:
        OutputError: another run is writing to the same folder: both would pay for the same answers.
        EndpointError: an editor's or a judge's server refuses us altogether, or is gone; the others were asked, and
            results of what there is are written.
        NopairError: something cannot be used or written; what is done so far is kept, and the next run goes on.
    """
    make_folder(request.output)
    with nullcontext() if request.dry_run else locked(request.output / RUN):
        _evaluate(request, Console())


def _evaluate(request: Request, console: Console) -> None:
    bench = load_benchmark(request.benchmark, request.output / "sources")
    bench = bench.only(frozenset(request.languages), request.per_category)
    for one in bench.left_out[:5]:
        console.print(f"left out: {one.where}: {one.why}", markup=False, highlight=False)
    if len(bench.left_out) > 5:
        console.print(f"left out: {len(bench.left_out) - 5} more")
    name = request.scorer or SCORERS.get(bench.name, "viescore")
    markers = markers_of(name, request.judges, request.features, request.rubric, request.device)
    editors = [load_contestant(text, request.device) for text in request.editors]
    _require_names("editor", [editor.name for editor in editors])
    _require_names("judge", [marker.name for marker in markers])
    scorer = {"name": name, **rubric_facts(name, request.rubric)}
    run = {"benchmark": bench.name, "origin": bench.origin, "scorer": scorer}
    _require_same_run(request.output / RUN, run)
    for line in planned(bench.items, editors, markers, request.output):
        console.print(line, markup=False, highlight=False)
    if request.dry_run:
        return
    for server in (one.server for one in (*editors, *markers)):
        if server is not None:
            server.key()  # one that is not set is told before anything is paid
    write_atomic(request.output / RUN, json.dumps(run, indent=2, ensure_ascii=False).encode("utf-8") + b"\n")
    with Progress(console=console, transient=True) as progress:
        made = {e.name: _edited(e, bench, request.output, progress) for e in editors}
        tasks = [task for editor in editors for task in _tasks(editor, bench, request.output)]
        marked = {marker.name: _marked(marker, tasks, request.output, progress) for marker in markers}
    found = _gathered(request, bench, scorer, editors, markers, made, marked)
    _write(found, request.output, editors, markers)
    for table in tables(found):
        console.print(table)
    for warning in found.warnings():
        console.print(f"mind: {warning}", markup=False, highlight=False)
    console.print(f"{request.output / REPORT}, {request.output / RESULTS}", markup=False, highlight=False)
    if found.ended:
        told = "; ".join(f"{who}: {why}" for who, why in found.ended.items())
        raise EndpointError(f"{told}; what there is was written, and the same command goes on")


# Doing ----------------------------------------------------------------------------------------------------------------


def _edited(editor: Contestant, bench: Benchmark, output: Path, progress: Progress) -> Made:
    folder = outputs_of(output, editor.name)
    bar = progress.add_task(f"{editor.name}: edits", total=len(bench.items))
    return make_outputs(editor, bench.items, folder, _moving(progress, bar))


def _marked(marker: Marker, tasks: Sequence[Task], output: Path, progress: Progress) -> Marked:
    store = Store(replies_of(output, marker.name))
    bar = progress.add_task(f"{marker.name}: marks", total=None)
    with store:
        marked = marker.mark(tasks, store, lambda done, total: progress.update(bar, completed=done, total=total))
    release()
    return marked


def _moving(progress: Progress, bar: TaskID) -> Any:
    return lambda done: progress.update(bar, completed=done)


def _tasks(editor: Contestant, bench: Benchmark, output: Path) -> list[Task]:
    folder = outputs_of(output, editor.name)
    made = [Task(editor.name, item, editor.output(item, folder)) for item in bench.items]
    return [task for task in made if task.output.is_file()]


# Gathering and writing ------------------------------------------------------------------------------------------------


def _gathered(
    request: Request,
    bench: Benchmark,
    scorer: Mapping[str, Any],
    editors: Sequence[Contestant],
    markers: Sequence[Marker],
    made: Mapping[str, Made],
    marked: Mapping[str, Marked],
) -> Comparison:
    samples, names = {}, {}
    tasks = [task for editor in editors for task in _tasks(editor, bench, request.output)]
    for marker in markers:
        store = Store(replies_of(request.output, marker.name))
        names[marker.name] = marker.answered_as(tasks, store)
        for editor in editors:
            samples[marker.name, editor.name] = [
                _sample(
                    item, editor, marker, store, request.output, made[editor.name].problems, marked[marker.name].failed
                )
                for item in bench.items
            ]
    specs = [_spec(text) for text in request.editors]
    facts = [
        EditorFacts(
            editor.name,
            editor.about,
            training_judges(spec.place if spec.kind == "nopair" else None, spec.options.get("judge")),
            len(bench.items) - len(_tasks(editor, bench, request.output)),
        )
        for editor, spec in zip(editors, specs, strict=True)
    ]
    ended = {f"editor {name}": one.ended for name, one in made.items()}
    ended |= {f"judge {name}": one.ended for name, one in marked.items()}
    return Comparison(
        benchmark=bench,
        scorer=scorer,
        measures=markers[0].measures,
        leading=markers[0].leading,
        high=markers[0].high,
        judges=tuple(
            JudgeFacts(m.name, m.version, names[m.name], m.model, m.temperature, m.longest_side) for m in markers
        ),
        editors=tuple(facts),
        samples=samples,
        command=request.command,
        spending=_spending(request.output, editors, markers),
        ended={who: str(why) for who, why in ended.items() if why is not None},
    )


def _spending(output: Path, editors: Sequence[Contestant], markers: Sequence[Marker]) -> dict[str, Spending]:
    places = {f"editor {editor.name}": outputs_of(output, editor.name) / USAGE for editor in editors}
    places |= {f"judge {marker.name}": usage_of(replies_of(output, marker.name)) for marker in markers}
    return {who: found for who, place in places.items() if (found := spent(place)) is not None}


def _sample(
    item: Item,
    editor: Contestant,
    marker: Marker,
    store: Store,
    output: Path,
    problems: Mapping[str, str],
    failed: Mapping[str, str],
) -> Sample:
    path = editor.output(item, outputs_of(output, editor.name))
    if path.is_file():
        marks, why = marker.marks(Task(editor.name, item, path), store, failed)
    else:
        marks, why = dict.fromkeys(marker.measures), (f"no output: {problems.get(item.place, 'not made')}",)
    return Sample(item.place, item.category, item.language, item.in_intersection, marks, why)


def _write(found: Comparison, output: Path, editors: Sequence[Contestant], markers: Sequence[Marker]) -> None:
    """The gallery comes last: it is the largest, and a disk may be full."""
    found.write(output)
    write_atomic(output / REPORT, render_report(found, FIRST).encode("utf-8"))
    stores = {marker.name: Store(replies_of(output, marker.name)) for marker in markers}
    by_place = {key: {sample.place: sample for sample in rows} for key, rows in found.samples.items()}
    rows = []
    for item in found.benchmark.items:
        shown = []
        for editor in editors:
            path = editor.output(item, outputs_of(output, editor.name))
            said = tuple(
                _said(marker, by_place[marker.name, editor.name][item.place], editor, item, path, stores[marker.name])
                for marker in markers
            )
            shown.append(Shown(editor.name, path if path.is_file() else None, said))
        rows.append((item, shown))
    write_gallery(output, f"{found.benchmark.name}, side by side", rows)


def _said(
    marker: Marker, sample: Sample, editor: Contestant, item: Item, path: Path, store: Store
) -> tuple[str, str, str]:
    """A judge's name, its marks and its words as the gallery shows them."""
    marks = "  ".join(
        f"{name} {'–' if (value := sample.marks.get(name)) is None else f'{value:.2f}'}" for name in marker.measures
    )
    words = marker.words(Task(editor.name, item, path), store) if path.is_file() else ()
    return marker.name, marks, "\n\n".join([*sample.problems, *words])


# Places and names -----------------------------------------------------------------------------------------------------


def _spec(text: str) -> Spec:
    return parse_spec(text, ("nopair", "diffusers", "endpoint", "outputs"))


def _require_names(what: str, names: Sequence[str]) -> None:
    """Two of one name would share files."""
    slugs = [file_name(name) for name in names]
    for name, slug in zip(names, slugs, strict=True):
        if slugs.count(slug) > 1:
            raise ConfigError(f"two {what}s are called {name}; give one another, with ,name=NAME")


def _require_same_run(path: Path, wanted: Mapping[str, Any]) -> None:
    """A folder is of one benchmark and one rubric, whenever it is continued."""
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OutputError(f"{path}: is not JSON ({error}); choose another --output") from error
    if not isinstance(found, dict):
        raise OutputError(f"{path}: expected an object; choose another --output")
    scorer = found.get("scorer")
    if isinstance(scorer, dict):
        scorer.pop("temperature", None)  # earlier versions had it here; it is the judge's
    for key, value in wanted.items():
        if found.get(key) != value:
            raise OutputError(
                f"{path.parent}: holds an evaluation with another {key} ({found.get(key)}); choose another --output"
            )
