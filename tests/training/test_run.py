"""The composition root with the shipped models: a few steps of the real thing, stopped and resumed."""

import json
import weakref
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from rich.console import Console
from safetensors.torch import load_file

from nopair.backbones.base import Backbone
from nopair.config import load_recipe
from nopair.editor import Editor
from nopair.errors import CheckpointError, ConfigError, ModelError, OutputError
from nopair.training.loop import run_phases
from nopair.training.parallel import ALONE
from nopair.training.run import ADAPTER, EDITOR, Training, _sources, compose, train
from nopair.weights import packaged, resolve
from nopair.world.cases import held_out_cases
from nopair.world.render import render_batch

SHORT = [
    "threads=1",
    "warmup.steps=2",
    "warmup.batch=2",
    "npedit.steps=2",
    "npedit.batch=2",
    "logging.sample_scenes=2",
    "logging.every=1",
    "checkpoint.every=1",
]


def run(directory: Path, *overrides: str, resume: bool = False) -> Editor:
    train(load_recipe("demo", [*SHORT, f"output={directory}", *overrides]), resume=resume)
    return Editor.load(directory / EDITOR)


def student(editor: Editor) -> dict[str, torch.Tensor]:
    return dict(editor.backbone.transformer.state_dict())


def phases(training: Training, directory: Path, resume: str | None = None) -> None:
    """Run them, without writing the editor."""
    run_phases(training.phases, recipe=training.recipe, directory=directory, resume=resume, console=Console(quiet=True))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from tensors(one)


def test_a_run_writes_an_editor_that_edits(tmp_path: Path) -> None:
    editor = run(tmp_path / "run")
    edits = held_out_cases(0, 1)[:3]
    out = editor.edit(render_batch([edit.source for edit in edits]), [edit.instruction for edit in edits], [1, 2, 3])
    assert out.shape == (3, 3, 64, 64)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 4
    assert list((tmp_path / "run" / "samples").glob("npedit-*.png"))


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = student(run(tmp_path / "whole"))
    run(tmp_path / "cut", "checkpoint.keep=9")
    newest = tmp_path / "cut" / "checkpoints" / "checkpoint-4"
    newest.rename(tmp_path / "lost")  # as if killed after the first step of the second phase
    resumed = student(run(tmp_path / "cut", resume=True))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


BASELINES = ("sft.steps=2", "sft.batch=2", "grpo.steps=1", "grpo.batch=1", "grpo.group=2", "grpo.moves=1")


def test_baselines_run_between_warmup_and_training_without_pairs(tmp_path: Path) -> None:
    run(tmp_path / "run", *BASELINES, "warmup.steps=1", "npedit.steps=1", "logging.samples_every=0")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["warmup", "sft", "sft", "grpo", "npedit"]


@pytest.mark.parametrize(
    ("overrides", "last"),
    [
        ((), "npedit"),
        (("npedit.steps=0",), "grpo"),
        (("npedit.steps=0", "grpo.steps=0"), "sft"),
        (("npedit.steps=0", "grpo.steps=0", "sft.steps=0"), "warmup"),
    ],
)
def test_the_editor_is_the_average_of_the_last_phase_with_steps(
    tmp_path: Path, overrides: tuple[str, ...], last: str
) -> None:
    training = compose(load_recipe("demo", [*SHORT, *BASELINES, "logging.samples_every=0", *overrides]))
    start = student(training.editor())
    phases(training, tmp_path)
    (phase,) = [phase for phase in training.phases if phase.is_open]
    assert phase.name == last
    found = student(training.editor())
    assert all(torch.equal(found[name], value) for name, value in phase.weights().items())
    assert any(not torch.equal(found[name], value) for name, value in start.items())


