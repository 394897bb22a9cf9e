"""All runs of a study, several at a time, each in a process of its own."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Final

from rich.console import Console

from nopair.data.files import make_folder
from nopair.errors import Interrupted, NopairError, TrainingError
from nopair.evaluation.studies.judges import audit_file, audit_judge
from nopair.evaluation.studies.run import Job, known, read_result, run_job, summary, warm_up
from nopair.training.metrics import say
from nopair.training.signals import stop_on_signals

LOG: Final = "log.txt"
POLL: Final = 0.2
"""Seconds between two looks at what is running."""


def run_all(jobs: Sequence[Job], workers: int, console: Console) -> None:
    """Do those of `jobs` that are not done, `workers` at a time. What a run says goes to its `log.txt`.

    Raises:
        TrainingError: a run broke; the others are stopped, with everything saved.
        Interrupted: after a signal, with everything saved.
        OutputError: a folder cannot be made.
    """
    left = [job for job in jobs if not known(job)]
    for job in left:  # told here, not by the first run's process
        make_folder(job.folder)
    say(console, f"{len(jobs)} runs, {len(jobs) - len(left)} of them done before")
    starts: dict[object, Job] = {}
    for job in left:
        if job.start is not None and not job.start.exists():
            starts.setdefault(job.start, job)
    _run(list(starts.values()), _warm_up, workers, console)
    _run(left, _train, workers, console)
    judged = {audit_file(job): job for job in reversed(jobs) if job.study.audited}
    unknown = [job for file, job in judged.items() if not file.is_file()]
    if unknown:
        say(console, f"judges to audit: {len(unknown)}")
    _run(unknown, _audit, workers, console)


def _run(jobs: Sequence[Job], target: Callable[[Job], None], workers: int, console: Console) -> None:
    context = multiprocessing.get_context("spawn")  # torch does not survive a fork
    waiting, running, finished, began = list(jobs), dict[BaseProcess, Job](), 0, time.monotonic()
    broken: Job | None = None
    with stop_on_signals() as stop:
        while (waiting and stop.signal is None and broken is None) or running:
            while waiting and len(running) < workers and stop.signal is None and broken is None:
                job = waiting.pop(0)
                process = context.Process(target=target, args=(job,))
                process.start()
                running[process] = job
            time.sleep(POLL)
            for process in [process for process in running if not process.is_alive()]:
                job = running.pop(process)
                finished += 1
                if process.exitcode:
                    broken = broken or job
                elif target is _train:
                    each = (time.monotonic() - began) / finished
                    rest = f"{finished} of {len(jobs)}, about {each * (len(jobs) - finished) / 60:.0f} min left"
                    say(console, f"{job.title}: {summary(read_result(job.folder))} ({rest})")
            if (stop.signal is not None or broken is not None) and running:
                for process in running:
                    process.terminate()
                for process in running:
                    process.join()
    if stop.signal is not None:
        raise Interrupted(128 + stop.signal)
    if broken is not None:
        raise TrainingError(
            f"{broken.title}: broke; {broken.folder / LOG} says why, the same command goes on from here"
        )


def _warm_up(job: Job) -> None:
    _alone(job, warm_up)


def _train(job: Job) -> None:
    _alone(job, run_job)


def _audit(job: Job) -> None:
    _alone(job, audit_judge)


def _alone(job: Job, work: Callable[[Job, Console], None]) -> None:
    """In a process of its own: errors go to the log, and the exit code tells that there was one."""
    make_folder(job.folder)
    # Not closed: what nobody expected is written to it when this process ends.
    log = (job.folder / LOG).open("a", encoding="utf-8")
    sys.stderr = log
    try:
        work(job, Console(file=log, width=200))
    except Interrupted as stopped:
        os._exit(stopped.exit_code)
    except NopairError as error:
        log.write(f"error: {error}\n")
        log.flush()
        os._exit(error.exit_code)
