"""Line charts as SVG text: no script, no files, colours from the page's CSS variables (--ink, --faint, --line, --accent)."""

import html
import math
from collections.abc import Sequence
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


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) in [low, high], at most `most` + 1 of them."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def line_chart(name: str, points: Sequence[tuple[float, float]]) -> str:
    """One curve as an `<svg>` that scales to its container; `points` are (step, value), by step.

    Values that are not finite are left out and counted below the curve.
    """
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    title = html.escape(name)
    frame = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>'
    if not finite:
        return f'{frame}<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no data</text></svg>'
    drawn, run = thin(finite, MOST_POINTS)
    low_x, high_x = _widened(drawn[0][0], drawn[-1][0])
    low_y, high_y = _widened(min(y for _, y in drawn), max(y for _, y in drawn))

    def across(x: float) -> float:
        return LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = [frame]
    for y in ticks(low_y, high_y, 4):
        parts.append(f'<path class="grid" d="M{LEFT} {down(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{y:.4g}</text>')
    for x in ticks(low_x, high_x, 5):
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{x:.6g}</text>')
    parts.append('<polyline points="' + " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in drawn) + '"/>')
    if len(drawn) == 1:
        parts.append(f'<circle cx="{across(drawn[0][0]):.1f}" cy="{down(drawn[0][1]):.1f}" r="3"/>')
    notes = [f"means of {run}"] * (run > 1) + [f"{len(points) - len(finite)} values not finite"] * (
        len(finite) < len(points)
    )
    if notes:
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{TOP + 4}" text-anchor="end">{", ".join(notes)}</text>')
    return "".join(parts) + "</svg>"


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, or one around it where it is a single value, so that there is a scale to draw on."""
    if high > low:
        return low, high
    slack = abs(low) * 0.1 or 1.0
    return low - slack, high + slack
