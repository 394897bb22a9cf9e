"""What a run is known by: what changes the name of a run, of its warmed-up student and of its judges' audit."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nopair.config import EditPhaseConfig, GuardConfig, SamplingConfig
from nopair.digests import folder_digest, model_digest
from nopair.errors import ModelError
from nopair.evaluation.studies import fingerprint, run
from nopair.evaluation.studies.design import Scale, Study, Variant
from nopair.evaluation.studies.judges import audit_file
from nopair.evaluation.studies.run import Job

OVERRIDES = ("base.path={base}", "base.student={student}", "judge.path={judge}", "ensemble=[{{path: {second}}}]")


def models(root: Path) -> dict[str, Path]:
    """Folders that stand for models: they are digested, and not opened."""
    folders = {name: root / name for name in ("base", "student", "judge", "second", "scorer")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(bytes(100_000))
        (folder / "README.md").write_text("A card.")
    return folders


def job_of(folders: dict[str, Path], root: Path) -> Job:
    overrides = tuple(one.format(**folders) for one in OVERRIDES)
    study = Study("mini", "?", "!", (Variant("plain", overrides),), scorer=str(folders["scorer"]))
    return Job(study, study.variants[0], 0, Scale((0,), 1), root)


def names(job: Job) -> dict[str, Any]:
    """As another process would find them."""
    fingerprint._content.cache_clear()
    return {"run": job.fingerprint, "start": job.start, "audit": audit_file(job)}


@pytest.mark.parametrize(
    ("model", "changed"),
    [
        ("base", {"run", "start", "audit"}),
        ("student", {"run", "start", "audit"}),
        ("judge", {"run", "audit"}),
        ("second", {"run", "audit"}),
        ("scorer", {"run"}),
    ],
)
def test_other_weights_under_the_same_name_make_another_run(tmp_path: Path, model: str, changed: set[str]) -> None:
    folders = models(tmp_path)
    job = job_of(folders, tmp_path / "runs")
    before = names(job)
    assert names(job) == before
    (folders[model] / "model.safetensors").write_bytes(bytes(80_000) + b"1" + bytes(19_999))
    after = names(job)
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_run_made_with_other_weights_is_not_done(tmp_path: Path) -> None:
    folders = models(tmp_path)
    job = job_of(folders, tmp_path / "runs")
    job.folder.mkdir(parents=True)
    (job.folder / run.RESULT).write_text(json.dumps({"fingerprint": job.fingerprint}))
    assert job.done()
    (folders["judge"] / "model.safetensors").write_bytes(bytes(100_001))
    fingerprint._content.cache_clear()
    assert not job.done()


def test_a_folder_is_read_once_in_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    true: Callable[[Path], str] = fingerprint.model_digest
    monkeypatch.setattr(fingerprint, "model_digest", lambda folder: (read.append(folder), true(folder))[1])
    folders = models(tmp_path)
    job = job_of(folders, tmp_path / "runs")
    names(job)
    assert job.fingerprint == dataclasses.replace(job).fingerprint
    assert sorted(read) == sorted(folders.values())


def test_what_a_run_is_known_by_says_defaults_too_so_another_default_makes_another_run(tmp_path: Path) -> None:
    recipe = job_of(models(tmp_path), tmp_path / "runs").recipe
    text = json.loads(fingerprint.said(recipe, {"npedit", "guard", "sampling"}))
    assert text["npedit"].keys() == EditPhaseConfig.model_fields.keys()
    assert text["npedit"]["redraw_steps"] == EditPhaseConfig.model_fields["redraw_steps"].default
    assert text["guard"].keys() == GuardConfig.model_fields.keys()
    assert text["sampling"].keys() == SamplingConfig.model_fields.keys()


def test_cards_and_hidden_files_are_no_part_of_a_model(tmp_path: Path) -> None:
    folder = models(tmp_path)["base"]
    before, whole = model_digest(folder), folder_digest(folder)
    (folder / "README.md").write_text("Another card.")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "when").write_text("now")
    assert model_digest(folder) == before
    assert folder_digest(folder) != whole
    (folder / "config.json").write_text("{}")
    assert model_digest(folder) != before


def test_a_model_file_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = models(tmp_path)["base"]

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match=r"model\.safetensors.*Permission denied"):
        model_digest(folder)
