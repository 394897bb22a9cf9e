"""Studies: what they are made of, that runs are done once and continued, and what they add up to."""

import dataclasses
import datetime
import io
import json
import multiprocessing
import operator
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nopair.config import Recipe
from nopair.editor import read_settings
from nopair.errors import ConfigError, Interrupted, ModelError, OutputError, TrainingError
from nopair.evaluation.studies import command, crew, judges, run
from nopair.evaluation.studies.catalogue import STUDIES
from nopair.evaluation.studies.design import FULL, QUICK, Scale, Study, Variant
from nopair.evaluation.studies.origin import machine, version
from nopair.evaluation.studies.report import chart, markdown, render_study
from nopair.evaluation.studies.results import sum_up
from nopair.evaluation.studies.run import Job, read_result, run_job
from nopair.training import checkpoint, loop
from nopair.training.signals import StopRequest
from nopair.types import Question

SHORT = ("warmup.batch=2", "npedit.batch=2", "npedit.fake_steps=1")
STUDY = Study("mini", "Does it run?", "No claim.", (Variant("plain"), Variant("one & <two>", (), (1, 2))), SHORT)
SCALE = Scale((0,), 1, most_steps=1)


def make_job(root: Path, variant: Variant = STUDY.variants[1], seed: int = 0) -> Job:
    return Job(STUDY, variant, seed, SCALE, root, threads=1)


def put(job: Job, marks: list[dict[str, Any]], failed: str | None = None, fingerprint: str = "", **others: Any) -> None:
    job.folder.mkdir(parents=True)
    text = {"variant": job.variant.name, "seed": job.seed, "fingerprint": fingerprint, "updates": 1}
    origin = {"machine": "a machine", "version": "0.1.0", "date": "2026-11-26", "processor_seconds": 4.0}
    result = {**text, "failed": failed, "marks": marks, "seconds": 10.0 + job.seed, **origin, **others}
    (job.folder / "result.json").write_text(json.dumps(result))


def marks(value: float, steps: int = 4) -> dict[str, Any]:
    scores = dict.fromkeys(("success", "preservation", "realism", "overall", "judge_edit", "judge_identity"), value)
    return {"steps": steps, **scores, "categories": {}}


def test_variants_need_names_of_their_own() -> None:
    for variants in ((), (Variant("a"), Variant("a"))):
        with pytest.raises(ValueError, match="names"):
            Study("x", "?", "!", variants)


@pytest.mark.parametrize("scale", [FULL, QUICK])
def test_every_run_of_every_study_is_a_valid_recipe_with_a_folder_of_its_own(tmp_path: Path, scale: Scale) -> None:
    jobs = [
        Job(study, v, seed, scale, tmp_path) for study in STUDIES.values() for v in study.variants for seed in (0, 1)
    ]
    prints = {(job.study.name, job.variant.name, job.seed): job.fingerprint for job in jobs}
    assert len({job.folder for job in jobs}) == len(jobs) == len(prints)
    for study in STUDIES.values():
        own = [value for (name, _, _), value in prints.items() if name == study.name]
        assert scale is QUICK or len(set(own)) == len(own), "two variants of a study are one"


def test_a_quick_run_is_short_in_every_phase_and_leaves_out_what_the_variant_does(tmp_path: Path) -> None:
    for study in STUDIES.values():
        for variant in study.variants:
            quick, full = (Job(study, variant, 0, scale, tmp_path).recipe for scale in (QUICK, FULL))
            for name in ("warmup", "sft", "grpo", "npedit"):
                assert getattr(quick, name).steps == min(3, getattr(full, name).steps)


def test_runs_that_warm_up_alike_share_a_start(tmp_path: Path) -> None:
    def start(study: str, variant: int, seed: int) -> Path | None:
        return Job(STUDIES[study], STUDIES[study].variants[variant], seed, FULL, tmp_path).start

    assert start("objective", 0, 0) == start("objective", 2, 0) == start("fake-steps", 1, 0)
    assert start("objective", 0, 0) != start("objective", 0, 1)
    assert start("warmup", 0, 0) != start("warmup", 2, 0)
    assert start("warmup", 1, 0) is None


