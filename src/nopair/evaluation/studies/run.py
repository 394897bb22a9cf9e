"""One run of a study: an editor trained with one seed, and scored. Done once; whatever is complete is kept."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from nopair.config import JudgeConfig, Recipe, load_recipe
from nopair.data.files import file_name, make_folder, write_atomic
from nopair.editor import Editor
from nopair.errors import OutputError, TrainingError
from nopair.evaluation.results import verdict_json
from nopair.evaluation.studies.design import RECIPE, Scale, Study, Variant
from nopair.evaluation.studies.fingerprint import base_contents, contents, digest, judge_contents, said
from nopair.evaluation.studies.kept import read_json, write_json
from nopair.evaluation.studies.origin import origin, sitting
from nopair.evaluation.world import evaluate_editor
from nopair.judges.base import Judge
from nopair.judges.load import load_judge
from nopair.settings import path_override
from nopair.training import checkpoint
from nopair.training.loop import AGAIN, run_phases
from nopair.training.metrics import read
from nopair.training.run import compose
from nopair.weights import resolve
from nopair.world.cases import held_out_cases
from nopair.world.edits import CATEGORIES

RESULT: Final = "result.json"
BEGUN: Final = "fingerprint"
"""Beside checkpoints: of which run they are."""
ALIKE: Final = frozenset({"warmup", "base", "data", "sampling", "seed"})
"""Sections of a recipe that its warm-up follows from; `_sight` has what else does."""
PHASES: Final = ("warmup", "sft", "grpo", "npedit")
SCENES: Final = 0
"""Seed of the held-out edits: all runs of all studies are scored on the same ones."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: which, how large, and in which folder of studies."""

    study: Study
    variant: Variant
    seed: int
    scale: Scale
    root: Path
    device: str = "cpu"
    threads: int | None = None

    @property
    def title(self) -> str:
        """As the console calls it."""
        return f"{self.study.name}: {self.variant.name}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.root / self.study.name / file_name(self.variant.name) / f"seed-{self.seed}"

    @property
    def per_category(self) -> int:
        """Held-out edits of each kind that the editor is scored on."""
        return self.scale.per_category * self.study.edit_factor

    @property
    def recipe(self) -> Recipe:
        """What is trained. Raises ConfigError."""
        threads = "null" if self.threads is None else str(self.threads)
        own = (f"seed={self.seed}", f"data.seed={self.seed}", f"threads={threads}")
        place = path_override("output", self.folder / "training")
        return _cut(load_recipe(RECIPE, [*self.study.overrides, *self.variant.overrides, *own, place]), self.scale)

    @property
    def start(self) -> Path | None:
        """Folder of the warmed-up student, shared by all runs that warm up alike; None where nothing is warmed up.

        Raises ModelError: a model that the recipe names is not there.
        """
        recipe = self.recipe
        if not recipe.warmup.steps:
            return None
        alike = said(recipe, ALIKE)
        return self.root / "starts" / digest(f"{alike}{_sight(recipe)} {base_contents(recipe)}")

    def done(self) -> bool:
        """Whether there is a result, of this very recipe and these very scenes. Raises OutputError if it is broken."""
        return (self.folder / RESULT).is_file() and read_result(self.folder)["fingerprint"] == self.fingerprint

    @property
    def fingerprint(self) -> str:
        """Of all that a result depends on, weights included, but for the machine and the program.

        What a phase without steps says is no part of it. Raises ModelError: a model that it names is not there.
        """
        recipe = self.recipe
        idle = {name for name in PHASES if not getattr(recipe, name).steps}
        own = said(recipe, set(Recipe.model_fields) - {"output", "threads", "logging", "checkpoint"} - idle)
        scored = f"{self.variant.sampled} {self.per_category} {SCENES}"
        others = "" if self.study.categories == CATEGORIES else f" {self.study.categories}"
        scorer = "" if self.scorer is None else f" judged by {self.scorer}"
        models = f"{base_contents(recipe)} {judge_contents(recipe)} {contents([self.scorer] if self.scorer else [])}"
        return digest(f"{own} {scored}{others}{scorer}{_sight(recipe)} {models}")

    @property
    def scorer(self) -> str | None:
        """The judge that scores the editor, where it is not the one that it was trained under."""
        scorer, recipe = self.study.scorer, self.recipe
        if scorer is None or (recipe.judge == JudgeConfig(path=scorer) and not recipe.ensemble):
            return None
        return scorer


def _sight(recipe: Recipe) -> str:
    """How a warm-up from estimates asks the teacher, which section npedit says, even where that phase has no steps."""
    if recipe.warmup.target != "estimate":
        return ""
    return f" {recipe.npedit.preserve_time} {recipe.npedit.preserve_width}"


def _cut(recipe: Recipe, scale: Scale) -> Recipe:
    """The recipe with no phase longer than the scale allows."""
    if scale.most_steps is None:
        return recipe
    phases = {name: getattr(recipe, name) for name in PHASES}
    shorter = {
        name: phase.model_copy(update={"steps": min(phase.steps, scale.most_steps)}) for name, phase in phases.items()
    }
    return recipe.model_copy(update=shorter)


def read_result(folder: Path) -> dict[str, Any]:
    """The result in a run's folder. Raises OutputError if it cannot be read, or is none."""
    found = read_json(folder / RESULT)
    if not isinstance(found, dict) or "fingerprint" not in found:
        raise OutputError(f"{folder / RESULT} is no result of a run; remove it and start the study again")
    return found


