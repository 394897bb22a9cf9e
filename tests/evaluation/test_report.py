"""The report: every number it is given is in it, none that is wrong gets in, and it needs nothing but itself."""

import base64
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nopair.data.images import load_image
from nopair.errors import OutputError
from nopair.evaluation.charts import MOST_POINTS, line_chart, note, thin, ticks
from nopair.evaluation.grid import CAPTION, COLUMNS, GAP, HEADER, TILE, draw_grid
from nopair.evaluation.page import render_page
from nopair.evaluation.report import write_report
from nopair.evaluation.results import Cost, Example, Marks, Report, Verdict, to_results

BEFORE = Marks(0.0, 0.625, 0.5, 0.25)
AFTER = Marks(0.875, 0.9375, 0.75, 0.8125, judge_edit=0.95, judge_identity=0.96)
UNASKED = Marks(1.0, 1.0, 0.5, 0.75, judge_identity=0.5)


def _example(side: int = 64, instruction: str = "make the red circle blue") -> Example:
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    images = colours[:, :, None, None].expand(4, 3, side, side)
    return Example(images[0], instruction, "recolour", images[1], images[2], images[3], BEFORE, AFTER)


def _report() -> Report:
    return Report(
        title="A report",
        summary="An editor was trained.",
        facts={"base": "tiny:base", "judge": "tiny:judge"},
        curves={"judge loss": [(float(step), 1 / (1 + step)) for step in range(300)]},
        examples=[_example(), _example(instruction="remove the blue cross")],
        before=Verdict(BEFORE, {"recolour": BEFORE, "nothing": BEFORE}),
        after=Verdict(AFTER, {"recolour": AFTER, "nothing": UNASKED}),
        cost=Cost(552.4, 3.5e14, 2 * 2**30),
        scenes=288,
        seed=3,
    )


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["success", "preservation", "realism", "overall", "judge_edit", "judge_identity"])
@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf])
def test_a_mark_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        replace(AFTER, **{name: value})


@pytest.mark.parametrize("cost", [(-1.0, 0.0, 0), (math.nan, 0.0, 0), (0.0, math.inf, 0), (0.0, 0.0, -1)])
def test_a_cost_that_cannot_be_is_refused(cost: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match="expected a number of at least 0"):
        Cost(*cost)


def test_a_report_that_does_not_fit_together_is_refused() -> None:
    with pytest.raises(ValueError, match="same categories"):
        replace(_report(), before=Verdict(BEFORE, {"recolour": BEFORE}))
    with pytest.raises(ValueError, match="scenes"):
        replace(_report(), scenes=0)


def test_gaps() -> None:
    assert AFTER.edit_gap == pytest.approx(0.075)
    assert AFTER.identity_gap == pytest.approx(0.0225)
    assert (UNASKED.edit_gap, BEFORE.identity_gap) == (None, None)


def test_results_are_exactly_what_is_promised() -> None:
    plain = {"success": 0.0, "preservation": 0.625, "realism": 0.5, "overall": 0.25}
    full = {"success": 0.875, "preservation": 0.9375, "realism": 0.75, "overall": 0.8125}
    full |= {"judge_edit": 0.95, "judge_identity": 0.96}
    unasked = {"success": 1.0, "preservation": 1.0, "realism": 0.5, "overall": 0.75, "judge_identity": 0.5}
    assert to_results(_report()) == {
        "before": plain | {"categories": {"recolour": plain, "nothing": plain}},
        "after": full | {"categories": {"recolour": full, "nothing": unasked}},
        "cost": {"seconds": 552.4, "flops": 3.5e14, "peak_memory_bytes": 2 * 2**30},
        "scenes": 288,
        "seed": 3,
    }


# Files ----------------------------------------------------------------------------------------------------------------


def test_three_files_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "läufe" / "demo"
    for _ in range(2):  # a second time, over the first
        write_report(folder, _report())
    assert sorted(path.name for path in folder.iterdir()) == ["grid.png", "report.html", "results.json"]
    assert json.loads((folder / "results.json").read_text()) == to_results(_report())
    assert load_image(folder / "grid.png").shape[0] == 3


