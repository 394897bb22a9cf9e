"""Where and with what a run was made, and what it took."""

import platform
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

import nopair
from nopair.evaluation.studies.kept import read_json, write_json

SITTINGS: Final = "sittings.json"
"""Beside checkpoints: of each time that a run was begun or went on, the machine, the version, and processor seconds."""
_CPUINFO: Final = Path("/proc/cpuinfo")


@contextmanager
def sitting(place: Path, device: str) -> Iterator[None]:
    """Training in `place` is begun, or goes on: note where, with what, and how much processor time it takes inside.

    Raises:
        OutputError: the notes in `place` cannot be read or written.
    """
    file = place / SITTINGS
    before = read_json(file) if file.is_file() else []
    own = {"machine": machine(device), "version": version()}
    write_json(file, [*before, own | {"processor_seconds": None}])
    began = time.process_time()
    try:
        yield
    finally:
        write_json(file, [*before, own | {"processor_seconds": time.process_time() - began}])


def origin(place: Path) -> dict[str, Any]:
    """Of a run trained in `place` and done now: machine, version, date, and the processor seconds of its training.

    Where a sitting was killed, nobody knows what it took, and `processor_seconds` is None. Raises OutputError.
    """
    sittings: list[Mapping[str, Any]] = read_json(place / SITTINGS)
    taken = [one["processor_seconds"] for one in sittings]
    return {
        "machine": together(one["machine"] for one in sittings),
        "version": together(one["version"] for one in sittings),
        "date": datetime.now(UTC).date().isoformat(),
        "processor_seconds": None if None in taken else sum(taken),
    }


def together(words: Iterable[str]) -> str:
    """Different ones, in the order in which they come."""
    return "; ".join(dict.fromkeys(words))


def span(dates: Iterable[str]) -> str:
    """`2026-11-26`, or `2026-11-26 to 2026-11-28`, of one ISO date or more."""
    first, *others = sorted(set(dates))
    return f"{first} to {others[-1]}" if others else first


def machine(device: str) -> str:
    """What this process computes on, in words."""
    threads = torch.get_num_threads()
    used = f"{threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}"
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {used}"
    return f"{processor(_CPUINFO)}, {torch.backends.cpu.get_cpu_capability()}, {used}"


def processor(cpuinfo: Path) -> str:
    """The processor's name, with family and model where Linux tells them: one name may stand for several processors."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:  # not on Linux
        return platform.processor() or platform.machine()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in told:  # ARM
        return f"{platform.machine()} CPU"
    known = [f"{name} {told[key]}" for name, key in (("family", "cpu family"), ("model", "model")) if key in told]
    return f"{told['model name']} ({' '.join(known)})" if known else told["model name"]


def version() -> str:
    """The package's, and in a checkout the revision, with `-dirty` where files differ from it."""
    revision = _revision(Path(nopair.__file__).parents[2])
    return nopair.__version__ if revision is None else f"{nopair.__version__} ({revision})"


def _revision(checkout: Path) -> str | None:
    """None where this is no checkout, or there is no git to ask."""
    if not (checkout / ".git").exists():
        return None
    asked = ["git", "--no-optional-locks", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
