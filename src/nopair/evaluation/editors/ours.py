"""Editors of nopair's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from pydantic import JsonValue

from nopair.data.files import make_folder
from nopair.data.jobs import Job
from nopair.device import choose_device
from nopair.editor import Editor, run_jobs
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.digests import folder_digest
from nopair.evaluation.editors.base import Told, below, seed_of
from nopair.evaluation.specs import Spec
from nopair.weights import resolve


@final
@dataclass(frozen=True, eq=False, slots=True)
class OurEditor:
    """A `Contestant`: an editor that was trained without pairs."""

    name: str
    about: Mapping[str, JsonValue]
    editor: Editor
    seed: int
    batch: int

    @classmethod
    def load(cls, spec: Spec, device: str) -> "OurEditor":
        """`nopair:MODEL[,steps=N][,seed=N][,batch=N][,name=NAME]`.

        Raises:
            ConfigError: an unknown option.
            ModelError: the model cannot be used.
        """
        spec.only("steps", "seed", "batch", "name", "judge")
        editor = Editor.load(spec.place, choose_device(device))
        steps = spec.number("steps", editor.settings.steps)
        seed = spec.number("seed", 0, least=0)
        own = Path(spec.place).name if steps == editor.settings.steps else f"{Path(spec.place).name}-{steps}-steps"
        about = {
            "kind": "nopair",
            "model": spec.place,
            "version": folder_digest(resolve(spec.place)),
            "steps": steps,
            "seed": seed,
        }
        return cls(spec.options.get("name", own), about, editor.with_steps(steps), seed, spec.number("batch", 4))

    def output(self, item: Item, folder: Path) -> Path:
        """See `Contestant.output`."""
        return below(item, folder)

    def make(self, items: Sequence[Item], folder: Path, told: Told) -> None:
        """See `Contestant.make`."""
        jobs = {}
        for item in items:
            target = below(item, folder)
            make_folder(target.parent)
            jobs[target] = (item, Job(item.source, item.instruction, target, seed_of(item, self.seed)))
        for job, error in run_jobs(self.editor, [job for _, job in jobs.values()], self.batch):
            told(jobs[job.output][0], None if error is None else str(error))