def test_an_unwritable_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot create this folder"):
        write_report(tmp_path / "file", _report())
    (tmp_path / "demo" / "report.html").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"report\.html: cannot be written"):
        write_report(tmp_path / "demo", _report())
    assert not (tmp_path / "demo" / "results.json").exists()  # it is last, so it says that all is there


# The picture ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [8, 64, 100, 300])
def test_every_image_is_in_its_column(side: int) -> None:
    grid = draw_grid([_example(side)] * 2)
    assert grid.shape == (3, HEADER + 2 * (TILE + CAPTION), GAP + len(COLUMNS) * (TILE + GAP))
    for row in range(2):
        y = HEADER + row * (TILE + CAPTION) + TILE // 2
        for column, colour in {0: [1, 0, 0], 2: [0, 1, 0], 3: [0, 0, 1], 4: [1, 1, 0]}.items():
            x = GAP + column * (TILE + GAP) + TILE // 2
            assert grid[:, y, x].tolist() == colour


def test_pixels_of_a_scene_are_enlarged_as_they_are() -> None:
    image = torch.randint(0, 2, (3, 64, 64)).float()
    grid = draw_grid([replace(_example(), reference=image)])
    tile = grid[:, HEADER : HEADER + TILE, GAP : GAP + TILE]
    assert torch.equal(tile, image.repeat_interleave(3, 1).repeat_interleave(3, 2))


def test_what_is_written_depends_on_what_is_said() -> None:
    """Instruction beside the image, scores beneath the outputs; long words and long texts stay in their tile."""
    plain = draw_grid([_example()])
    left = GAP + TILE + GAP
    long = draw_grid([_example(instruction="x" * 200 + " and so on" * 40)])
    assert not torch.equal(plain[:, :, left : left + TILE], long[:, :, left : left + TILE])
    keep = [x for x in range(plain.shape[2]) if not left - 2 <= x < left + TILE + 2]  # glyphs may lean over
    assert torch.equal(plain[:, :, keep], long[:, :, keep])
    other = draw_grid([replace(_example(), after_marks=BEFORE)])
    changed = (plain != other).any(dim=0).nonzero()
    assert changed[:, 0].min() >= HEADER + TILE
    assert changed[:, 1].min() >= GAP + 3 * (TILE + GAP)
    assert changed[:, 1].max() < GAP + 4 * (TILE + GAP)


def test_broken_and_oblong_images_are_shown() -> None:
    for shape in ((3, 10, 90), (3, 700, 20), (3, 1, 1)):
        images = {"reference": torch.full(shape, math.nan), "before": torch.rand(shape) * 9 - 4}
        images |= {name: torch.rand(shape) for name in ("after", "target")}
        assert draw_grid([replace(_example(), **images)]).isfinite().all()


def test_no_example_is_an_empty_picture() -> None:
    assert draw_grid([]).shape[1] == HEADER


# The page -------------------------------------------------------------------------------------------------------------