def warm_up(job: Job, console: Console) -> None:
    """Make the student that `job` starts from, unless it is there."""
    folder = job.start
    if folder is None or folder.exists():
        return
    place = folder.with_name(f"{folder.name}-training")
    recipe = _warming(job.recipe, place)
    training = compose(recipe, job.device)
    resume = _resume(place)
    run_phases((training.warmup,), recipe=recipe, directory=place, resume=resume, console=console, stopped=AGAIN)
    training.warm_editor().save(folder)
    shutil.rmtree(place)


def _warming(recipe: Recipe, place: Path) -> Recipe:
    """What all recipes that warm up alike (`Job.start`) have in common: any of them goes on where another stopped."""
    plain = load_recipe(RECIPE, [path_override("output", place)])
    alike: dict[str, Any] = {name: getattr(recipe, name) for name in (*ALIKE, "threads")}
    if recipe.warmup.target == "estimate":
        asking = {name: getattr(recipe.npedit, name) for name in ("preserve_time", "preserve_width")}
        alike["npedit"] = plain.npedit.model_copy(update=asking)
    return plain.model_copy(update=alike)


def known(job: Job) -> bool:
    """Whether there is a result. One of this very run under another name, or in another study, is taken over.

    Raises:
        OutputError: a result is broken, or cannot be written.
        ModelError: a model that the recipe names is not there.
    """
    if job.done():
        return True
    twin = _twin(job, job.fingerprint)
    if twin is None:
        return False
    make_folder(job.folder)
    write_json(job.folder / RESULT, twin | {"variant": job.variant.name})
    return True


def run_job(job: Job, console: Console) -> None:
    """Train, score, and write `result.json`; goes on where it was stopped.

    An editor whose training fails is a result, too, and says so. A run that another study has done is not done again.

    Raises:
        NopairError: see `nopair.errors`; Interrupted after a signal, with everything saved.
    """
    fingerprint = job.fingerprint  # before anything is trained: a model may be missing
    if known(job):
        return
    make_folder(job.folder)
    warm_up(job, console)
    recipe = _started(job)
    place = Path(recipe.output)
    training = compose(recipe, job.device)
    scorer = training.judge if job.scorer is None else load_judge(resolve(job.scorer)).to(job.device)
    _forget_another(place, fingerprint)
    result: dict[str, Any] = {
        "variant": job.variant.name,
        "seed": job.seed,
        "fingerprint": fingerprint,
        "updates": recipe.sft.steps + recipe.grpo.steps + recipe.npedit.steps,
        "failed": None,
        "marks": [],
    }
    try:
        resume = _resume(place)
        with sitting(place, job.device):
            run_phases(training.phases, recipe=recipe, directory=place, resume=resume, console=console, stopped=AGAIN)
    except TrainingError as error:
        result["failed"] = str(error)
    else:
        trained = result["updates"] > 0
        result["seconds"] = read(place / "metrics.jsonl")[-1].seconds if trained else 0.0
        result["marks"] = _marks(job, training.editor(), scorer)
    write_json(job.folder / RESULT, result | origin(place))
    if (place / "checkpoints").exists():  # training may break down before the first
        shutil.rmtree(place / "checkpoints")


def _forget_another(place: Path, fingerprint: str) -> None:
    """Remove what was begun under another recipe, which no run could go on from."""
    mark = place / BEGUN
    if place.exists() and not (mark.is_file() and mark.read_text(encoding="utf-8") == fingerprint):
        shutil.rmtree(place)
    make_folder(place)
    write_atomic(mark, fingerprint.encode("ascii"))


def _twin(job: Job, fingerprint: str) -> dict[str, Any] | None:
    """The result of this very run under another name, or in another study; None if nobody has done it."""
    found = (read_result(path.parent) for path in sorted(job.root.glob(f"*/*/seed-{job.seed}/{RESULT}")))
    return next((result for result in found if result["fingerprint"] == fingerprint), None)


def _started(job: Job) -> Recipe:
    """The job's recipe, from the student that is warmed up already."""
    recipe, start = job.recipe, job.start
    if start is None:
        return recipe
    base = recipe.base.model_copy(update={"student": str(start)})
    return recipe.model_copy(update={"base": base, "warmup": recipe.warmup.model_copy(update={"steps": 0})})


def _marks(job: Job, editor: Editor, judge: Judge) -> list[dict[str, Any]]:
    """Scores at every number of sampling steps that is asked for."""
    edits = held_out_cases(SCENES, job.per_category, job.study.categories)
    marks = []
    for steps in job.variant.sampled or (editor.settings.steps,):
        found = evaluate_editor(editor.with_steps(steps), judge, edits, job.seed)
        marks.append({"steps": steps, **verdict_json(found.verdict)})
    return marks


def _resume(place: Path) -> str | None:
    return "latest" if checkpoint.newest_total(place / "checkpoints") else None


def summary(result: Mapping[str, Any]) -> str:
    """A result in one line."""
    if result["failed"] is not None:
        return f"failed: {result['failed']}"
    parts = [
        f"{row['steps']} steps: success {row['success']:.3f}, preservation {row['preservation']:.3f}, "
        f"realism {row['realism']:.3f}, overall {row['overall']:.3f}"
        for row in result["marks"]
    ]
    return "; ".join(parts)