def test_a_start_from_estimates_is_shared_where_the_teacher_is_asked_alike(tmp_path: Path) -> None:
    study, estimates = STUDIES["first-sight"], STUDIES["first-sight"].variants[1]
    elsewhere = Variant("elsewhere", (*estimates.overrides, "npedit.preserve_width=0.3"))
    starts = [Job(study, variant, 0, FULL, tmp_path).start for variant in (*study.variants[1:], elsewhere)]
    assert len(set(starts[:-1])) == 1
    assert starts[-1] != starts[0], "another width of Eq. 22 gives other estimates"
    idle = [Variant("idle", (*v.overrides, "npedit.steps=0")) for v in (estimates, elsewhere)]
    assert len({Job(study, variant, 0, FULL, tmp_path).fingerprint for variant in idle}) == 2


def test_a_run_is_done_once_scored_at_all_steps_and_leaves_no_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, console = make_job(tmp_path), Console(quiet=True)
    assert not job.done()
    run_job(job, console)
    assert job.start is not None
    assert read_settings(job.start).judges == (), "it has only learnt to copy"
    result = read_result(job.folder)
    assert [row["steps"] for row in result["marks"]] == [1, 2]
    assert set(result["marks"][0]["categories"]) >= {"recolour", "nothing"}
    assert result["seconds"] > 0
    assert 0 < result["processor_seconds"] < 600
    assert result["machine"] == machine("cpu")
    assert result["version"] == version()
    assert datetime.date.fromisoformat(result["date"])
    assert not (job.folder / "training" / "checkpoints").exists()
    assert job.done()
    monkeypatch.setattr(run, "compose", pytest.fail)
    run_job(job, console)
    more = dataclasses.replace(job, scale=dataclasses.replace(SCALE, per_category=2))
    assert not more.done(), "other scenes are another result"


def test_editors_are_scored_on_the_kinds_of_edit_that_the_study_is_about(tmp_path: Path) -> None:
    one, own = STUDY.variants[:1], (*SHORT, "data.categories=[free-form]")
    study = dataclasses.replace(STUDY, variants=one, overrides=own, categories=("free-form",), edit_factor=2)
    job = Job(study, study.variants[0], 0, SCALE, tmp_path, threads=1)
    run_job(job, Console(quiet=True))
    assert set(read_result(job.folder)["marks"][0]["categories"]) == {"free-form"}
    assert sum_up(study, [job], "x")["edits"] == 2
    others = (dataclasses.replace(study, categories=("add",)), dataclasses.replace(study, edit_factor=3))
    assert all(job.fingerprint != dataclasses.replace(job, study=other).fingerprint for other in others)