class _Reader(HTMLParser):
    """Checks that tags close, and collects texts, attributes and table rows."""

    VOID = ("meta", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "tr" in self.open:
            self.rows[-1].append(data)


def test_the_page_needs_nothing_but_itself() -> None:
    page = _Reader(render_page(_report(), b"png"))
    assert "script" not in page.seen
    assert "link" not in page.seen
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert links == ["data:image/png;base64," + base64.b64encode(b"png").decode()]
    style = render_page(_report(), b"png").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme:dark" in style
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_the_judge_stands_beside_the_oracle_in_every_table() -> None:
    rows = _Reader(render_page(_report(), b"")).rows
    heads = ["success", "judge", "gap", "preservation", "judge", "gap", "realism", "overall"]
    assert rows == [
        heads,
        ["all", "0.88", "0.95", "+0.07", "0.94", "0.96", "+0.02", "0.75", "0.81"],
        ["recolour", "0.88", "0.95", "+0.07", "0.94", "0.96", "+0.02", "0.75", "0.81"],
        ["nothing", "1.00", "–", "–", "1.00", "0.50", "−0.50", "0.50", "0.75"],
        heads,
        *[[name, "0.00", "–", "–", "0.62", "–", "–", "0.50", "0.25"] for name in ("all", "recolour", "nothing")],
    ]


@pytest.mark.parametrize(("judge", "hacked"), [(0.92, False), (0.925, False), (0.93, True), (0.5, False)])
def test_a_hacked_judge_is_marked(judge: float, hacked: bool) -> None:
    verdict = Verdict(replace(AFTER, judge_edit=judge), {})
    report = replace(_report(), before=Verdict(BEFORE, {}), after=verdict)
    assert ("<td class=hacked>" in render_page(report, b"")) == hacked


def test_all_that_was_given_is_on_the_page() -> None:
    texts = " ".join(_Reader(render_page(_report(), b"")).texts)
    for said in ("A report", "An editor was trained.", "288 held-out scenes, seed 3", "tiny:base", "judge loss"):
        assert said in texts
    for cost in ("9 min 12 s", "3.50e+14", "2.00 GiB", "0.88", "0.00 after warm-up"):
        assert cost in texts


def test_whatever_is_said_is_text_and_not_markup() -> None:
    nasty = '<script>alert("1")</script>&amp;\'"'
    marks = {nasty: BEFORE}
    report = replace(
        _report(),
        title=nasty,
        summary=nasty,
        facts={nasty: nasty},
        curves={nasty: [(0.0, 1.0), (1.0, 2.0)], nasty + "2": []},
        examples=[_example(instruction=nasty)],
        before=Verdict(BEFORE, marks),
        after=Verdict(AFTER, marks),
    )
    page = _Reader(render_page(report, b""))
    assert "script" not in page.seen
    assert page.texts.count(nasty) >= 6


# Curves ---------------------------------------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6)


def _drawn(svg: str) -> list[tuple[float, float]]:
    ElementTree.fromstring(svg)  # well-formed
    found = re.search(r'<polyline points="([^"]*)"', svg)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


@given(values=st.lists(numbers, min_size=1, max_size=40))
def test_curves_stay_within_their_frame(values: list[float]) -> None:
    points = _drawn(line_chart("loss", [(float(step), value) for step, value in enumerate(values)]))
    assert len(points) == len(values)
    assert all(0 <= x <= 360 and 0 <= y <= 190 for x, y in points)
    assert points == sorted(points)  # from left to right
    highest, lowest = values.index(max(values)), values.index(min(values))
    assert points[highest][1] <= points[lowest][1]  # up is more


def test_long_curves_are_means_of_runs() -> None:
    points = [(float(step), float(step % 7)) for step in range(5000)]
    short, run = thin(points, MOST_POINTS)
    assert len(short) <= MOST_POINTS
    assert run == 21
    assert short[0] == (10.0, 3.0)
    whole = sum(y for _, y in short[:-1]) * run + short[-1][1] * (5000 % run)
    assert whole == pytest.approx(sum(y for _, y in points))
    assert note(points) == "means of 21 steps"
    assert len(_drawn(line_chart("loss", points))) == len(short)


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 2.0)]
    assert len(_drawn(line_chart("loss", points))) == 2
    assert note(points) == "2 values are not finite"
    assert note(points[:1]) == ""
    for nothing in ([], points[1:3]):
        assert "no data" in line_chart("loss", nothing)


@given(low=numbers, width=st.floats(1e-3, 1e6), most=st.integers(2, 8))
def test_ticks_are_round_and_within(low: float, width: float, most: int) -> None:
    high = low + width
    slack = 1e-6 * max(abs(low), abs(high), width)
    inside = ticks(low, high, most)
    assert len(inside) <= most + 1
    assert all(low - slack <= tick <= high + slack for tick in inside)
    around = ticks(low, high, most, outward=True)
    assert around[0] <= low + slack
    assert around[-1] >= high - slack
    assert around[1] > low - slack  # and no further than it must
    assert around[-2] < high + slack
    step = around[1] - around[0]
    assert 2 * step * most >= width  # not needlessly many
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5, 10)) < 1e-2
