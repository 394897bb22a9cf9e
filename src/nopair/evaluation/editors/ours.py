"""Editors of nopair's own."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, final

import torch
from pydantic import JsonValue

from nopair.data.files import make_folder
from nopair.data.jobs import Job
from nopair.device import choose_device
from nopair.digests import folder_digest
from nopair.editor import Editor, read_settings, run_jobs, usual_dtype
from nopair.endpoints.server import Server
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.editors.base import Told, below, ends_all, seed_of
from nopair.evaluation.specs import Spec
from nopair.precision import AUTO, DTYPES, dtype_called
from nopair.weights import resolve

_USUAL: Final = "editor"
"""What training calls the folder of every editor."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class OurEditor:
    """A `Contestant`: an editor that was trained without pairs. `opened` loads it, once there is something to edit."""

    makes: ClassVar[bool] = True
    name: str
    about: Mapping[str, JsonValue]
    opened: Callable[[], Editor]
    seed: int
    batch: int

    @classmethod
    def load(cls, spec: Spec, device: str) -> "OurEditor":
        """`nopair:MODEL[,steps=N][,seed=N][,batch=N][,dtype=bf16][,name=NAME]`; `dtype` is as `dtype_called` takes it.

        Raises:
            ConfigError: an unknown option or precision.
            ModelError: the model cannot be used.
        """
        spec.only("steps", "seed", "batch", "dtype", "name", "judge")
        folder, place = resolve(spec.place), choose_device(device)
        trained = read_settings(folder).steps
        dtype = dtype_called(spec.options.get("dtype", AUTO)) or usual_dtype(folder, place)
        steps = spec.number("steps", trained)
        seed = spec.number("seed", 0, least=0)
        own = _name_of(spec.place) if steps == trained else f"{_name_of(spec.place)}-{steps}-steps"
        about: dict[str, JsonValue] = {
            "kind": "nopair",
            "model": spec.place,
            "version": folder_digest(folder),
            "steps": steps,
            "seed": seed,
        }
        if dtype != torch.float32:  # in which all editors were opened once, and nothing was said of it
            about["dtype"] = next(name for name, known in DTYPES.items() if known == dtype)
        opened = functools.partial(_open, spec.place, place, dtype, steps)
        return cls(spec.options.get("name", own), about, opened, seed, spec.number("batch", 4))

    @property
    def server(self) -> Server | None:
        """None is asked."""
        return None

    def output(self, item: Item, folder: Path) -> Path:
        """See `Contestant.output`."""
        return below(item, folder)

    def make(self, items: Sequence[Item], folder: Path, told: Told) -> None:
        """See `Contestant.make`.

        Raises:
            ModelError: the model cannot be used.
            OutputError: outputs cannot be written.
        """
        if not items:
            return
        jobs = {}
        for item in items:
            target = below(item, folder)
            make_folder(target.parent)
            jobs[target] = (item, Job(item.source, item.instruction, target, seed_of(item, self.seed)))
        for job, error in run_jobs(self.opened(), [job for _, job in jobs.values()], self.batch):
            if error is not None and ends_all(error):
                raise error
            told(jobs[job.output][0], None if error is None else str(error))


def _name_of(model: str) -> str:
    """The folder's; where that is the same for every editor, its parent's."""
    folder = Path(model).absolute()
    return (folder.parent.name or folder.name) if folder.name == _USUAL else folder.name


def _open(model: str, device: torch.device, dtype: torch.dtype, steps: int) -> Editor:
    return Editor.load(model, device, dtype).with_steps(steps)
