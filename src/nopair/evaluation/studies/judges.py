"""What an audit says of the judge that a variant is trained under. Done once for each judge; kept."""

from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console

from nopair.data.files import make_folder
from nopair.evaluation.audit.cases import shapes_cases
from nopair.evaluation.audit.command import Settings, examine, repainting
from nopair.evaluation.audit.compass import latents_of
from nopair.evaluation.audit.summary import Findings
from nopair.evaluation.studies.fingerprint import base_contents, digest, judge_contents, said
from nopair.evaluation.studies.kept import read_json, write_json
from nopair.evaluation.studies.run import SCENES, Job
from nopair.training.metrics import say
from nopair.training.run import compose

STARTS: Final = 8
"""Unedited references of each kind of edit that gradients are taken at, at most."""


def audit_file(job: Job) -> Path:
    """Where the audit of the job's judge is kept, shared by all jobs that are trained under the same one.

    Raises ModelError: a model that the recipe names is not there.
    """
    recipe = job.recipe
    asked = said(recipe, {"judge", "ensemble", "base"})
    models = f"{base_contents(recipe)} {judge_contents(recipe)}"
    return job.root / "audits" / f"{digest(f'{asked} {job.scale.per_category} {SCENES} {models}')}.json"


def audit_judge(job: Job, console: Console) -> None:
    """Audit what judges the job's editor in training, unless that is done: one judge, or an ensemble as one.

    As `nopair judge audit` does with these scenes, but without ascents.

    Raises:
        NopairError: see `nopair.errors`.
    """
    file = audit_file(job)
    if file.is_file():
        return
    training = compose(job.recipe, job.device)
    device = torch.device(job.device)
    count = job.scale.per_category
    cases = shapes_cases(SCENES, count, repainting(training.backbone, device))
    settings = Settings(seed=SCENES, per_category=count, starts=min(STARTS, count), steps=0)
    say(console, f"audit of {job.recipe.judge.path}: {len(cases)} cases")
    found = examine(training.judge, cases, training.backbone, settings, device)
    make_folder(file.parent)
    write_json(file, _brief(found, latents_of(training.backbone).name, len(cases)))


def read_audit(job: Job) -> dict[str, Any]:
    """The audit of the job's judge. Raises OutputError if it cannot be read."""
    return read_json(audit_file(job))


def _brief(found: Findings, space: str, cases: int) -> dict[str, Any]:
    """Accuracy and AUC of both questions; mean cosine of the edit question's gradient with the way to the right answer,
    in `space` (None if undefined)."""
    asked = found.overall.questions
    cosine = found.directions[space].all.edit
    return {
        "cases": cases,
        **{f"{kind}_accuracy": group.measures.accuracy for kind, group in asked.items()},
        **{f"{kind}_auc": group.measures.auc for kind, group in asked.items()},
        "cosine": None if cosine is None else cosine.mean,
    }
