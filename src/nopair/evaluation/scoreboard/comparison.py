"""`nopair compare A B`: two evaluations of one benchmark, edit by edit."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nopair.data.files import is_folder
from nopair.errors import ConfigError, DataError
from nopair.evaluation.scoreboard.results import RESULTS, SAMPLES, StoredSample, difference_json, read_samples
from nopair.evaluation.scoreboard.statistics import Difference, compare


class _Named(BaseModel):
    """A benchmark, a scorer or a judge as results.json has it; what else it says does not matter here."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str | None = None
    rubric: str | None = None
    measures: tuple[str, ...] = ()
    temperature: float | None = 0.0
    answered_as: tuple[str, ...] = ()
    longest_side: int | None = None

    def __str__(self) -> str:
        return ", ".join(value for value in (self.name, self.rubric, self.version) if value is not None)


class _Facts(BaseModel):
    """What of results.json says whether two runs compare."""

    model_config = ConfigDict(frozen=True)

    benchmark: _Named
    scorer: _Named
    judges: tuple[_Named, ...]


def compare_runs(first: str, second: str, *, as_json: bool) -> None:
    """Print how much better the editor of the second folder is: by measure, judge and language, with intervals.

    A folder that holds several editors is given as FOLDER:EDITOR.

    Raises:
        DataError: a folder holds no evaluation.
        ConfigError: which editor is not clear, or the two cannot be compared: another benchmark, judge or rubric, or
            another edit under the same name, or no edit in common.
    """
    runs = [_run(text) for text in (first, second)]
    facts = [run[1] for run in runs]
    for what in ("benchmark", "scorer"):
        named = [str(getattr(fact, what)) for fact in facts]
        if named[0] != named[1]:
            raise ConfigError(f"{first} and {second}: another {what} ({named[0]}; {named[1]}), so not to be compared")
    asked = [{row.place: row.asked for row in rows if row.asked} for rows, _ in runs]
    other = [place for place, digest in asked[0].items() if asked[1].get(place, digest) != digest]
    if other:
        raise ConfigError(
            f"{first} and {second}: ask different edits under the same name ({len(other)}, the first: {other[0]}), so "
            "not to be compared"
        )
    judges = [{judge.name: (judge.version, judge.temperature) for judge in fact.judges} for fact in facts]
    shared = [name for name, known in judges[0].items() if judges[1].get(name) == known]
    if not shared:
        raise ConfigError(f"{first} and {second}: have no judge in common; marks of different judges do not compare")
    rows = [row for judge in shared for row in _compared(runs[0][0], runs[1][0], judge, facts[0].scorer.measures)]
    if not rows:
        raise ConfigError(
            f"{first} and {second}: have no edit in common that both have a mark for ({_edits(runs[0][0])}; "
            f"{_edits(runs[1][0])}); evaluate both on the same edits"
        )
    minds = {judge: _minds(judge, (first, second), facts) for judge in shared}
    if as_json:
        told = [named | difference_json(one) | {"mind": minds[named["judge"]]} for named, one in rows]
        Console().out(json.dumps(told, indent=2), highlight=False)
        return
    _show(first, second, rows)
    for mind in (mind for judge in shared for mind in minds[judge]):
        Console().print(f"mind: {mind}", markup=False, highlight=False)


def _compared(
    first: Sequence[StoredSample], second: Sequence[StoredSample], judge: str, measures: Sequence[str]
) -> list[tuple[dict[str, Any], Difference]]:
    languages = dict.fromkeys(sample.language for sample in first)
    found = []
    for language, measure in itertools.product(languages, measures):
        runs = [
            [row.sample for row in rows if row.judge == judge and row.language == language] for rows in (first, second)
        ]
        one = compare(runs[0], runs[1], measure)
        if one is not None:
            found.append(({"judge": judge, "language": language, "measure": measure}, one))
    return found


def _minds(judge: str, texts: Sequence[str], facts: Sequence[_Facts]) -> list[str]:
    """What a reader has to know of a judge's marks: a name such as gpt-4.1 may be another model by the second run."""
    found = [next(one for one in fact.judges if one.name == judge) for fact in facts]
    said = []
    if all(one.answered_as for one in found) and found[0].answered_as != found[1].answered_as:
        told = " and as ".join(
            f"{', '.join(one.answered_as)} in {text}" for one, text in zip(found, texts, strict=True)
        )
        said.append(f"{judge} has answered as {told}: perhaps not one judge, so the difference may be between judges")
    if found[0].longest_side != found[1].longest_side:
        told = " and ".join(f"{_seen(one.longest_side)} in {text}" for one, text in zip(found, texts, strict=True))
        said.append(f"{judge} was shown {told}: of larger ones, marks may differ for that")
    return said


def _seen(side: int | None) -> str:
    return "images as they are" if side is None else f"images of at most {side} pixels"


def _edits(rows: Sequence[StoredSample]) -> str:
    """How many edits a run has, in which languages."""
    languages = ", ".join(sorted({row.language for row in rows if row.language}))
    return f"{len({row.place for row in rows})} edits{f' in {languages}' if languages else ''}"


def _run(text: str) -> tuple[list[StoredSample], _Facts]:
    folder, editor = _named(text)
    samples = read_samples(folder)
    names = list(dict.fromkeys(sample.editor for sample in samples))
    if editor is None and len(names) != 1:
        raise ConfigError(f"{text}: holds several editors; give {folder}:EDITOR, one of {', '.join(names)}")
    if editor is not None and editor not in names:
        raise ConfigError(f"{text}: has no editor {editor}; it holds {', '.join(names)}")
    chosen = names[0] if editor is None else editor
    return [sample for sample in samples if sample.editor == chosen], _facts(folder / RESULTS)


def _named(text: str) -> tuple[Path, str | None]:
    """The folder of an evaluation and, after a colon, one of its editors, whose name may hold colons, too."""
    if not is_folder(Path(text)):
        for colon in re.finditer(":", text):
            folder = Path(text[: colon.start()])
            if (folder / SAMPLES).is_file():
                return folder, text[colon.end() :]
    return Path(text), None


def _facts(path: Path) -> _Facts:
    try:
        return _Facts.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run the evaluation again") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise DataError(
            f"{path}: holds no results ({key + ': ' if key else ''}{problem['msg']}); run the evaluation again"
        ) from None


def _show(first: str, second: str, rows: Sequence[tuple[dict[str, Any], Difference]]) -> None:
    drawn = Table(title=Text(f"{second} against {first}"))
    for column in ("judge", "language", "measure", "first", "second", "difference", "95 % interval", "edits"):
        drawn.add_column(column, justify="left" if column in ("judge", "language", "measure") else "right")
    for named, one in rows:
        drawn.add_row(
            *(Text(named[key]) for key in ("judge", "language", "measure")),
            f"{one.first:.2f}",
            f"{one.second:.2f}",
            f"{one.mean:+.2f}",
            f"{one.low:+.2f} to {one.high:+.2f}",
            str(one.count),
        )
    Console().print(drawn)
