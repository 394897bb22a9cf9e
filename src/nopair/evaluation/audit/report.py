"""An audit as one page, report.html: what audit.json and the terminal say, charts, and the judge's surest mistakes."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Final

from jaxtyping import Float
from torch import Tensor

from nopair.data.images import encode, shrink
from nopair.evaluation.audit.cases import LabelledCase
from nopair.evaluation.audit.summary import About, Asked, Findings, Mistake, grouped
from nopair.evaluation.audit.tables import Table, number, span, tables
from nopair.evaluation.charts import bar_chart
from nopair.evaluation.page import document

SIDE: Final = 256
"""Longer side of a picture in the page, in pixels, at most."""
_COLOURS: Final = ("#1f6feb", "#e8730c")
_STYLE: Final = (
    ".key{display:flex;flex-wrap:wrap;gap:6px 18px}"
    ".key i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}"
    ".mind{border-left:3px solid var(--warn);padding-left:12px}"
    ".mistake{display:flex;flex-wrap:wrap;gap:14px;padding:14px 0;border-bottom:1px solid var(--line)}"
    ".mistake figure{flex:0 0 160px}.mistake img{width:160px;height:auto;display:block;border-radius:6px}"
    ".mistake .small{image-rendering:pixelated}"
    ".mistake dl{flex:1 1 260px;align-content:start}h3{font-size:1rem;margin:20px 0 0}"
    "caption{max-width:46rem}table.long td:first-child{white-space:normal}"
    + "".join(f"svg .bar{index}{{fill:{colour}}}" for index, colour in enumerate(_COLOURS))
)


def render_audit(about: About, found: Findings, cases: Sequence[LabelledCase]) -> str:
    """The page's text. `cases` are those that were asked about: the mistakes' pictures are taken from them.

    Raises:
        ImageError: a picture cannot be read any more.
        OutputError: a picture has values that are not numbers.
    """
    shown = tables(about, found)
    title = f"{about.judge} as a judge"
    answers = [_figure("accuracy by category", _accuracy(found.categories), ("edit", "identity"))]
    answers += [_table(table) for table in shown.answers]
    calibration = _reliability(found) + _table(shown.reliability)
    wordings = (
        "<p>Every question in other words that mean the same. A judge that turns on them knows a sentence rather "
        "than a question.</p>" + _table(shown.wordings, long=True)
    )
    gradient = (
        "<p>An editor learns what the judge's gradient says. 1 points from the unedited image to the right answer, 0 "
        "has nothing to do with it.</p>" + "".join(_table(table) for table in shown.gradient)
    )
    body = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{found.overall.all.measures.count} questions about {about.cases} edits ({_text(about.source)}).</p>",
        _cards(found),
        _section("What to mind", "".join(f'<p class="mind">{_text(line)}</p>' for line in found.warnings)),
        _section("Right and wrong", "".join(answers)),
        _section("Is it as sure as it may be?", calibration),
        _section("In other words", wordings),
        _section("Where the gradient leads", gradient if shown.gradient else ""),
        _section("Surest mistakes", _mistakes(found.mistakes, cases)),
        _section("What was measured", _pairs(_facts(about))),
    ]
    return document(title, "".join(body), style=_STYLE)


def _cards(found: Findings) -> str:
    measures = found.overall.all.measures
    cards = (
        ("Accuracy", number(measures.accuracy, 3), "of verdicts"),
        ("AUC", number(measures.auc, 3), "0.5 is chance"),
        ("Calibration error", number(measures.calibration_error, 3), "0 is as sure as it may be"),
        ("Yes-bias", f"{measures.yes_bias:+.3f}", "above 0: says Yes too often"),
    )
    made = (f'<div class="card">{name}<b>{value}</b><span>{note}</span></div>' for name, value, note in cards)
    return f'<div class="cards">{"".join(made)}</div>'


def _accuracy(categories: Mapping[str, Asked]) -> str:
    groups = {
        name: {
            kind: asked.questions[kind].measures.accuracy if kind in asked.questions else None
            for kind in ("edit", "identity")
        }
        for name, asked in categories.items()
    }
    return bar_chart("accuracy by category", groups, 1.0)


def _reliability(found: Findings) -> str:
    bins = found.overall.all.measures.reliability
    rows = ("mean p(Yes)", "Yes is right")
    groups = {f"{span(held)} ({held.count})": {rows[0]: held.probability, rows[1]: held.share_yes} for held in bins}
    caption = "reliability: p(Yes), with how many answers, and how often Yes is right; bars of one length are honest"
    return _figure(caption, bar_chart("reliability", groups, 1.0), rows)


def _figure(caption: str, chart: str, rows: Sequence[str]) -> str:
    key = "".join(
        f'<span><i style="background:{colour}"></i>{_text(row)}</span>'
        for colour, row in zip(_COLOURS, rows, strict=True)
    )
    return f'<figure><figcaption>{_text(caption)}</figcaption><div class="key">{key}</div>{chart}</figure>'


def _mistakes(found: Sequence[Mistake], cases: Sequence[LabelledCase]) -> str:
    if not found:
        return "<p>None.</p>"
    return "".join(
        f"<h3>{_text(category)}</h3>" + "".join(_mistake(one, cases[one.case]) for one in rows)
        for category, rows in grouped(found, lambda one: one.category).items()
    )


def _mistake(one: Mistake, case: LabelledCase) -> str:
    said, sure = ("Yes", one.probability) if one.probability > 0.5 else ("No", 1 - one.probability)
    facts = {
        "instruction": case.instruction,
        "question": one.question.replace("{reference}", "[reference]").replace("{edited}", "[edited]"),
        "the judge says": f"{said}, sure to {sure:.1%}",
        "right is": "Yes" if one.yes_is_right else "No",
        **({"attempt": one.attempt} if one.attempt else {}),
        "case": str(one.case),
    }
    pictures = _picture("reference", case.reference) + _picture("edited", case.edited)
    return f'<div class="mistake">{pictures}{_pairs(facts)}</div>'


def _picture(name: str, pixels: Float[Tensor, "3 height width"]) -> str:
    source = base64.b64encode(encode(shrink(pixels, SIDE), "PNG")).decode("ascii")
    small = ' class="small"' if max(pixels.shape[1:]) < SIDE else ""
    image = f'<img{small} alt="{name}" src="data:image/png;base64,{source}">'
    return f"<figure><figcaption>{name}</figcaption>{image}</figure>"


def _facts(about: About) -> dict[str, str]:
    facts = {
        "judge": about.judge,
        "precision": about.dtype + ("" if about.bits is None else f", language model in {about.bits} bits"),
        "base": about.base,
        "cases": f"{about.cases} ({about.source})",
        "seed": None if about.seed is None else f"{about.seed}, {about.per_category} edits of each kind",
        "questions": about.questions,
        "device": about.device,
        "time": f"{about.seconds:.0f} s",
    }
    return {name: value for name, value in facts.items() if value is not None}


def _table(table: Table, *, long: bool = False) -> str:
    """`long`: the first column holds sentences."""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for rows in table.sections for row in rows
    )
    return (
        f'<div class="scroll"><table{" class=long" if long else ""}><caption>{_text(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _pairs(pairs: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in pairs.items()) + "</dl>"


def _section(title: str, content: str) -> str:
    """Nothing where there is nothing to say."""
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _text(words: str) -> str:
    return html.escape(words)
