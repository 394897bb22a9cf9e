"""Line and bar charts as SVG text: no script, no files; the page's style sheet gives the colours."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Final

WIDTH: Final = 360
HEIGHT: Final = 190
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 28
"""Margins around the plot, in SVG units."""
MOST_POINTS: Final = 240
"""Longer curves are drawn as means of equal runs of points."""


def thin(points: Sequence[tuple[float, float]], most: int) -> tuple[list[tuple[float, float]], int]:
    """At most `most` points: each the mean of a run of neighbours; and how long a run is. Keeps 1 where it can."""
    run = math.ceil(len(points) / most) if points else 1
    runs = [points[start : start + run] for start in range(0, len(points), run)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in runs], run


def ticks(low: float, high: float, most: int, *, outward: bool = False) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within [low, high], low < high, at most `most` + 1 of them.

    With `outward` the first and last lie on or beyond the range instead, so there may be one more at either end.
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    slack = 1e-9 if not outward else -1e-9
    lower, upper = (math.floor, math.ceil) if outward else (math.ceil, math.floor)
    first, last = lower(low / step - slack), upper(high / step + slack)
    return [count * step for count in range(first, last + 1)]


def note(points: Sequence[tuple[float, float]]) -> str:
    """What `line_chart` does to these points before it draws them; empty if nothing."""
    finite = _finite(points)
    _, run = thin(finite, MOST_POINTS)
    notes = [f"means of {run} steps"] if run > 1 else []
    if len(finite) < len(points):
        notes.append(f"{len(points) - len(finite)} values are not finite")
    return ", ".join(notes)


def line_chart(name: str, points: Sequence[tuple[float, float]]) -> str:
    """One curve as an `<svg>` that scales to its container; `points` are (step, value), by step.

    Values that are not finite are left out; `note` counts them.
    """
    finite = _finite(points)
    title = html.escape(name)
    frame = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>'
    if not finite:
        return f'{frame}<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no data</text></svg>'
    drawn, _ = thin(finite, MOST_POINTS)
    low_x, high_x = _widened(finite[0][0], finite[-1][0])
    marks_y = ticks(*_widened(min(y for _, y in drawn), max(y for _, y in drawn)), 4, outward=True)
    low_y, high_y = marks_y[0], marks_y[-1]

    def across(x: float) -> float:
        return LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = [frame]
    for y in marks_y:
        parts.append(f'<path class="grid" d="M{LEFT} {down(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in ticks(low_x, high_x, 5):
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{x:.6g}</text>')
    parts.append('<polyline points="' + " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in drawn) + '"/>')
    if len(drawn) == 1:
        parts.append(f'<circle cx="{across(drawn[0][0]):.1f}" cy="{down(drawn[0][1]):.1f}" r="3"/>')
    return "".join(parts) + "</svg>"


BAR_ROW: Final = 14
"""Height of a bar with its gap, in SVG units."""
HUES: Final = 8
"""Colours of bars, classes `bar0` to `bar7`; a ninth row begins again with the first."""


def bar_chart(name: str, groups: Mapping[str, Mapping[str, float | None]], high: float) -> str:
    """Horizontal bars from 0 to `high`, by group and within it by row, as an `<svg>`. A missing value is a dash."""
    title = html.escape(name)
    longest = max((len(label) for label in groups), default=0)
    left = min(220, 16 + 7 * longest)
    rows = sum(len(values) for values in groups.values())
    height = TOP + rows * BAR_ROW + len(groups) * BAR_ROW // 2 + BOTTOM
    wide = 2 * WIDTH
    parts = [f'<svg viewBox="0 0 {wide} {height}" role="img" aria-label="{title}"><title>{title}</title>']

    def across(value: float) -> float:
        return left + value / high * (wide - left - 3 * RIGHT)

    for x in ticks(0.0, high, 5):
        parts.append(f'<path class="grid" d="M{across(x):.1f} {TOP}V{height - BOTTOM}"/>')
        parts.append(f'<text x="{across(x):.1f}" y="{height - 10}" text-anchor="middle">{x:.4g}</text>')
    top = float(TOP)
    for label, values in groups.items():
        middle = top + len(values) * BAR_ROW / 2 + 4
        parts.append(f'<text x="{left - 6}" y="{middle:.1f}" text-anchor="end">{html.escape(label)}</text>')
        for index, (row, value) in enumerate(values.items()):
            said = html.escape(f"{label}, {row}: {'missing' if value is None else f'{value:.2f}'}")
            length = 0.0 if value is None else max(0.0, across(value) - left)
            parts.append(
                f'<rect class="bar{index % HUES}" x="{left}" y="{top:.1f}" width="{length:.1f}" height="{BAR_ROW - 3}">'
                f"<title>{said}</title></rect>"
            )
            shown = "–" if value is None else f"{value:.2f}"
            parts.append(f'<text x="{left + length + 4:.1f}" y="{top + BAR_ROW - 4:.1f}">{shown}</text>')
            top += BAR_ROW
        top += BAR_ROW / 2
    return "".join(parts) + "</svg>"


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, or one around it where it is (nearly) a single value, so that there is a scale to draw on."""
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    slack = max(abs(low), abs(high)) * 0.1 or 1.0
    return low - slack, high + slack