def test_editors_are_scored_by_the_judge_that_the_study_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which makes it another result, unless that is the judge they were trained under."""
    study = dataclasses.replace(STUDY, variants=STUDY.variants[:1], scorer="tiny:judge")
    job = Job(study, study.variants[0], 0, SCALE, tmp_path, threads=1)
    assert job.scorer is None
    assert job.fingerprint == make_job(tmp_path, study.variants[0]).fingerprint
    two = Variant("two", ("ensemble=[{path: tiny:judge}]",))
    assert dataclasses.replace(job, variant=two).scorer == "tiny:judge", "an ensemble is another judge than any of its"
    coarse = Variant("coarse", ("judge.dtype=bfloat16",))
    assert dataclasses.replace(job, variant=coarse).scorer == "tiny:judge", "the same weights, but not the same judge"
    none = dataclasses.replace(job, variant=two, study=dataclasses.replace(study, scorer=None))
    assert none.scorer is None
    assert none.fingerprint != dataclasses.replace(job, variant=two).fingerprint
    monkeypatch.setattr(run, "load_judge", lambda folder: Stubborn(folder.name))
    run_job(dataclasses.replace(job, variant=two), Console(quiet=True))
    assert [row["judge_edit"] for row in read_result(dataclasses.replace(job, variant=two).folder)["marks"]] == [1.0]


def test_a_judge_that_cannot_score_is_told_before_training(tmp_path: Path) -> None:
    study = dataclasses.replace(STUDY, variants=STUDY.variants[:1], scorer=str(tmp_path / "nowhere"))
    job = Job(study, study.variants[0], 0, SCALE, tmp_path, threads=1)
    with pytest.raises(ModelError, match="nowhere"):
        run_job(job, Console(quiet=True))
    assert not Path(job.recipe.output).exists()


class Stubborn:
    """Finds every edit done, and nothing else kept."""

    def __init__(self, name: str) -> None:
        assert name == "judge"

    def to(self, device: str) -> "Stubborn":
        return self

    def yes_minus_no(self, reference: Any, edited: Any, questions: list[list[Question]]) -> torch.Tensor:
        rows = [[1.0 if (q.kind == "edit") == q.wants_yes else -1.0 for q in row] for row in questions]
        longest = max(map(len, rows))
        return torch.tensor([row + [0.0] * (longest - len(row)) for row in rows])


def test_judges_are_audited_once_each_and_shown_beside_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Variant("small", ("judge.path=tiny:judge-32",))
    both = Variant("both", ("ensemble=[{path: tiny:judge-32}]",))
    study = dataclasses.replace(STUDY, variants=(STUDY.variants[0], small, both), audited=True)
    jobs = [Job(study, variant, seed, SCALE, tmp_path) for variant in study.variants for seed in (0, 1)]
    assert len({judges.audit_file(job) for job in jobs}) == 3
    for job in jobs:
        put(job, [marks(0.5)], fingerprint=job.fingerprint)
    ran: list[str] = []
    monkeypatch.setattr(crew, "_run", lambda jobs, target, *_: [target(job) for job in jobs])
    monkeypatch.setattr(crew, "_alone", lambda job, work: (ran.append(work.__name__), work(job, Console(quiet=True))))
    crew.run_all(jobs, 1, Console(quiet=True))
    assert ran == ["audit_judge"] * 3, "six runs under three judges"
    found = sum_up(study, jobs, "x")
    audits = [one["audit"] for one in found["configurations"]]
    assert [audit["cases"] for audit in audits] == [90, 90, 90]
    assert len({audit["cosine"] for audit in audits}) == 3, "an ensemble is audited as one judge, not as its first"
    assert all(0.5 < audit["edit_accuracy"] <= 1 and -1 <= audit["cosine"] <= 1 for audit in audits)
    assert [len(table.columns) for table in command._tables(found)] == [7, 6]
    text, page = markdown(found), render_study(found)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert f"| {audits[1]['edit_accuracy']:.3f} |" in rows[3]
    assert f"<td>{audits[1]['cosine']:.3f}</td>" in page
    monkeypatch.setattr(judges, "compose", pytest.fail)
    crew.run_all(jobs, 1, Console(quiet=True))
    judges.audit_file(jobs[0]).write_text("{")
    with pytest.raises(OutputError, match="remove it"):
        sum_up(study, jobs, "x")


def test_a_run_that_another_study_has_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a phase that has no steps make no other run of it; another seed does."""
    other = dataclasses.replace(STUDY, name="other", overrides=(*SHORT, "sft.pairs=7"))
    first, twin = make_job(tmp_path), Job(other, Variant("renamed", (), (1, 2)), 0, SCALE, tmp_path, threads=1)
    put(first, [marks(0.5)], fingerprint=first.fingerprint)
    monkeypatch.setattr(run, "compose", pytest.fail)
    (elsewhere := dataclasses.replace(twin, study=dataclasses.replace(other, name="third"))).folder.mkdir(parents=True)
    run_job(elsewhere, Console(quiet=True))
    told = io.StringIO()
    crew.run_all([twin], 1, Console(file=told, width=200))
    assert told.getvalue().strip() == "1 runs, 1 of them done before", "and nothing is warmed up for it"
    for job in (twin, elsewhere):
        assert read_result(job.folder) == read_result(first.folder) | {"variant": "renamed"}
        assert job.done()
    monkeypatch.undo()
    for another in (
        dataclasses.replace(twin, seed=1),
        dataclasses.replace(twin, variant=Variant("longer", ("sft.steps=1",), (1, 2))),
    ):
        assert run._twin(another, another.fingerprint) is None


def test_training_that_breaks_down_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path)

    def break_down(*args: Any, **others: Any) -> None:
        raise TrainingError("loss is nan")

    monkeypatch.setattr(run, "warm_up", lambda job, console: None)
    monkeypatch.setattr(run, "_started", lambda job: job.recipe)
    monkeypatch.setattr(run, "run_phases", break_down)
    run_job(job, Console(quiet=True))
    assert read_result(job.folder)["failed"] == "loss is nan"
    assert job.done()


