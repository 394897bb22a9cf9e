"""The report as one HTML page: no scripts, nothing fetched, light and dark, readable on a phone."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Final

from nopair.evaluation.charts import line_chart, note
from nopair.evaluation.results import Cost, Marks, Report, Verdict

GAP_LIMIT: Final = 0.05
"""Where the judge thinks better of the editor than the oracle by more than this, the table says so."""

_STYLE: Final = """
:root{color-scheme:light dark;--paper:#fff;--panel:#f5f6f8;--ink:#181a1f;--faint:#646a76;--line:#d9dce2;
--accent:#1f6feb;--warn:#b42318}
@media (prefers-color-scheme:dark){:root{--paper:#14161a;--panel:#1d2026;--ink:#e8eaee;--faint:#9aa1ad;
--line:#343943;--accent:#6ea8fe;--warn:#ff8a7a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1000px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 8px}
h2{font-size:1.25rem;margin:40px 0 12px}
p{max-width:46rem;margin:0 0 12px}
.faint,figcaption,dt,.card span{color:var(--faint)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0}
.card{background:var(--panel);border-radius:10px;padding:14px 16px}
.card b{display:block;font-size:1.7rem;line-height:1.25;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:20px}
figure{margin:0;min-width:0}
figcaption{font-size:.9rem;margin-bottom:4px}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--faint);font-size:11px}
svg .grid{stroke:var(--line);stroke-width:1}
svg polyline{fill:none;stroke:var(--accent);stroke-width:1.8;stroke-linejoin:round}
svg circle{fill:var(--accent)}
.picture{background:#fff;border:1px solid var(--line);border-radius:10px;overflow-x:auto}
.picture img{display:block;width:100%;min-width:640px;height:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.94rem}
caption{text-align:left;font-weight:600;padding:14px 0 6px}
th,td{padding:7px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
thead th{color:var(--faint);font-weight:500;vertical-align:bottom}
tbody th{font-weight:400}
.hacked{color:var(--warn);font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 20px;margin:0}
dd{margin:0;overflow-wrap:anywhere}
@media (max-width:520px){dl{grid-template-columns:1fr}dd{margin-bottom:8px}}
"""
_TOTAL_FIRST: Final = "tbody tr:first-child,tbody tr:first-child th{font-weight:600}"
_POLICY: Final = "default-src 'none'; img-src {images}; style-src 'unsafe-inline'"


def document(title: str, body: str, *, style: str = "", images: str = "data:") -> str:
    """A whole page. `body` and `style` are taken as they are; `images` are the sources that images may come from."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY.format(images=images)}">'
        f"<title>{_text(title)}</title><style>{_STYLE}{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def render_page(report: Report, grid: bytes) -> str:
    """The page's text. `grid` is the picture of the results, a PNG file. Whatever the report says is escaped."""
    body = "".join(
        [
            f"<h1>{_text(report.title)}</h1><p>{_text(report.summary)}</p>",
            _cards(report.before.total, report.after.total),
            _section("Before and after", _picture(grid, report)),
            _section("Scores by kind of edit", _scores(report)),
            _section("Training", _charts(report.curves)) if report.curves else "",
            _section("Cost", _pairs(_cost(report.cost))),
            _section("What was trained", _pairs(report.facts)) if report.facts else "",
        ]
    )
    return document(report.title, body, style=_TOTAL_FIRST)


def _text(words: str) -> str:
    return html.escape(words)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _cards(before: Marks, after: Marks) -> str:
    cards = [
        ("Edit success", before.success, after.success),
        ("Preservation", before.preservation, after.preservation),
        ("Realism", before.realism, after.realism),
        ("Overall", before.overall, after.overall),
    ]
    return '<div class="cards">' + "".join(_card(*card) for card in cards) + "</div>"


def _card(name: str, before: float, after: float) -> str:
    return f'<div class="card">{name}<b>{after:.2f}</b><span>{before:.2f} after warm-up</span></div>'


def _picture(grid: bytes, report: Report) -> str:
    said = "; ".join(
        f"{example.instruction}: success {example.before_marks.success:.2f}, then {example.after_marks.success:.2f}"
        for example in report.examples
    )
    source = base64.b64encode(grid).decode("ascii")
    return (
        "<p>Held-out scenes: combinations that no training scene has. The right answer comes from the oracle; "
        "training never saw one.</p>"
        f'<div class="picture"><img alt="{_text(said)}" src="data:image/png;base64,{source}"></div>'
    )


def _scores(report: Report) -> str:
    return (
        f"<p>{report.scenes} held-out scenes, seed {report.seed}, scores from 0 to 1. The oracle measures the image "
        "against what can be rendered and never looks at the judge. Beside its success and preservation stands the "
        "judge's own verdict on the same images; the gap is judge minus oracle, "
        f'<span class="hacked">marked</span> above {GAP_LIMIT:.2f}: '
        "there the editor pleases the judge more than it should.</p>"
        + _table("After training without pairs", report.after)
        + _table("Before, after warm-up only", report.before)
    )


def _table(caption: str, verdict: Verdict) -> str:
    heads = ("", "success", "judge", "gap", "preservation", "judge", "gap", "realism", "overall")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    rows = [("all", verdict.total), *verdict.categories.items()]
    return (
        f'<div class="scroll"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>'
        + "".join(_row(name, marks) for name, marks in rows)
        + "</tbody></table></div>"
    )


def _row(name: str, marks: Marks) -> str:
    cells = [
        _number(marks.success),
        _number(marks.judge_edit),
        _gap(marks.edit_gap),
        _number(marks.preservation),
        _number(marks.judge_identity),
        _gap(marks.identity_gap),
        _number(marks.realism),
        _number(marks.overall),
    ]
    return f'<tr><th scope="row">{_text(name)}</th>{"".join(cells)}</tr>'


def _number(value: float | None) -> str:
    return "<td>–</td>" if value is None else f"<td>{value:.2f}</td>"


def _gap(value: float | None) -> str:
    if value is None:
        return "<td>–</td>"
    shown = f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0.00"
    return f"<td{' class=hacked' if round(value, 9) > GAP_LIMIT else ''}>{shown}</td>"


def _charts(curves: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    return '<div class="charts">' + "".join(_figure(name, points) for name, points in curves.items()) + "</div>"


def _figure(name: str, points: Sequence[tuple[float, float]]) -> str:
    said = note(points)
    caption = _text(f"{name} ({said})" if said else name)
    return f"<figure><figcaption>{caption}</figcaption>{line_chart(name, points)}</figure>"


def _pairs(pairs: Mapping[str, str]) -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in pairs.items()) + "</dl>"


def _cost(cost: Cost) -> dict[str, str]:
    minutes, seconds = divmod(round(cost.seconds), 60)
    return {
        "Time": f"{minutes} min {seconds} s" if minutes else f"{cost.seconds:.1f} s",
        "Floating-point operations": f"{cost.flops:.2e}",
        "Peak memory": f"{cost.peak_memory_bytes / 2**30:.2f} GiB",
    }
