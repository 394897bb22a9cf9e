"""How samples of the base are marked against the captions that they were sampled from."""

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from nopair.world.scenes import Background, Scene, Thing

CIRCLE = Thing("circle", "red", "plain", "small", 0)
CROSS = Thing("cross", "blue", "striped", "large", 3)
WANTED = Scene(Background("checks", "teal"), (CIRCLE, CROSS))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (WANTED, (1.0, 1.0, 1.0, 1.0)),
        (Scene(WANTED.background, (replace(CIRCLE, cell=1), replace(CROSS, cell=2))), (1.0, 1.0, 1.0, 1.0)),
        (WANTED.without(3), (0.5, 1.0, 1.0, 0.0)),
        (WANTED.with_thing(replace(CIRCLE, cell=1)), (1.0, 1.0, 0.0, 0.0)),
        (WANTED.with_thing(replace(CROSS, colour="red")), (0.5, 1.0, 0.0, 0.0)),
        (replace(WANTED, background=Background("checks", "grey")), (1.0, 0.0, 1.0, 0.0)),
    ],
)
def test_places_do_not_count_and_all_else_does(
    found: Scene, expected: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    marks = importlib.import_module("captions").marks
    assert marks(WANTED, found) == expected
