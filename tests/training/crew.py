"""A small run that one process or several do together, what can happen to one of them, and the processes.

They are forked from a server, which imports this file once by its name; so nothing here may import from the tests.
"""

import multiprocessing.forkserver
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from nopair import cli
from nopair.backbones.fake import ToyBackbone
from nopair.backbones.roles import FullRoles
from nopair.config import load_recipe
from nopair.data.loader import Source
from nopair.data.photos import PhotoSource
from nopair.data.tables import open_table
from nopair.editor import Editor
from nopair.errors import DataError, Interrupted, NopairError
from nopair.judges.scripted import ScriptedJudge
from nopair.method.flow import levels
from nopair.training import checkpoint, parallel
from nopair.training.ahead import Ahead
from nopair.training.grpo import GrpoPhase
from nopair.training.loop import run_phases
from nopair.training.parallel import Ranks, joined
from nopair.training.parts import Parts
from nopair.training.phases import EditPhase, WarmupPhase
from nopair.training.run import train  # noqa: F401 - for the server to have it
from nopair.training.sampling import Sampler
from nopair.training.sft import SftPhase
from nopair.types import EditBatch
from nopair.world.pairs import PairSource
from nopair.world.records import WorldSource

BATCH = 4
RECIPE = (
    "threads=1",
    "warmup.steps=2",
    "npedit.steps=3",
    f"warmup.batch={BATCH}",
    f"npedit.batch={BATCH}",
    "npedit.fake_steps=2",
    "warmup.betas=[0.9,0.95]",
    "npedit.betas=[0.9,0.95]",
    "logging.sample_scenes=2",
    "logging.every=1",
    "checkpoint.every=2",
    "checkpoint.keep=9",
)

Mishap = Literal["nan", "bad record", "killed", "SIGTERM"]


@dataclass(frozen=True)
class Trap:
    """A source in which something happens to whoever asks for record `index`, at its `times[0]`-th time."""

    source: Source
    index: int
    mishap: Mishap
    times: list[int]

    def batch(self, indices: Sequence[int]) -> EditBatch:
        batch = self.source.batch(indices)
        if self.index not in indices:
            return batch
        self.times[0] -= 1
        if self.times[0]:
            return batch
        match self.mishap:
            case "nan":
                return replace(batch, reference=batch.reference * float("nan"))
            case "bad record":
                raise DataError("the record is bad")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
        return batch


@dataclass(frozen=True)
class Job:
    """One run: overrides of the recipe, the value of --resume, and what happens at a record in which phase."""

    directory: Path
    overrides: tuple[str, ...] = ()
    resume: str | None = None
    mishap: Mishap | None = None
    record: int = 0
    phase: Literal["warmup", "npedit"] = "npedit"

    def __call__(self, ranks: Ranks) -> dict[str, torch.Tensor]:
        """Run it; all that training has changed, by name."""
        recipe = load_recipe("demo", [*RECIPE, *self.overrides])
        torch.manual_seed(5)
        roles = FullRoles.of(ToyBackbone.build(seed=0))
        source: Source = WorldSource(recipe.data.seed, held_out=False, nothing_share=0.2)
        schedule = levels(recipe.sampling.steps, 1.0)
        sampler = Sampler(roles.student, source.batch(range(2)), schedule, recipe.seed)
        if self.mishap is not None:  # both phases ask for the same records
            source = Trap(source, self.record, self.mishap, [1 if self.phase == "warmup" else 2])
        judge = ScriptedJudge((1.0, 0.0, 0.0))
        parts = Parts(recipe, roles, judge, None, source, 3.0, schedule, sampler, ranks)
        pairs = PairSource(recipe.data.seed, recipe.sft.pairs, torch.device("cpu"))
        baselines = (SftPhase(parts, pairs), GrpoPhase(parts))
        phases = (WarmupPhase(parts), *(phase for phase in baselines if phase.steps), EditPhase(parts))
        console = Console(quiet=not ranks.writes, stderr=True)
        run_phases(phases, recipe=recipe, directory=self.directory, resume=self.resume, console=console, ranks=ranks)
        return flatten(phases[-1].state())


