"""An audit as tables: what they say, once, and how a terminal shows it. What is undefined is shown as "-"."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.table import Table as Drawn
from rich.text import Text

from nopair.evaluation.audit.measures import Bin
from nopair.evaluation.audit.summary import About, Ascent, Asked, Change, Direction, Findings, Group, Spread, Wording

_MEASURES = ("n", "accuracy", "AUC", "calib. error", "said Yes", "right Yes", "log-odds", "flips", "spread")

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text, in sections. The first `words` columns hold words, the others numbers."""

    title: str
    columns: Row
    sections: tuple[tuple[Row, ...], ...]
    words: int = 1


@dataclass(frozen=True, slots=True)
class Tables:
    """All tables of an audit, from what is asked first to what is asked last."""

    answers: tuple[Table, ...]
    reliability: Table
    wordings: Table
    gradient: tuple[Table, ...]

    def __iter__(self) -> Iterator[Table]:
        yield from (*self.answers, self.reliability, self.wordings, *self.gradient)


def tables(about: About, found: Findings) -> Tables:
    """The findings, rounded."""
    title = f"{about.judge} on {about.cases} cases ({about.source})"
    answers = [_answers(title, "category", {**found.categories, "all": found.overall})]
    if found.attempts:
        answers.append(_answers("by kind of attempt", "attempt", found.attempts))
    return Tables(
        answers=tuple(answers),
        reliability=_reliability(found.overall.all.measures.reliability),
        wordings=_wordings(found.wordings),
        gradient=tuple(_gradient(found)),
    )


def drawn(table: Table, width: int) -> list[Drawn]:
    """The table for a terminal of so many columns: where it is wider, as several, each with some of the numbers."""
    numbers = range(table.words, len(table.columns))
    taken = sum(_widest(table, column) + 3 for column in range(len(table.columns))) + 1
    if taken <= width or len(numbers) < 2:
        return [_drawn(table)]
    half = numbers[len(numbers) // 2]
    parts = (range(half), [*range(table.words), *range(half, len(table.columns))])
    return [one for part in parts for one in drawn(_only(table, part), width)]


def _widest(table: Table, column: int) -> int:
    rows = [row[column] for section in table.sections for row in section]
    return max(cell_len(text) for text in (*rows, *table.columns[column].split()))


def _only(table: Table, columns: Sequence[int]) -> Table:
    sections = tuple(tuple(tuple(row[i] for i in columns) for row in section) for section in table.sections)
    return Table(table.title, tuple(table.columns[i] for i in columns), sections, table.words)


def _drawn(table: Table) -> Drawn:
    made = Drawn(title=Text(table.title))
    for index, column in enumerate(table.columns):
        made.add_column(column, justify="left" if index < table.words else "right")
    for section in table.sections:
        for row in section:
            made.add_row(*map(Text, row))
        made.add_section()
    return made


def number(value: float | None, digits: int) -> str:
    """A number so many digits behind the point."""
    return "-" if value is None else f"{value:.{digits}f}"


def _answers(title: str, name: str, rows: Mapping[str, Asked]) -> Table:
    sections = []
    for label, asked in rows.items():
        kinds = dict(asked.questions) if len(asked.questions) == 1 else {**asked.questions, "all": asked.all}
        sections.append(tuple((label, kind, *_measures(group)) for kind, group in kinds.items()))
    return Table(title, (name, "question", *_MEASURES), tuple(sections), words=2)


def _measures(group: Group) -> Iterator[str]:
    found, wording = group.measures, group.wording
    yield str(found.count)
    for value in (found.accuracy, found.auc, found.calibration_error, found.said_yes, found.right_yes):
        yield number(value, 3)
    yield number(found.mean_log_odds, 2)
    yield number(None if wording is None else wording.flips, 3)
    yield number(None if wording is None else wording.spread, 2)


def _reliability(bins: Sequence[Bin]) -> Table:
    title = "reliability: of answers with such a probability of Yes, Yes is right in"
    rows = tuple((span(held), str(held.count), number(held.probability, 3), number(held.share_yes, 3)) for held in bins)
    return Table(title, ("p(Yes)", "n", "mean p", "Yes is right"), (rows,))


def span(held: Bin) -> str:
    """The name of a bin."""
    return f"{held.low:.1f} to {held.high:.1f}"


def _wordings(wordings: Sequence[Wording]) -> Table:
    rows = tuple(
        (wording.prompt, str(wording.count), number(wording.accuracy, 3), number(wording.said_yes, 3))
        for wording in wordings
    )
    title = "wordings (the shipped one of each question first)"
    return Table(title, ("wording", "n", "accuracy", "said Yes"), (rows,))


def _gradient(found: Findings) -> Iterator[Table]:
    for space, where in found.directions.items():
        rows = {**where.categories, "all": where.all}
        yield _directions(
            f"gradient at the unedited reference: cosine with the way to the right answer, in {space}", rows
        )
    if found.ascents is not None:
        climbed = found.ascents
        title = f"{climbed.steps} steps up the judge's gradient from the unedited reference, in {climbed.space}"
        yield _ascents(title, {**climbed.categories, "all": climbed.all})


def _directions(title: str, found: Mapping[str, Direction]) -> Table:
    rows = []
    for name, each in found.items():
        count = max(0 if one is None else one.count for one in (each.edit, each.loss))
        rows.append((name, str(count), _spread(each.edit), _spread(each.loss)))
    return Table(title, ("category", "n", "edit question", "whole loss"), (tuple(rows),))


def _ascents(title: str, found: Mapping[str, Ascent]) -> Table:
    said = ("judge: edit", "oracle: success", "judge: rest", "oracle: preservation")
    rows = tuple(
        (
            name,
            str(climbed.count),
            _change(climbed.judge_edit),
            _change(climbed.success),
            _change(climbed.judge_identity),
            _change(climbed.preservation),
            _change(climbed.distance, 3),
        )
        for name, climbed in found.items()
    )
    return Table(title, ("category", "n", *said, "rms to target"), (rows,))


def _spread(value: Spread | None) -> str:
    return "-" if value is None else f"{value.mean:+.3f} ± {value.deviation:.3f}"


def _change(value: Change | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value.before:.{digits}f} → {value.after:.{digits}f}"
