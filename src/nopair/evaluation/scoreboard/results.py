"""What a comparison found, as values and as results.json."""

import datetime
import functools
import hashlib
import itertools
import json
import platform
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from nopair import __version__
from nopair.data.files import write_atomic
from nopair.digests import edit_digest
from nopair.errors import DataError
from nopair.evaluation.benchmarks.base import Benchmark, Item
from nopair.evaluation.benchmarks.own import OWN
from nopair.evaluation.scoreboard.families import families
from nopair.evaluation.scoreboard.means import Board, Sample, board, common
from nopair.evaluation.scoreboard.statistics import agreement, compare
from nopair.evaluation.scorers.asking import CUT, MORE_TOKENS
from nopair.evaluation.spending import Spending

SAMPLES: Final = "samples.jsonl"
RESULTS: Final = "results.json"
_PLACE: Final = re.compile(r"\w+://\S+|.*[/\\].*\.\w{1,5}", re.DOTALL)
"""An address, or a file with its folder, as messages begin with them or name them on the way."""
FEW: Final = 0.05
"""A larger share of edits without marks is warned of."""
REASONS: Final = 2
"""How many of those for missing marks are among what a reader has to know; the report has all."""


@dataclass(frozen=True, slots=True)
class EditorFacts:
    """An editor of the comparison. `trained_under`: judges' names, None if unknown or if it was not trained by us."""

    name: str
    about: Mapping[str, JsonValue]
    trained_under: tuple[str, ...] | None
    without_output: int