@dataclass(frozen=True)
class Uneven:
    """Gradients of sizes that do not fit a bucket; one is missing on rank 1, one everywhere."""

    def __call__(self, ranks: Ranks) -> dict[str, torch.Tensor]:
        parallel.BUCKET = 8
        shapes = [(2, 3), (5,), (4, 4), (1,), (3,)]
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for number, parameter in enumerate(parameters):
            if number != 3 and (number, ranks.rank) != (1, 1):
                parameter.grad = torch.full_like(parameter, 10.0 * number + ranks.rank)
        ranks.mean_gradients(parameters)
        return {str(n): one.grad for n, one in enumerate(parameters) if one.grad is not None}


@dataclass(frozen=True)
class Feed:
    """The records that each rank reads in steps `first` to `last` of a phase, over a dataset in buckets, ahead."""

    path: Path
    batch: int
    first: int
    last: int

    def __call__(self, ranks: Ranks) -> dict[str, torch.Tensor]:
        recipe = load_recipe("demo", [f"npedit.batch={self.batch}", "npedit.steps=1000", "warmup.steps=0"])
        photos = PhotoSource.of(
            open_table(self.path), ((16, 16), (24, 12)), group=self.batch, seed=3, nothing_share=0.0
        )
        source = Ahead(photos, [recipe.npedit], ranks, 2)
        seen: list[int] = []
        for step in range(self.first, self.last):
            for piece in ranks.pieces(step, self.batch, recipe.npedit.accumulate):
                seen += [int(caption) for caption in source.batch(piece).captions]
            ranks.wait()
        return {"seen": torch.tensor(seen)}


def flatten(state: object, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a state by its path."""
    if isinstance(state, torch.Tensor):
        return {name: state.detach().clone()}
    children = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return {path: tensor for key, value in children for path, tensor in flatten(value, f"{name}/{key}").items()}


# Processes ------------------------------------------------------------------------------------------------------------


def in_step(work: Callable[[Ranks], dict[str, torch.Tensor]], directory: Path) -> None:
    """Do `work` with all the other processes; leaves its result, and a line in `saves` for each checkpoint that it has
    written, and one when it leaves without having written any."""
    original = checkpoint.save

    def save(root: Path, position: checkpoint.Position, *rest: object) -> Path:
        path = original(root, position, *rest)
        time.sleep(0.2)  # as a large one would
        note(f"saved {position.total}")
        return path

    def note(what: str) -> None:
        with (directory / "saves").open("a") as file:
            file.write(f"{os.environ['RANK']} {what}\n")

    checkpoint.save = save
    with joined("cpu") as (ranks, _device):
        try:
            torch.save(work(ranks), directory / f"result-{ranks.rank}.pt")
        finally:
            if ranks.rank:
                note("left")


def nopair(directory: Path, *arguments: str) -> None:
    """The command line; leaves a line in `saves` for each editor written."""
    original = Editor.save

    def save(editor: Editor, folder: Path) -> None:
        with (directory / "saves").open("a") as file:
            file.write(f"{os.environ['RANK']} saved {folder.name}\n")
        original(editor, folder)

    Editor.save = save
    sys.argv = ["nopair", *arguments]
    cli.main()


def _member(directory: Path, rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple) -> None:
    """One process, with the environment that torchrun gives; what it says goes to `said-<rank>`."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    directory.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = (directory / f"said-{rank}").open("w", buffering=1)
    try:
        work(*arguments)
    except NopairError as error:
        print(f"error: {error}")
        sys.exit(error.exit_code)
    except Interrupted as stop:
        sys.exit(stop.exit_code)


def together(directory: Path, world: int, work: Callable[..., None], *arguments: object) -> list[int]:
    """`work(*arguments)` in `world` processes; their exit codes."""
    context = multiprocessing.get_context("forkserver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    _serve()
    processes = [
        context.Process(target=_member, args=(directory, rank, world, port, work, arguments)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    stuck = [process for process in processes if process.exitcode is None]
    for process in stuck:
        process.kill()
    assert not stuck, f"{len(stuck)} of {world} processes did not end"
    return [process.exitcode for process in processes]


def _serve() -> None:
    """Start the server. It knows no path but its environment's, and says nothing when it cannot import."""
    former = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        os.environ |= {} if former is None else {"PYTHONPATH": former}
