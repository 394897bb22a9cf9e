"""The metrics file keeps what was written, and only whole records of it; the console gets plain lines."""

import errno
import io
import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nopair.errors import CheckpointError, OutputError
from nopair.training.metrics import MetricsFile, PhaseProgress, Record, pace, read, say

records = st.builds(
    Record,
    phase=st.text(min_size=1),
    step=st.integers(1, 10**9),
    seconds=st.integers(0, 10**9).map(lambda ms: ms / 1000),
    values=st.dictionaries(
        st.text().filter(lambda name: name not in ("phase", "step", "time")),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
)


@given(records)
def test_round_trip(record: Record) -> None:
    line = record.to_json()
    assert "\n" not in line
    assert Record.from_json(line) == record


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_in_the_file_and_nan_in_memory(value: float) -> None:
    line = Record("warmup", 1, 0.5, {"loss": value}).to_json()
    assert json.loads(line) == {"phase": "warmup", "step": 1, "time": 0.5, "loss": None}
    assert math.isnan(Record.from_json(line).values["loss"])


def test_written_records_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first, second = Record("a", 1, 0.1, {"loss": 1.0}), Record("a", 2, 0.2, {"loss": 0.5})
    with MetricsFile(path, []) as file:
        assert read(path) == ()
        file.write(first)
        assert read(path) == (first,)  # in the file at once, not at the end
        file.write(second)
        file.sync()
    assert read(path) == (first, second)
    with MetricsFile(path, [first]):
        assert read(path) == (first,)
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = Record("a", 1, 0.1, {"loss": 1.0})
    text = f"{whole.to_json()}\n"
    for cut in range(len(text)):
        path.write_text(text + text[:cut])
        assert read(path) == (whole,)


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"phase": "a", "step": "x", "time": 0}', "", '{"phase": 1, "step": 1}']
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{Record('a', 1, 0.1, {}).to_json()}\n{line}\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2, is damaged"):
        read(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path / "metrics.jsonl")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetricsFile(tmp_path / "metrics.jsonl", []) as file:
        monkeypatch.setattr(os, "fsync", _full)
        with pytest.raises(OutputError, match="No space left"):
            file.sync()
    with pytest.raises(OutputError, match="No space left"):
        MetricsFile(tmp_path / "metrics.jsonl", [])


def _full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("done", "left", "seconds", "words"),
    [
        (0, 5, 1.0, ""),
        (10, 100, 5.0, "2 steps/s, 0:50 left"),
        (2, 30, 6.0, "3 s/step, 1:30 left"),
        (1, 1200, 10.0, "10 s/step, 3:20:00 left"),
        (300, 0, 100.0, "3 steps/s, 0:00 left"),
    ],
)
def test_pace(done: int, left: int, seconds: float, words: str) -> None:
    assert pace(done, left, seconds) == words


def test_plain_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=40)
    with PhaseProgress(console, "warmup", 10, 4) as progress:
        progress.advance(5, None)
        progress.advance(6, Record("warmup", 6, 1.0, {"loss": 0.123456, "[bold]": 2.0}))
    (line,) = out.getvalue().splitlines()
    assert line.startswith("warmup 6/10  ")
    assert line.endswith("left  loss 0.1235  [bold] 2")


def test_refused_steps_are_shown_once_there_are_any() -> None:
    out = io.StringIO()
    with PhaseProgress(Console(file=out, width=40), "npedit", 10, 4) as progress:
        progress.advance(5, Record("npedit", 5, 1.0, {"loss": 0.0, "skipped": 0.0, "fake_skipped": 0.0}))
        progress.advance(6, Record("npedit", 6, 1.0, {"loss": 0.0, "skipped": 0.0, "fake_skipped": 2.0}))
    first, second = out.getvalue().splitlines()
    assert first.endswith("left  loss 0")
    assert second.endswith("left  loss 0  fake_skipped 2")


def test_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, force_interactive=True, _environ={"TERM": "xterm"})
    with PhaseProgress(console, "warmup", 10, 4) as progress:
        progress.advance(6, Record("warmup", 6, 1.0, {"loss": 0.5}))
        progress.advance(7, None)
    shown = out.getvalue()
    assert "7/10" in shown
    assert "loss 0.5" in shown
    assert "\x1b[?25h" in shown  # the cursor is back


def test_say_prints_the_text_as_it_is() -> None:
    out = io.StringIO()
    say(Console(file=out, width=10), "a [red]long[/red] line that stays one line")
    assert out.getvalue() == "a [red]long[/red] line that stays one line\n"
