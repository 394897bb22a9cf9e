"""Killed at random points, a synthesis goes on, to the same bytes, and pays only for what was under way again."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

import nopair
from nopair.data.places import WORK
from nopair.data.shards import CARD
from nopair.errors import DataError, OutputError
from nopair.synthesis.journal import Journal
from nopair.synthesis.recipe import load_synthesis
from nopair.synthesis.run import synthesize

KILLS = 20
AT_ONCE = 8


class Killer:
    """A server's script that kills the run under way at the n-th answer from now, before or after it is sent."""

    def __init__(self, script: Any, chance: random.Random) -> None:
        self.script = script
        self.chance = chance
        self.pid = 0
        self.left = -1

    def aim(self, pid: int, answers: int) -> None:
        self.pid, self.left = pid, answers

    def __call__(self, asked: Any) -> Any:
        answer = self.script(asked)
        self.left -= 1
        if self.left == 0:
            if self.chance.random() < 0.5:
                kill(self.pid)
            else:
                threading.Timer(self.chance.uniform(0, 0.05), kill, [self.pid]).start()
        return answer


def kill(pid: int) -> None:
    """The process may have ended by itself; its parent has not waited for it yet, or is about to."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def contents(dataset: Path) -> dict[str, str]:
    files = (path for path in sorted(dataset.rglob("*")) if path.is_file() and WORK not in path.parts)
    return {path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def settle(server: Any) -> None:
    """Wait for what a killed run had sent and the server has not read yet: it is that run's, not the next one's."""
    seen = None
    while seen != (seen := (len(server.asked), len(server.answered))):
        time.sleep(0.1)


def whole_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_twenty_kills_change_nothing_and_cost_what_was_under_way(
    toy: ModuleType, endpoint_server: ModuleType, photos: Path, tmp_path: Path
) -> None:
    chance = random.Random(5)
    killer = Killer(toy.flaky(toy.Model(endpoint_server), endpoint_server), chance)
    dataset, ended = tmp_path / "dataset", []
    with endpoint_server.serve(killer) as server:
        recipe = toy.recipe(tmp_path, server.url)
        runs = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed.py")), str(photos), str(dataset), str(recipe)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(nopair.__file__).parents[1])},
        )
        assert runs.stdin is not None
        assert runs.stdout is not None

        def run(answers: int, seconds: float | None = None) -> int:
            """One run, killed at an answer or after a time, if it is still there; how it ended."""
            before = len(server.answered) - whole_lines(dataset / WORK / "answers.jsonl")
            runs.stdin.write("\n")
            runs.stdin.flush()
            pid = int(runs.stdout.readline())
            killer.aim(pid, answers)
            timer = None if seconds is None else threading.Timer(seconds, kill, [pid])
            if timer is not None:
                timer.start()
            code = int(runs.stdout.readline())
            killer.aim(0, -1)
            if timer is not None:
                timer.cancel()
            settle(server)
            lost = len(server.answered) - whole_lines(dataset / WORK / "answers.jsonl") - before
            assert 0 <= lost <= AT_ONCE, "more was paid again than was under way"
            return code

        with runs:
            while ended.count(-signal.SIGKILL) < 3:  # while photos are looked at
                ended.append(run(-1, chance.uniform(0.0, 0.15)))
            while ended.count(-signal.SIGKILL) < KILLS - 4:
                ended.append(run(chance.randint(1, 12)))
            while ended.count(-signal.SIGKILL) < KILLS:  # on the last metres
                ended.append(run(-1, chance.uniform(0.0, 0.8)))
            assert run(-1) == 0
            runs.stdin.close()
    assert set(ended) <= {0, -signal.SIGKILL}
    assert 0 < whole_lines(dataset / WORK / "answers.jsonl") <= len(server.answered)
    with endpoint_server.serve(toy.Model(endpoint_server)) as server:
        (tmp_path / "once").mkdir()
        recipe = toy.recipe(tmp_path / "once", server.url)
        console = Console(file=io.StringIO())
        asyncio.run(synthesize(photos, tmp_path / "once" / "dataset", load_synthesis(recipe), console))
    assert CARD in contents(dataset)
    assert contents(dataset) == contents(tmp_path / "once" / "dataset")


# The journal ----------------------------------------------------------------------------------------------------------


def test_a_journal_gives_back_what_was_put(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "j.jsonl"
    with Journal(path) as journal:
        journal.put("a", {"text": "line\nend \ud800 \u2028"})
        journal.put("b", {"text": "", "n": [1, 2.5]})
        assert journal.get("a") == {"text": "line\nend \ud800 \u2028"}
    with Journal(path) as journal:
        assert journal.get("b") == {"text": "", "n": [1, 2.5]}
        assert journal.get("c") is None
        journal.put("c", {})
        assert len(journal) == 3


def test_a_journal_cut_anywhere_loses_only_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        for number in range(3):
            journal.put(str(number), {"n": number})
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        with Journal(path) as journal:
            whole = sum(end <= length for end in ends)
            assert len(journal) == whole
            journal.put("new", {"n": 9})
            assert journal.get("new") == {"n": 9}
        assert [json.loads(line)["value"]["n"] for line in path.read_bytes().splitlines()] == [*range(whole), 9]


@pytest.mark.parametrize("line", [b"x", b"{}", b'{"key": 1, "value": {}}', b'{"key": "a", "value": 1}', b"[" * 9999])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"key": "a", "value": {}}\n' + line + b"\n")
    with pytest.raises(DataError, match="line 2"):
        Journal(path)


def test_two_runs_do_not_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl"), pytest.raises(OutputError, match="another run"):
        Journal(tmp_path / "j.jsonl")
    Journal(tmp_path / "j.jsonl").close()