def test_a_broken_result_is_told(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.folder.mkdir(parents=True)
    for text in ('{"fingerprint": ', "{}", "[]", "null", '"fingerprint"'):
        (job.folder / "result.json").write_text(text)
        for other in (job, dataclasses.replace(job, study=dataclasses.replace(STUDY, name="other"))):
            with pytest.raises(OutputError, match="remove it"):
                run.known(other)


def test_a_place_for_studies_that_is_none_is_told_before_any_run_begins(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot create this folder"):
        crew.run_all([make_job(tmp_path / "file")], 1, Console(quiet=True))


def test_runs_that_share_a_start_warm_up_by_one_recipe_so_each_goes_on_where_another_stopped(tmp_path: Path) -> None:
    jobs = [Job(study, variant, 0, FULL, tmp_path) for study in STUDIES.values() for variant in study.variants]
    recipes: dict[Path, Recipe] = {}
    for job in jobs:
        if job.start is not None:
            found = run._warming(job.recipe, tmp_path)
            assert recipes.setdefault(job.start, found) == found
    assert 1 < len(recipes) < len(jobs)


@pytest.mark.parametrize("name", ["supervision", "ensemble", "first-sight"])
def test_that_recipe_warms_up_to_the_same_bits_as_the_runs_own(tmp_path: Path, name: str) -> None:
    job = Job(STUDIES[name], STUDIES[name].variants[-1], 0, QUICK, tmp_path, threads=1)
    weights = []
    for recipe in (job.recipe, run._warming(job.recipe, tmp_path)):
        training = run.compose(recipe)
        training.warmup.begin()
        for step in range(2):
            training.warmup.step(step)
        weights.append(dict(training.warmup.weights()))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_run_that_cannot_be_done_stops_the_study_and_names_its_log(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    job = make_job(tmp_path, Variant("lost", (f"base.path={tmp_path / 'empty'}",)))
    with pytest.raises(TrainingError, match=r"seed 0.*log\.txt"):
        crew.run_all([job], 2, Console(quiet=True))
    assert str(tmp_path / "empty") in (job.folder / "log.txt").read_text()


def test_a_model_that_is_not_there_is_told_before_any_run_begins(tmp_path: Path) -> None:
    job = make_job(tmp_path, Variant("lost", ("base.path=/nowhere",)))
    with pytest.raises(ModelError, match="/nowhere"):
        crew.run_all([job], 2, Console(quiet=True))
    assert not job.folder.exists()


def test_what_nobody_expected_is_in_the_log(tmp_path: Path) -> None:
    """In a process of its own, as runs are."""
    job = make_job(tmp_path, STUDY.variants[0])
    process = multiprocessing.get_context("spawn").Process(target=crew._alone, args=(job, operator.add))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert "TypeError: unsupported operand" in (job.folder / crew.LOG).read_text()


def test_a_run_that_was_begun_under_another_recipe_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, STUDY.variants[0])
    resumed: list[str | None] = []

    def stopped(phases: object, *, resume: str | None, directory: Path, **_: object) -> None:
        resumed.append(resume)
        (directory / "checkpoints" / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        (directory / "checkpoints" / "checkpoint-1" / "checkpoint.json").write_text("{}")
        raise Interrupted(143)

    monkeypatch.setattr(run, "run_phases", stopped)
    monkeypatch.setattr(run, "warm_up", lambda *_: None)
    monkeypatch.setattr(run, "_started", lambda job: job.recipe)
    monkeypatch.setattr(checkpoint, "newest_total", lambda root: 1 if root.exists() else None)
    other = dataclasses.replace(job, study=dataclasses.replace(STUDY, overrides=(*SHORT, "npedit.lr=1e-5")))
    for one in (job, job, other, other):
        with pytest.raises(Interrupted):
            run_job(one, Console(quiet=True))
    assert resumed == [None, "latest", None, "latest"]


@pytest.mark.parametrize("warmed", [0, 1])
def test_a_stopped_run_says_how_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], warmed: int
) -> None:
    job = make_job(tmp_path, Variant("plain", (f"warmup.steps={warmed}",)))
    monkeypatch.setattr(loop, "stop_on_signals", lambda: nullcontext(StopRequest(signal.SIGINT)))
    with pytest.raises(Interrupted):
        run_job(job, Console())
    said = capsys.readouterr().out
    assert f"stopped after {('npedit', 'warmup')[warmed]} step 1; everything is saved, the same command goes" in said
    assert "--resume" not in said


def test_an_unknown_study_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="objective"):
        command.study(command.Request("objectives", None, True, 1, tmp_path, "cpu"))