def test_an_editor_of_a_phase_that_was_complete_before_is_still_its_average(tmp_path: Path) -> None:
    """Also if the resumed recipe says that it has no steps any more."""
    settings = (*SHORT, "logging.samples_every=0")
    training = compose(load_recipe("demo", settings))
    phases(training, tmp_path)
    expected = student(training.editor())
    for steps in (2, 0):
        again = compose(load_recipe("demo", [*settings, f"npedit.steps={steps}"]))
        phases(again, tmp_path, resume="latest")
        assert all(torch.equal(value, expected[name]) for name, value in student(again.editor()).items())


def test_what_warmup_needed_is_gone_when_training_without_pairs_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = compose(load_recipe("demo", [*SHORT, "logging.samples_every=0", "npedit.steps=1"]))
    step, kept = training.npedit.step, list[weakref.ref[torch.Tensor]]()
    warm = training.warmup.step

    def warming(index: int) -> dict[str, float]:
        metrics = warm(index)
        moments = training.warmup.state()["student"]["step"]["optimiser"]
        kept.extend(weakref.ref(tensor) for tensor in tensors(moments))
        kept.extend(weakref.ref(tensor) for tensor in training.warmup.weights().values())
        return metrics

    def stepping(index: int) -> dict[str, float]:
        assert kept
        assert not any(one() is not None for one in kept)
        return step(index)

    monkeypatch.setattr(training.warmup, "step", warming)
    monkeypatch.setattr(training.npedit, "step", stepping)
    phases(training, tmp_path)
    assert training.npedit.is_open


def test_a_run_stopped_in_a_baseline_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = (*BASELINES, "npedit.steps=1", "warmup.steps=1", "grpo.steps=2", "checkpoint.keep=9")
    settings = (*settings, "logging.samples_every=0", "grpo.ema=0.5", "sft.ema=0.5")
    whole = student(run(tmp_path / "run", *settings))
    for number in (5, 6):  # as if killed after the first of the second baseline's steps
        (tmp_path / "run" / "checkpoints" / f"checkpoint-{number}").rename(tmp_path / f"lost-{number}")
    resumed = student(run(tmp_path / "run", *settings, resume=True))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_adapters_on_one_shared_base_train_too(tmp_path: Path) -> None:
    editor = run(tmp_path / "lora", "base.roles=lora", "base.lora.rank=4", *BASELINES)
    base = compose(load_recipe("demo", ["threads=1"])).backbone.transformer.state_dict()
    changed = {name for name, value in student(editor).items() if not torch.equal(value, base[name])}
    assert changed
    assert all(any(target in name for target in ("to_q", "to_k", "to_v", "to_out")) for name in changed)


def test_an_adapter_is_written_alone_besides_and_stock_diffusers_makes_the_editor_of_it(tmp_path: Path) -> None:
    """The average's, as the editor is, whatever the ranks."""
    lora = ["base.roles=lora", "base.lora.rank=4", "base.lora.alpha=6", "base.lora.ranks={to_v: 8}", "npedit.ema=0.5"]
    editor = student(run(tmp_path / "lora", *lora))
    stock: Any = ZImagePipeline.from_pretrained(packaged() / "base", dtype=torch.float32)
    stock.load_lora_weights(tmp_path / "lora" / ADAPTER)
    stock.fuse_lora()
    stock.unload_lora_weights()
    for name, value in stock.transformer.state_dict().items():
        torch.testing.assert_close(value, editor[name], atol=1e-6, rtol=1e-5)
    assert not (run(tmp_path / "full") and (tmp_path / "full" / ADAPTER).exists())


def test_photos_of_two_sizes_train_from_a_cache(photos_of_two_sizes: Path, tmp_path: Path) -> None:
    data = f"source: photos, path: '{photos_of_two_sizes}', height: 64, width: 64, buckets: [[80, 48]]"
    changes = ["warmup.batch=4", "npedit.guidance={default: 3.0}", f"data={{{data}, cache: '{tmp_path / 'cache'}'}}"]
    training = compose(load_recipe("demo", [*SHORT, *changes]))
    entries = [load_file(path) for path in tmp_path.rglob("*.safetensors")]
    encoded = {tuple(entry["latents"].shape[1:]) for entry in entries if "latents" in entry}
    assert len(encoded) == 2
    for phase in training.phases:
        phase.begin()
    metrics = [training.warmup.step(step) | training.npedit.step(step) for step in range(2)]
    assert all(isfinite(value) for step in metrics for value in step.values())


