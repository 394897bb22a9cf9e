"""An audit as tables for a terminal. What is undefined is shown as "-"."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from nopair.evaluation.audit.measures import Bin
from nopair.evaluation.audit.summary import About, Ascent, Asked, Change, Direction, Findings, Group, Spread, Wording

_MEASURES = ("n", "accuracy", "AUC", "calib. error", "said Yes", "right Yes", "log-odds", "flips", "spread")


def tables(about: About, found: Findings) -> Iterator[Table]:
    """One after another, from what is asked first to what is asked last."""
    title = f"{about.judge} on {about.cases} cases ({about.source})"
    yield _answers(title, "category", {**found.categories, "all": found.overall})
    if found.attempts:
        yield _answers("by kind of attempt", "attempt", found.attempts)
    yield _reliability(found.overall.all.measures.reliability)
    yield _wordings(found.wordings)
    for space, where in found.directions.items():
        rows = {**where.categories, "all": where.all}
        yield _directions(
            f"gradient at the unedited reference: cosine with the way to the right answer, in {space}", rows
        )
    if found.ascents is not None:
        climbed = found.ascents
        title = f"{climbed.steps} steps up the judge's gradient from the unedited reference, in {climbed.space}"
        yield _ascents(title, {**climbed.categories, "all": climbed.all})


def _table(title: str, columns: Sequence[str], words: int = 1) -> Table:
    """The first `words` columns hold text, the others numbers."""
    drawn = Table(title=title)
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index < words else "right")
    return drawn


def _answers(title: str, name: str, rows: Mapping[str, Asked]) -> Table:
    drawn = _table(title, (name, "question", *_MEASURES), words=2)
    for label, asked in rows.items():
        kinds = dict(asked.questions) if len(asked.questions) == 1 else {**asked.questions, "all": asked.all}
        for kind, group in kinds.items():
            drawn.add_row(label, kind, *_measures(group))
        drawn.add_section()
    return drawn


def _measures(group: Group) -> Iterator[str]:
    found, wording = group.measures, group.wording
    yield str(found.count)
    for value in (found.accuracy, found.auc, found.calibration_error, found.said_yes, found.right_yes):
        yield _number(value, 3)
    yield _number(found.mean_log_odds, 2)
    yield _number(None if wording is None else wording.flips, 3)
    yield _number(None if wording is None else wording.spread, 2)


def _reliability(bins: Sequence[Bin]) -> Table:
    title = "reliability: of answers with such a probability of Yes, Yes is right in"
    drawn = _table(title, ("p(Yes)", "n", "mean p", "Yes is right"))
    for held in bins:
        drawn.add_row(
            f"{held.low:.1f} to {held.high:.1f}",
            str(held.count),
            _number(held.probability, 3),
            _number(held.share_yes, 3),
        )
    return drawn


def _wordings(wordings: Sequence[Wording]) -> Table:
    drawn = _table("wordings (the shipped one of each question first)", ("wording", "n", "accuracy", "said Yes"))
    for wording in wordings:
        drawn.add_row(wording.prompt, str(wording.count), _number(wording.accuracy, 3), _number(wording.said_yes, 3))
    return drawn


def _directions(title: str, rows: Mapping[str, Direction]) -> Table:
    drawn = _table(title, ("category", "n", "edit question", "whole loss"))
    for name, found in rows.items():
        count = max(0 if each is None else each.count for each in (found.edit, found.loss))
        drawn.add_row(name, str(count), _spread(found.edit), _spread(found.loss))
    return drawn


def _ascents(title: str, rows: Mapping[str, Ascent]) -> Table:
    said = ("judge: edit", "oracle: success", "judge: rest", "oracle: preservation")
    drawn = _table(title, ("category", "n", *said, "rms to target"))
    for name, climbed in rows.items():
        drawn.add_row(
            name,
            str(climbed.count),
            _change(climbed.judge_edit),
            _change(climbed.success),
            _change(climbed.judge_identity),
            _change(climbed.preservation),
            _change(climbed.distance, 3),
        )
    return drawn


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _spread(value: Spread | None) -> str:
    return "-" if value is None else f"{value.mean:+.3f} ± {value.deviation:.3f}"


def _change(value: Change | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value.before:.{digits}f} → {value.after:.{digits}f}"
