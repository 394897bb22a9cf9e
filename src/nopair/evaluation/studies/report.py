"""A study's results as a page, a chart and a table in Markdown."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nopair.evaluation.charts import LEFT, RIGHT, TOP, WIDTH, ticks
from nopair.evaluation.page import document
from nopair.evaluation.studies.results import JUDGED, MEASURES, shown

ROW: Final = 22
"""Height of a configuration in a chart, in SVG units."""
_STYLE: Final = (
    "svg .spread{stroke:var(--accent);stroke-width:2}svg .seed{fill:var(--faint);opacity:.7}"
    ".charts{grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));margin-bottom:24px}"
    "th,td{padding:7px 6px}"
)
_AUDIT: Final = {
    "edit_accuracy": "audit: edit",
    "identity_accuracy": "audit: rest",
    "edit_auc": "AUC: edit",
    "identity_auc": "AUC: rest",
    "cosine": "cosine",
}
"""What a table shows of an audit, and how it calls it (docs/judges.md)."""
_PRICE: Final = {"updates": "updates", "seconds": "s a run", "processor_seconds": "processor s"}
"""The last columns: steps of the student after warm-up, and seconds. The oldest results do not know the processor's."""


def render_study(found: Mapping[str, Any]) -> str:
    """The page's text, of `results.sum_up`'s; escaped."""
    charts = "".join(f"<figure><figcaption>{name}</figcaption>{chart(name, found)}</figure>" for name in MEASURES)
    rows = [cells(one) for one in found["configurations"]]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads(found))
    body = "".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    facts = {
        "edits": f"{found['edits']} held-out edits, the same for all runs",
        "judge": _judged(found),
        "command": found["command"],
        "date": found["date"],
        "machine": found["machine"],
    }
    pairs = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    return document(
        f"Study: {found['study']}",
        f"<h1>{_text(found['question'])}</h1><p>{_text(found['claim'])}</p>"
        f"<p class=faint>Means over seeds ± standard deviation; dots are single seeds. Scores are the oracle's.</p>"
        f'<div class="charts">{charts}</div>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<section><h2>How it was made</h2><dl>{pairs}</dl></section>",
        style=_STYLE,
    )


def chart(measure: str, found: Mapping[str, Any]) -> str:
    """One measure of all configurations: mean, spread and single seeds on a line from 0 to 1, as an `<svg>`."""
    configurations: Sequence[Mapping[str, Any]] = found["configurations"]
    left = max(LEFT, 12 + 6 * max(len(one["name"]) for one in configurations))
    height = TOP + ROW * len(configurations) + 24
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{measure}"><title>{measure}</title>']

    def across(value: float) -> float:
        return left + value * (WIDTH - left - RIGHT)

    for x in ticks(0.0, 1.0, 5):
        parts.append(f'<path class="grid" d="M{across(x):.1f} {TOP}V{height - 20}"/>')
        parts.append(f'<text x="{across(x):.1f}" y="{height - 6}" text-anchor="middle">{x:.2g}</text>')
    for index, one in enumerate(configurations):
        y = TOP + ROW * (index + 0.5)
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_text(one["name"])}</text>')
        for run in one["runs"]:
            parts.append(f'<circle class="seed" cx="{across(run[measure]):.1f}" cy="{y:.1f}" r="2.2"/>')
        if one.get(measure) is not None:
            low, high = (min(max(one[measure] + sign * one["spread"][measure], 0.0), 1.0) for sign in (-1.0, 1.0))
            parts.append(f'<path class="spread" d="M{across(low):.1f} {y:.1f}H{across(high):.1f}"/>')
            said = f"{one['name']}: {shown(one, measure)}"
            parts.append(
                f'<circle cx="{across(one[measure]):.1f}" cy="{y:.1f}" r="4"><title>{_text(said)}</title></circle>'
            )
    return "".join(parts) + "</svg>"


def markdown(found: Mapping[str, Any]) -> str:
    """The same as a section of docs/results.md."""
    lines = [f"## {found['study']}", "", f"{found['question']} *{found['claim']}*", ""]
    names = heads(found)
    lines += ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    lines += ["| " + " | ".join(cells(one)) + " |" for one in found["configurations"]]
    return "\n".join(
        [
            *lines,
            "",
            f"`{found['command']}`, {found['date']}, {found['machine']}; {found['edits']} held-out edits; "
            f"judge: {_judged(found)}.",
        ]
    )


def heads(found: Mapping[str, Any]) -> list[str]:
    """Of the table's columns."""
    audit = _AUDIT.values() if "audit" in found["configurations"][0] else ()
    return ["configuration", *MEASURES, "judge: edit", "judge: rest", *audit, *price(found)]


def price(found: Mapping[str, Any]) -> list[str]:
    """Of those at the end, about what a run takes."""
    return [name for key, name in _PRICE.items() if key in found["configurations"][0]]


def cells(one: Mapping[str, Any]) -> list[str]:
    """Of a configuration's row, a text for each of `heads`."""
    name = one["name"] + (f" ({one['failed']} of {len(one['seeds'])} seeds failed)" if one["failed"] else "")
    taken = ["–" if one[key] is None else f"{one[key]:.0f}" for key in _PRICE if key in one]
    audit = [_number(one["audit"][key]) for key in _AUDIT] if "audit" in one else []
    return [name, *(shown(one, measure) for measure in (*MEASURES, *JUDGED)), *audit, *taken]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _judged(found: Mapping[str, Any]) -> str:
    return found.get("scorer") or "the one each was trained under"


def _text(words: str) -> str:
    return html.escape(words)
