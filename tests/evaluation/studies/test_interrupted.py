"""A study that is stopped while its runs are at work."""

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nopair.errors import Interrupted
from nopair.evaluation.studies import crew
from nopair.evaluation.studies.design import Scale, Study, Variant
from nopair.evaluation.studies.run import Job

STUDY = Study("mini", "?", "!", tuple(Variant(name) for name in "abcd"))
WORKERS = 2


class Counted(Job):
    """Reaches its process as the path of its folder: reading a Job there would import torch, which takes seconds."""

    @property
    def folder(self) -> Path:
        return self.root / self.variant.name

    def __reduce__(self) -> Any:
        return Path, (str(self.folder),)

    def done(self) -> bool:
        return (self.folder / "done").exists()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, where processes of their own find it, too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("counting")


@pytest.fixture(autouse=True)
def unheard() -> Iterator[list[int]]:
    """Signals that nobody took while the test ran: they are to fail it, and not to end the whole session."""
    heard: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in numbers}
    yield heard
    for number, handler in former.items():
        signal.signal(number, handler)


def command(jobs: Sequence[Job], target: Callable[[Any], None]) -> None:
    """What is left, as `run_all` does it."""
    crew._run([job for job in jobs if not job.done()], target, WORKERS, Console(quiet=True))


def send_once_begun(number: int, jobs: Sequence[Job], everywhere: bool) -> None:
    """A signal to this process, once as many runs as there are workers count; a terminal's goes to them as well."""
    deadline = time.monotonic() + 60
    while len(pids := pids_of(jobs)) < WORKERS and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in [os.getpid(), *(pids if everywhere else [])]:
        os.kill(pid, number)


def pids_of(jobs: Sequence[Job]) -> list[int]:
    texts = [(job.folder / "pid").read_text() for job in jobs if (job.folder / "pid").exists()]
    return [int(text) for text in texts if text]  # empty while it is being written


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("number", "everywhere"), [(signal.SIGINT, True), (signal.SIGTERM, False)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_stops_all_runs_with_everything_saved_and_the_same_command_goes_on(
    tmp_path: Path, counting: Any, unheard: list[int], number: int, everywhere: bool
) -> None:
    jobs = [Counted(STUDY, variant, 0, Scale((0,), 1), tmp_path) for variant in STUDY.variants]
    sender = threading.Thread(target=send_once_begun, args=(number, jobs, everywhere))
    sender.start()
    with pytest.raises(Interrupted) as stopped:
        command(jobs, counting.count)
    sender.join()
    assert stopped.value.exit_code == 128 + number
    assert unheard == []
    assert len(pids_of(jobs)) == WORKERS, "after the signal no run is begun"
    assert not any(map(runs, pids_of(jobs)))
    assert multiprocessing.active_children() == []
    before = [int((job.folder / "count").read_text()) for job in jobs[:WORKERS]]
    assert min(before) > 0
    assert not any(job.done() for job in jobs)

    (tmp_path / counting.ENOUGH).touch()
    command(jobs, counting.count)
    assert all(job.done() for job in jobs)
    assert [int((job.folder / "count").read_text()) for job in jobs[:WORKERS]] == before, "they went on from there"
    assert multiprocessing.active_children() == []
    command(jobs, pytest.fail)