def test_a_student_starts_from_an_editor_and_its_teacher_from_the_base() -> None:
    training = compose(load_recipe("demo", ["threads=1", "base.student=tiny:editor"]))
    weights = {name: load(part) for name, part in (("student", "editor"), ("teacher", "base"), ("fake", "base"))}
    for role, expected in weights.items():
        found = getattr(training.roles, role).transformer.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def load(part: str) -> dict[str, torch.Tensor]:
    transformer = ZImageTransformer2DModel.from_pretrained(resolve(f"tiny:{part}") / "transformer")
    return dict(transformer.state_dict())


def test_a_student_of_another_architecture_is_refused(tmp_path: Path) -> None:
    config = dict(ZImageTransformer2DModel.load_config(resolve("tiny:base") / "transformer"))
    other = ZImageTransformer2DModel.from_config(config | {"n_layers": 1})
    other.save_pretrained(tmp_path / "editor" / "transformer")
    with pytest.raises(ModelError, match="does not fit the base"):
        compose(load_recipe("demo", ["threads=1", f"base.student={tmp_path / 'editor'}"]))
    (tmp_path / "editor" / "zimage.json").write_text('{"reference": "frames"}')
    with pytest.raises(ModelError, match="was trained with the reference as frames"):
        compose(load_recipe("demo", ["threads=1", f"base.student={tmp_path / 'editor'}"]))
    with pytest.raises(ConfigError, match="student needs roles: full"):
        load_recipe("demo", ["base.student=tiny:editor", "base.roles=lora"])


def test_bad_recipes_are_told_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key npedit\.learning_rate"):
        load_recipe("demo", ["npedit.learning_rate=1"])
    with pytest.raises(ModelError, match="nowhere"):
        compose(load_recipe("demo", [f"base.path={tmp_path / 'nowhere'}"]))


def test_a_forgotten_resume_is_told_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    monkeypatch.setattr("nopair.training.run.load_backbone", None)
    for resume, key, words in ((False, "seed=0", "add --resume latest"), (True, "npedit.lr=1.0", r"npedit\.lr is")):
        with pytest.raises(CheckpointError, match=words):
            run(tmp_path, key, resume=resume)


@pytest.mark.parametrize("name", [EDITOR, ADAPTER])
def test_a_place_that_cannot_take_the_result_is_told_before_training(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name}: is a file"):
        run(tmp_path, "base.roles=lora", "base.path=no/such/model")
    assert (tmp_path / name).read_text() == "mine"


def test_the_shipped_models_resolve() -> None:
    for part in ("base", "judge", "editor"):
        assert resolve(f"tiny:{part}").is_dir()


def test_compiling_reaches_every_role_and_does_not_leave_with_the_editor() -> None:
    training = compose(load_recipe("demo", ["threads=1", "base.compile=true"]))

    def compiled(backbone: Backbone) -> set[bool]:
        assert isinstance(backbone.transformer, ZImageTransformer2DModel)
        return {block._compiled_call_impl is not None for block in backbone.transformer.layers}

    roles = training.roles
    assert [compiled(role) for role in (roles.student, roles.teacher, roles.fake)] == [{True}] * 3
    assert compiled(training.warm_editor().backbone) == {False}


@pytest.mark.parametrize(("captions", "placed"), [("complete", True), ("placeless", False)])
def test_the_teacher_is_told_where_things_stand_or_not(captions: str, placed: bool) -> None:
    recipe = load_recipe("study", [f"data.captions={captions}"])
    for source in _sources(recipe, torch.device("cpu"), ALONE)[:2]:
        batch = source.batch(range(8))
        for told in (batch.captions, batch.edited_captions):
            assert any(" left" in text or " right" in text for text in told) == placed
