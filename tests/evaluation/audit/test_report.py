"""The page: one file that says what the JSON says, shows the surest mistakes, and escapes whatever it shows."""

import base64
import re
from dataclasses import replace

import pytest
import torch

from nopair.data.images import decode_image
from nopair.evaluation.audit.cases import LabelledCase
from nopair.evaluation.audit.command import Settings, examine
from nopair.evaluation.audit.report import SIDE, render_audit
from nopair.evaluation.audit.summary import About, Findings
from nopair.evaluation.audit.tables import tables
from nopair.judges.scripted import ScriptedJudge

CPU = torch.device("cpu")
ABOUT = About("my <judge>", None, "a & b", 3, None, None, "v2", "cpu", "bfloat16", 4, 1.5)


def grey(value: float, *, done: bool, same: bool, size: int = 4) -> LabelledCase:
    images = (torch.full((3, size, size), each) for each in (0.3, value, 0.5))
    reference, edited, target = images
    return LabelledCase(reference, edited, "<dye> it", "hats & wigs", "", done, same, target)


CASES = [
    grey(0.45, done=False, same=True),
    grey(0.3, done=False, same=True),
    grey(0.9, done=True, same=False, size=2 * SIDE),
]


@pytest.fixture(scope="module")
def found() -> Findings:
    judge = ScriptedJudge((0.5, 0.5, 0.5), tolerance=0.2, sharpness=100.0)
    return examine(judge, CASES, None, Settings(starts=1, steps=2), CPU)


def pictures(page: str) -> list[torch.Tensor]:
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [decode_image(base64.b64decode(source), "picture") for source in sources]


def test_the_page_holds_every_number_of_the_tables(found: Findings) -> None:
    page = render_audit(ABOUT, found, CASES)
    for table in tables(ABOUT, found):
        for section in table.sections:
            for row in section:
                cells = "".join(f"<td>{cell.replace('&', '&amp;')}</td>" for cell in row[table.words :])
                assert cells in page
    for heading in ("What to mind", "In other words", "Where the gradient leads", "Surest mistakes"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<svg") == 2
    assert "bfloat16, language model in 4 bits" in page


def test_mistakes_are_shown_reference_beside_edited_and_large_ones_small(found: Findings) -> None:
    assert [mistake.case for mistake in found.mistakes] == [2, 0], "the surest first"
    shown = pictures(render_audit(ABOUT, found, CASES))
    assert [tuple(each.shape[1:]) for each in shown] == [(SIDE, SIDE), (SIDE, SIDE), (4, 4), (4, 4)]
    for each, value in zip(shown, (0.3, 0.9, 0.3, 0.45), strict=True):
        assert torch.allclose(each, torch.tensor(value), atol=1 / 255)
    page = render_audit(ABOUT, found, CASES)
    said = [re.sub(r"[^YN]*(Yes|No).*", r"\1", each) for each in re.findall("the judge says</dt><dd>(.*?)</dd>", page)]
    assert list(zip(said, re.findall("right is</dt><dd>(.*?)</dd>", page), strict=True)) == [
        ("No", "Yes"),
        ("Yes", "No"),
    ]


def test_nothing_is_fetched_and_whatever_is_shown_is_escaped(found: Findings) -> None:
    page = render_audit(ABOUT, found, CASES)
    for raw in ("<judge>", "<dye>", "a & b", "hats & wigs", "http:", "https:", "<script"):
        assert raw not in page
    assert "&lt;dye&gt; it" in page


def test_sections_with_nothing_to_say_are_left_out(found: Findings) -> None:
    bare = replace(found, warnings=(), mistakes=(), directions={}, ascents=None)
    page = render_audit(ABOUT, bare, CASES)
    assert "What to mind" not in page
    assert "Where the gradient leads" not in page
    assert "<p>None.</p>" in page
    assert pictures(page) == []
