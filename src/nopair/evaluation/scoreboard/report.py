"""A comparison as one page: the table, each category, differences, agreement, and what to mind."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from nopair.evaluation.charts import HUES, bar_chart
from nopair.evaluation.page import document
from nopair.evaluation.scoreboard.results import Comparison, JudgeFacts, Scores
from nopair.evaluation.scoreboard.tables import counted, grouped, number
from nopair.evaluation.spending import Spending

_COLOURS: Final = ("#1f6feb", "#e8730c", "#1a8f5a", "#b8326c", "#7a52c7", "#8a6d1b", "#0d8ba1", "#6b7280")
_STYLE: Final = (
    ".key{display:flex;flex-wrap:wrap;gap:6px 18px}"
    ".key i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}"
    ".mind{border-left:3px solid var(--warn);padding-left:12px}a{color:var(--accent)}"
    + "".join(f"svg .bar{index}{{fill:{colour}}}" for index, colour in enumerate(_COLOURS))
)
assert len(_COLOURS) == HUES


def render_report(found: Comparison, gallery: str | None) -> str:
    """The page's text; `gallery` is the address of the side-by-side pages. Whatever it shows is escaped."""
    title = f"{found.benchmark.name}: {', '.join(editor.name for editor in found.editors)}"
    groups = grouped(found.scores())
    facts = {
        "benchmark": f"{found.benchmark.name}, {len(found.benchmark.items)} edits ({found.benchmark.origin})",
        **{f"judge {judge.name}": _judge(judge) for judge in found.judges},
        **{name: str(value) for name, value in found.scorer.items() if value is not None},
        **{f"editor {e.name}": ", ".join(f"{k} {v}" for k, v in e.about.items()) for e in found.editors},
        "command": found.command,
    }
    parts = [f"<h1>{_text(title)}</h1>"]
    parts += [f'<p class="mind">{_text(warning)}</p>' for warning in found.warnings()]
    if gallery is not None:
        parts.append(f'<p><a href="{_text(gallery)}">All edits side by side</a></p>')
    parts.append(_section("Scores", "".join(_scores(found, name, rows) for name, rows in groups.items())))
    whole = {name: rows for name, rows in groups.items() if rows[0].subset == "all"}
    parts.append(_section("By category", "".join(_charts(found, whole))))
    parts.append(_section("Every measure by category", "".join(_details(found, *each) for each in whole.items())))
    if found.differences:
        parts.append(_section("Differences between editors", _differences(found.differences)))
    if found.agreements():
        parts.append(_section("Do the judges agree?", _agreement(found.agreements())))
    if found.problems():
        rows = [(p["editor"], p["judge"], p["why"], str(p["count"])) for p in found.problems()]
        parts.append(_section("Why marks are missing", _table(("editor", "judge", "why", "edits"), rows)))
    if found.spending:
        parts.append(_section("What it took", _spending(found.spending)))
    if found.benchmark.left_out:
        left = [(one.where, one.why) for one in found.benchmark.left_out]
        parts.append(_section("Left out of the benchmark", _table(("where", "why"), left)))
    pairs = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    parts.append(_section("How it was made", f"<dl>{pairs}</dl>"))
    return document(title, "".join(parts), style=_STYLE)


def _judge(judge: JudgeFacts) -> str:
    if not judge.model:
        return judge.version
    at = "its server's own temperature" if judge.temperature is None else f"temperature {judge.temperature:g}"
    return ", ".join([*dict.fromkeys((judge.version, judge.model)), at])


def _scores(found: Comparison, title: str, rows: Sequence[Scores]) -> str:
    cells = [
        (
            row.editor,
            *(number(row.board.total[measure]) for measure in found.measures),
            counted(row, found.leading, "count"),
            counted(row, found.leading, "missing"),
        )
        for row in rows
    ]
    return _table(("editor", *found.measures, "edits", "missing"), cells, title)


def _charts(found: Comparison, whole: Mapping[str, Sequence[Scores]]) -> Iterable[str]:
    return (_chart(found, measure, title, rows) for title, rows in whole.items() for measure in found.leading)


def _chart(found: Comparison, measure: str, title: str, rows: Sequence[Scores]) -> str:
    groups = {
        category: {row.editor: row.board.categories[category][measure].value for row in rows}
        for category in rows[0].board.categories
    }
    key = "".join(
        f'<span><i style="background:{_COLOURS[index % HUES]}"></i>{_text(row.editor)}</span>'
        for index, row in enumerate(rows)
    )
    caption = f"{measure} by category · {title}"
    chart = bar_chart(caption, groups, found.high)
    return f'<figure><figcaption>{_text(caption)}</figcaption><div class="key">{key}</div>{chart}</figure>'


def _details(found: Comparison, title: str, rows: Sequence[Scores]) -> str:
    heads = ["category", *(f"{row.editor} {measure}" for row in rows for measure in found.measures)]
    cells = [
        (category, *(number(row.board.categories[category][measure]) for row in rows for measure in found.measures))
        for category in rows[0].board.categories
    ]
    return _table(heads, cells, title)


def _differences(rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        (
            f"{row['second']} − {row['first']}",
            " ".join(part for part in (row["judge"], row["language"]) if part),
            row["measure"],
            f"{row['difference']:+.2f}",
            f"{row['low']:+.2f} to {row['high']:+.2f}",
            str(row["count"]),
        )
        for row in rows
    ]
    words = "<p>On the edits that both have marks for; 95 % intervals of a paired bootstrap within categories.</p>"
    return words + _table(("editors", "judge", "measure", "difference", "interval", "edits"), cells)


def _agreement(rows: Sequence[dict[str, Any]]) -> str:
    def shown(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    cells = [
        (
            f"{row['first']}, {row['second']}",
            row["measure"],
            str(row["count"]),
            shown(row["rank"]),
            shown(row["linear"]),
            f"{row['bias']:+.2f}",
            f"{row['distance']:.2f}",
        )
        for row in rows
    ]
    heads = ("judges", "measure", "edits", "rank correlation", "correlation", "second − first", "mean distance")
    return _table(heads, cells)


def _spending(spending: Mapping[str, Spending]) -> str:
    rows = [
        (
            who,
            *(str(n) for n in (one.usage.requests, one.usage.input_tokens, one.usage.output_tokens)),
            str(one.usage.uncounted),
            one.cost,
        )
        for who, one in spending.items()
    ]
    heads = ("who", "answers", "tokens sent", "tokens received", "answers without a count of tokens", "cost")
    words = "<p>All that was asked into this folder so far, answers that could not be used included.</p>"
    return words + _table(heads, rows)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    told = f"<caption>{_text(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{told}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(words: str) -> str:
    return html.escape(words)