@settings(max_examples=25)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=4), failures=st.integers(0, 2))
def test_means_and_spreads_are_over_the_seeds_that_did_not_fail(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], failures: int
) -> None:
    root = tmp_path_factory.mktemp("studies")
    study = dataclasses.replace(STUDY, variants=STUDY.variants[:1])
    jobs = [make_job(root, study.variants[0], seed) for seed in range(len(values) + failures)]
    for job, value in zip(jobs, values, strict=False):
        put(job, [marks(value)])
    for job in jobs[len(values) :]:
        put(job, [], "diverged")
    (found,) = sum_up(study, jobs, "nopair study mini")["configurations"]
    assert found["failed"] == failures
    assert found["success"] == pytest.approx(sum(values) / len(values))
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5 if len(values) > 1 else 0.0
    assert found["spread"]["overall"] == pytest.approx(spread, abs=1e-9)
    assert found["seeds"] == list(range(len(jobs)))


def test_where_and_when_runs_were_made_is_told_of_each_and_of_all(tmp_path: Path) -> None:
    """Not where and when they were summed up."""
    study = dataclasses.replace(STUDY, variants=STUDY.variants[:1])
    jobs = [make_job(tmp_path, study.variants[0], seed) for seed in range(3)]
    put(jobs[0], [marks(0.5)], machine="one", date="2026-11-28", version="1", processor_seconds=2.0)
    put(jobs[1], [marks(0.5)], machine="two", date="2026-11-25", version="1", processor_seconds=4.0)
    put(jobs[2], [], "diverged", machine="one", date="2026-11-26", version="2")
    found = sum_up(study, jobs, "nopair study mini")
    assert (found["machine"], found["date"], found["version"]) == ("one; two", "2026-11-25 to 2026-11-28", "1; 2")
    (one,) = found["configurations"]
    assert [(run["machine"], run["date"], run["seconds"], run["processor_seconds"]) for run in one["runs"]] == [
        ("one", "2026-11-28", 10.0, 2.0),
        ("two", "2026-11-25", 11.0, 4.0),
    ]
    assert (one["seconds"], one["processor_seconds"]) == (10.5, 3.0)
    assert "| 1 | 10 | 3 |" in markdown(found)
    assert "2026-11-25 to 2026-11-28, one; two;" in markdown(found)
    assert "one; two" in render_study(found)
    assert "| 1 | 10 |\n" in markdown(without_processor_seconds(found)), "as the oldest results are"


def without_processor_seconds(found: dict[str, Any]) -> dict[str, Any]:
    rows = [{key: value for key, value in one.items() if key != "processor_seconds"} for one in found["configurations"]]
    return found | {"configurations": rows}


def test_what_is_shown_has_every_configuration_escaped(tmp_path: Path) -> None:
    plain, other = STUDY.variants
    jobs = [make_job(tmp_path, variant, seed) for variant in (plain, other) for seed in (0, 1)]
    for job in jobs[:2]:
        put(job, [], "diverged")
    for job, value in zip(jobs[2:], (0.25, 0.75), strict=True):
        put(job, [marks(value, 1), marks(value / 2, 2)])
    found = sum_up(STUDY, jobs, "nopair study mini")
    assert [one["name"] for one in found["configurations"]] == ["plain", "one & <two>, 1 step", "one & <two>, 2 steps"]
    page, text = render_study(found), markdown(found)
    assert "<two>" not in page
    assert "one &amp; &lt;two&gt;, 1 step" in page
    assert chart("success", found).count("<circle") == 2 * 3  # two seeds and a mean for each that has any
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "0.500 ± 0.354" in text
    assert "plain (2 of 2 seeds failed) | –" in text
    json.dumps(found, allow_nan=False)