@dataclass(frozen=True, slots=True)
class JudgeFacts:
    """Who scored. For measures without a judge, the encoders.

    Attributes:
        name, version: what tables call it, and which one exactly.
        answered_as: what servers call who has answered.
        model: the model's own name; "" for measures without a judge.
        temperature: at which it answers; None if that was left to its server.
        longest_side: of the images that it is shown, in pixels; None if they are shown as they are.
    """

    name: str
    version: str
    answered_as: tuple[str, ...] = ()
    model: str = ""
    temperature: float | None = 0.0
    longest_side: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All that may tell who it is."""
        return (self.name, self.version, self.model, *self.answered_as)


@dataclass(frozen=True, slots=True)
class Scores:
    """One editor's table by one judge. `subset` is "all", "intersection" (the benchmark's mark) or "common"."""

    judge: str
    editor: str
    language: str
    subset: str
    board: Board


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that is known after a run. `samples` are by (judge, editor).

    `leading`: of `measures`, those that charts and counts are of.
    `spending`: what servers and judges were asked in this folder so far. `ended`: whose server ended early, and why.
    """

    benchmark: Benchmark
    scorer: Mapping[str, JsonValue]
    measures: tuple[str, ...]
    leading: tuple[str, ...]
    high: float
    judges: tuple[JudgeFacts, ...]
    editors: tuple[EditorFacts, ...]
    samples: Mapping[tuple[str, str], Sequence[Sample]]
    command: str
    spending: Mapping[str, Spending]
    ended: Mapping[str, str]

    @property
    def languages(self) -> tuple[str, ...]:
        """In the order in which the benchmark has them."""
        return tuple(dict.fromkeys(item.language for item in self.benchmark.items))

    def scores(self) -> list[Scores]:
        """Every table: by judge, language, subset and editor."""
        made = []
        for judge, language in itertools.product(self.judges, self.languages):
            own = {
                editor.name: [s for s in self.samples[judge.name, editor.name] if s.language == language]
                for editor in self.editors
            }
            subsets = {"all": own}
            if any(sample.in_intersection for rows in own.values() for sample in rows):
                subsets["intersection"] = {name: [s for s in rows if s.in_intersection] for name, rows in own.items()}
            if len(self.editors) > 1:
                shared = common(own.values(), self.measures)
                subsets["common"] = {name: [s for s in rows if s.place in shared] for name, rows in own.items()}
            made += [
                Scores(judge.name, name, language, subset, board(rows, self.measures))
                for subset, by_editor in subsets.items()
                for name, rows in by_editor.items()
            ]
        return made

    def agreements(self) -> list[dict[str, Any]]:
        """How far each two judges agree, by measure, over all editors' outputs."""
        return [
            {"first": one.name, "second": two.name, "measure": measure, **asdict(found)}
            for one, two in itertools.combinations(self.judges, 2)
            for measure in self.measures
            if (found := agreement(self._marks(one.name, measure), self._marks(two.name, measure))) is not None
        ]

    def _marks(self, judge: str, measure: str) -> dict[str, float | None]:
        return {
            f"{editor.name} {sample.place}": sample.marks.get(measure)
            for editor in self.editors
            for sample in self.samples[judge, editor.name]
        }

    @functools.cached_property
    def differences(self) -> list[dict[str, Any]]:
        """Each further editor minus the first, on the edits that both have marks for, by judge and language."""
        made = []
        for judge, language, editor in itertools.product(self.judges, self.languages, self.editors[1:]):
            runs = [
                [s for s in self.samples[judge.name, name] if s.language == language]
                for name in (self.editors[0].name, editor.name)
            ]
            for measure in self.measures:
                found = compare(runs[0], runs[1], measure)
                if found is not None:
                    named = {"judge": judge.name, "language": language, "first": self.editors[0].name}
                    made.append(named | {"second": editor.name, "measure": measure} | difference_json(found))
        return made

    def problems(self) -> list[dict[str, Any]]:
        """Why marks are missing, and how often, by judge and editor."""
        return [
            {"judge": judge, "editor": editor, "why": why, "count": count}
            for (judge, editor), rows in self.samples.items()
            for why, count in Counter(_kind(problem) for row in rows for problem in row.problems).most_common()
        ]

    def _reasons(self) -> list[str]:
        """The most frequent ones why marks are missing. What an early end has cost is told as that."""
        counted = Counter(
            (judge, _kind(problem))
            for (judge, _), rows in self.samples.items()
            for row in rows
            for problem in row.problems
            if not problem.endswith(tuple(self.ended.values()))
        )
        return [
            f"marks by {judge} are missing, {count} times: {why}{f'; {MORE_TOKENS}' if why.endswith(CUT) else ''}"
            for (judge, why), count in counted.most_common(REASONS)
        ]

    def warnings(self) -> list[str]:
        """What a reader of the table has to know."""
        said = [f"{who} ended before all was done: {why}" for who, why in self.ended.items()]
        if self.benchmark.left_out:
            said.append(f"left out of the benchmark, as they are broken: {len(self.benchmark.left_out)}")
        if self.scorer.get("rubric") is not None and self.scorer.get("official") is False:
            said.append(
                "the judge was asked in nopair's own words: compare within this table, not with published scores"
            )
        said += [
            f"{judge.name} has answered as {' and '.join(judge.answered_as)}: not one judge"
            for judge in self.judges
            if len(judge.answered_as) > 1
        ]
        said += [
            f"{judge.name} was not asked at temperature 0, but at its server's own: asked again, it may mark otherwise"
            for judge in self.judges
            if judge.temperature is None
        ]
        for editor in self.editors:
            said += _circular(editor, self.judges)
        for (judge, name), rows in self.samples.items():
            missing = sum(any(row.marks.get(measure) is None for measure in self.measures) for row in rows)
            if missing > FEW * len(rows):
                said.append(f"{name} by {judge}: {missing} of {len(rows)} edits lack a mark, and count nowhere")
        said += self._reasons()
        for scores, measure in itertools.product(self.scores(), self.leading):
            if scores.subset == "all" and scores.board.empty[measure]:
                empty = ", ".join(scores.board.empty[measure])
                said.append(f"{scores.editor} by {scores.judge}: no {measure} at all in {empty}; the mean goes without")
        return list(dict.fromkeys(said))

    def json(self) -> dict[str, Any]:
        """The contents of results.json."""
        bench = self.benchmark
        return {
            "benchmark": {
                "name": bench.name,
                "origin": bench.origin,
                "items": len(bench.items),
                "left_out": [asdict(one) for one in bench.left_out],
            },
            "scorer": dict(self.scorer) | {"measures": list(self.measures)},
            "judges": [asdict(judge) for judge in self.judges],
            "editors": [asdict(editor) for editor in self.editors],
            "scores": [
                {"judge": s.judge, "editor": s.editor, "language": s.language, "subset": s.subset} | s.board.json()
                for s in self.scores()
            ],
            "differences": self.differences,
            "agreement": self.agreements(),
            "problems": self.problems(),
            "warnings": self.warnings(),
            "ended": dict(self.ended),
            "spending": {who: asdict(one) for who, one in self.spending.items()},
            "command": self.command,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "nopair": __version__,
            "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        }

    def write(self, folder: Path) -> None:
        """samples.jsonl and, last, results.json.

        Raises:
            OutputError: they cannot be written.
        """
        own = self.benchmark.name in OWN
        asked = {item.place: _asked(item, own=own) for item in self.benchmark.items}
        lines = [
            StoredSample(judge=judge, editor=editor, asked=asked[sample.place], **asdict(sample)).model_dump_json()
            for (judge, editor), rows in self.samples.items()
            for sample in rows
        ]
        write_atomic(folder / SAMPLES, "".join(f"{line}\n" for line in lines).encode("utf-8"))
        text = json.dumps(self.json(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_atomic(folder / RESULTS, text.encode("utf-8"))


class StoredSample(BaseModel):
    """A line of samples.jsonl."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str
    editor: str
    place: str
    category: str
    language: str
    in_intersection: bool | None
    marks: dict[str, float | None]
    problems: tuple[str, ...]
    asked: str = ""  # digest of instruction and source; older files have none

    @property
    def sample(self) -> Sample:
        """Without who made and who marked it."""
        return Sample(
            self.place, self.category, self.language, self.in_intersection, dict(self.marks), tuple(self.problems)
        )


def read_samples(folder: Path) -> list[StoredSample]:
    """What `Comparison.write` wrote.

    Raises:
        DataError: the folder holds no such file, or it is broken.
    """
    path = folder / SAMPLES
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # names may hold what splitlines takes for an end
        return [StoredSample.model_validate_json(line) for line in lines if line]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name the folder of an evaluation") from None
    except ValidationError as error:
        raise DataError(f"{path}: is broken ({error.errors()[0]['msg']}); run the evaluation again") from None


def difference_json(found: Any) -> dict[str, Any]:
    """A `nopair.evaluation.scoreboard.statistics.Difference` as files hold it."""
    return (
        {"difference": found.mean}
        | {f"{name}_mean": getattr(found, name) for name in ("first", "second")}
        | {name: getattr(found, name) for name in ("low", "high", "better", "count")}
    )


def _circular(editor: EditorFacts, judges: Sequence[JudgeFacts]) -> list[str]:
    """Whether who trained also marks."""
    if editor.trained_under is None:
        unknown = f"{editor.name}: the judge it was trained under is not known; tell it with ,judge=NAME"
        return [unknown] if editor.about.get("kind") == "nopair" else []
    pairs = [(taught, judge) for taught in editor.trained_under for judge in judges if judge.model]
    return [said for taught, judge in pairs if (said := _related(editor.name, taught, judge)) is not None]


def _related(editor: str, taught: str, judge: JudgeFacts) -> str | None:
    """How a judge in training is related to one that marks; None if it is not, as far as names tell."""
    own, theirs = families(taught), families(*judge.names)
    bare = Path(taught.partition(" (")[0]).name.lower()
    if own & theirs:
        kin = f"of the same family ({' and '.join(sorted(own & theirs))})"
    elif bare in {name.lower().rpartition("/")[2] for name in judge.names}:
        kin = "the same"
    elif own and theirs:
        return None
    else:
        who = judge.name if own else taught
        return (
            f"{editor} was trained under {taught} and is marked by {judge.name}: the name of {who} tells no family "
            "that is known here, so nothing says whether they are related"
        )
    return (
        f"{editor} was trained under {taught} and is marked by {judge.name}, {kin}: it may please its judge more than "
        "others; mark it by another family, too"
    )


def _asked(item: Item, *, own: bool) -> str:
    """Of published benchmarks the words are enough: their images may be extracted anew, to other bytes."""
    whole = (
        edit_digest(item.instruction, item.source)
        if own
        else hashlib.sha256(f"{item.instruction}\0".encode()).hexdigest()
    )
    return whole[:16]


def _kind(problem: str) -> str:
    """A problem without what differs from edit to edit: paths, addresses, and a refusal's words."""
    head, colon, rest = problem.partition(": ")
    if rest.startswith("refused ("):
        return f"{head}{colon}refused"
    *places, last = rest.split(": ")
    kept = [part for part in places if not _PLACE.fullmatch(part)]
    return f"{head}{colon}{': '.join([*kept, last])}"[:160]
