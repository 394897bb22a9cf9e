"""Any base under any judge: tiny random models of every family train, save, resume, export and edit."""

import json
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

import nopair.training.run as run_module
from nopair import precision as precision_module
from nopair.backbones.folder import NEVER_QUANTISED
from nopair.backbones.load import load_backbone
from nopair.config import Recipe, load_recipe
from nopair.editor import Editor
from nopair.errors import ConfigError, DataError, MissingExtraError, ModelError
from nopair.exchange import export_editor
from nopair.judges.questions import questions_for
from nopair.settings import path_override
from nopair.training.run import EDITOR, compose, train

BASES = ("zimage", "flux2", "sd3", "qwen_image")
JUDGES = ("idefics3", "internvl", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "smolvlm")
SHORT = [
    "threads=1",
    "warmup.steps=1",
    "warmup.batch=2",
    "npedit.steps=2",
    "npedit.batch=2",
    "logging.samples_every=0",
    "logging.sample_scenes=1",
    "logging.every=1",
    "checkpoint.every=1",
    "checkpoint.keep=9",
]
ADAPTERS = {
    "sd3": ["base.lora.targets=[to_q, to_v, pos_embed.proj]", "base.lora.ranks={pos_embed.proj: 64}"],
}
LORA = ["base.roles=lora", "base.lora.rank=8"]


@pytest.fixture(scope="module")
def models(tiny_bases: Path, tmp_path_factory: pytest.TempPathFactory, sibling: Callable[[str], ModuleType]) -> Path:
    """A folder with one of each family: `bases/NAME` and `judges/NAME`."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "bases").symlink_to(tiny_bases)
    families = sibling("judges/families.py")
    for name in JUDGES:
        families.CASES[name].save(folder / "judges" / name)
    return folder


def recipe(models: Path, base: str, judge: str, output: Path, *overrides: str) -> Recipe:
    paths = [
        path_override("base.path", models / "bases" / base),
        path_override("judge.path", models / "judges" / judge),
        path_override("output", output),
    ]
    return load_recipe("demo", [*SHORT, *paths, *overrides])


def step(recipe: Recipe) -> dict[str, float]:
    """The first step without pairs."""
    phase = compose(recipe).npedit
    phase.begin()
    return phase.step(0)


def adapters_of(base: str) -> list[str]:
    return [*LORA, *ADAPTERS.get(base, ["base.lora.targets=[to_q, to_v]"])]


def weights(editor: Editor) -> dict[str, torch.Tensor]:
    return dict(editor.backbone.transformer.state_dict())


def pairs() -> list[tuple[str, str, str]]:
    """Base, judge, roles: both ways of playing the three roles with every base and every judge, and each base under one
    and the same judge in both ways.
    """
    ways = ("full", "lora")
    each = [
        (base, judge, ways[(number + other) % 2])
        for number, base in enumerate(BASES)
        for other, judge in enumerate(JUDGES)
    ]
    return each + [(base, JUDGES[0], ways[(number + 1) % 2]) for number, base in enumerate(BASES)]


@pytest.mark.parametrize(("base", "judge", "roles"), pairs())
def test_trains_saves_resumes_exports_and_edits(
    base: str, judge: str, roles: str, models: Path, tmp_path: Path
) -> None:
    run = recipe(models, base, judge, tmp_path / "run", *(adapters_of(base) if roles == "lora" else []))
    train(run, resume=False)
    whole = Editor.load(tmp_path / "run" / EDITOR)
    start = compose(run).editor()
    moved = [name for name, value in weights(whole).items() if not torch.equal(value, weights(start)[name])]
    assert moved
    assert all(value.isfinite().all() for value in weights(whole).values())

    (tmp_path / "run" / "checkpoints" / "checkpoint-3").rename(tmp_path / "lost")
    train(run, resume=True)
    resumed = Editor.load(tmp_path / "run" / EDITOR)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())

    photos = torch.rand(2, 3, 64, 64)
    edited = resumed.edit(photos, ["make it blue", "remove the red circle"], [1, 2])
    assert edited.shape == photos.shape
    assert edited.isfinite().all()
    assert edited.std() > 0

    export_editor(tmp_path / "run" / EDITOR, tmp_path / "copy", "fp32")
    copy = Editor.load(tmp_path / "copy")
    assert copy.settings == resumed.settings
    assert torch.equal(copy.edit(photos, ["make it blue", "remove the red circle"], [1, 2]), edited)


def test_judges_together_and_one_that_only_watches(models: Path, tmp_path: Path) -> None:
    two = ["internvl", "smolvlm"]
    ensemble = [f"ensemble=[{{path: '{models / 'judges' / name}', weight: 2.0}}]" for name in two[1:]]
    watched = recipe(
        models, "zimage", two[0], tmp_path / "run", *ensemble, f"bystander.path='{models / 'judges' / 'qwen3_vl'}'"
    )
    first = step(watched)
    assert {"judge_edit", "bystander_edit"} <= first.keys()
    alone = step(watched.model_copy(update={"bystander": None}))
    assert alone == {name: value for name, value in first.items() if not name.startswith("bystander")}
    single = step(watched.model_copy(update={"bystander": None, "ensemble": ()}))
    assert single["judge"] != alone["judge"]


def test_judges_that_are_offloaded_teach_the_same(models: Path, tmp_path: Path) -> None:
    others = {name: f"'{models / 'judges' / name}'" for name in ("smolvlm", "qwen3_vl")}
    steps = []
    for offload in ("false", "true"):
        run = recipe(
            models,
            "zimage",
            "internvl",
            tmp_path / "run",
            f"judge.offload={offload}",
            f"ensemble=[{{path: {others['smolvlm']}, offload: {offload}}}]",
            f"bystander={{path: {others['qwen3_vl']}, offload: {offload}}}",
        )
        phase = compose(run).npedit
        phase.begin()
        steps.append([phase.step(index) for index in range(2)])
    assert steps[0] == steps[1]


def test_an_offloaded_judge_comes_to_its_device(far: ModuleType, models: Path, tmp_path: Path) -> None:
    """Without gradient: that device cannot make new numbers in a backward pass."""
    run = recipe(models, "zimage", "qwen2_5_vl", tmp_path / "run", "judge.offload=true")
    before, after = torch.rand(2, 1, 3, 64, 64)
    asked = [questions_for("add", "add a hat", "hat")]
    expected = compose(run).judge.yes_minus_no(before, after, asked)
    with far.far_device() as device, torch.no_grad():
        odds = compose(run, device).judge.yes_minus_no(before.to(device), after.to(device), asked)
        torch.testing.assert_close(odds.cpu(), expected)


@pytest.mark.parametrize(("base", "judge"), list(zip((*BASES, *BASES[:2]), JUDGES, strict=True)))
def test_every_family_keeps_to_its_device(far: ModuleType, models: Path, tmp_path: Path, base: str, judge: str) -> None:
    """A step as on the CPU, on a device that refuses to be mixed with it; then its state, and an edit."""
    cache = [path_override("data.cache", tmp_path / "cache")] if judge == JUDGES[-1] else []
    run = recipe(models, base, judge, tmp_path, "npedit.batch=1", "npedit.fake_steps=1", "sampling.steps=1", *cache)
    expected = step(run)
    with far.far_device() as device:
        training = compose(run, device)
        phase = training.npedit
        phase.begin()
        assert phase.step(0) == pytest.approx(expected, rel=1e-3, abs=1e-4)
        phase.load_state(phase.state())
        photos = torch.rand(1, 3, 64, 64)
        asked = [questions_for("add", "add a hat", "hat")]
        # As an evaluation does: images on the CPU in, results there out.
        assert training.editor().edit(photos, ["add a hat"], [1]).device == photos.device
        assert training.judge.yes_minus_no(photos, photos, asked).device == photos.device


def test_models_in_each_others_place_are_told_apart(models: Path, tmp_path: Path) -> None:
    judge, base = models / "judges" / "internvl", models / "bases" / "flux2"
    with pytest.raises(ModelError, match="it may be a judge"):
        compose(recipe(models, str(judge), "internvl", tmp_path))
    with pytest.raises(ModelError, match="it is a base or an editor"):
        compose(recipe(models, "zimage", str(base), tmp_path))


def test_photos_of_ones_own_at_another_size(models: Path, tmp_path: Path) -> None:
    lines = []
    for number in range(2):
        Image.new("RGB", (70, 50 + number), (90 * number, 30, 60)).save(tmp_path / f"{number}.png")
        line = {"image": f"{number}.png", "instruction": "add a hat", "caption": "a cat", "category": "add"}
        lines.append(json.dumps(line | {"edited_caption": "a cat with a hat"}))
    (tmp_path / "photos.jsonl").write_text("\n".join(lines))
    data = f"data={{source: photos, path: '{tmp_path / 'photos.jsonl'}', height: 64, width: 96}}"
    train(recipe(models, "flux2", "smolvlm", tmp_path / "run", data), resume=False)
    settings = Editor.load(tmp_path / "run" / EDITOR).settings
    assert (settings.height, settings.width) == (64, 96)
    with pytest.raises(ConfigError, match="65x96"):
        compose(recipe(models, "flux2", "smolvlm", tmp_path / "run", data, "data.height=65"))


@pytest.mark.parametrize("base", BASES)
def test_every_base_trains_on_photos_of_two_sizes_and_edits_at_the_first(
    base: str, models: Path, photos_of_two_sizes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(load_backbone(models / "bases" / base))
    encode, seen = kind.encode_image, set()

    def recorded(self: Any, pixels: torch.Tensor) -> torch.Tensor:
        seen.add((phase.name, *pixels.shape[2:]))
        return encode(self, pixels)

    monkeypatch.setattr(kind, "encode_image", recorded)
    data = f"data={{source: photos, path: '{photos_of_two_sizes}', height: 64, width: 64, buckets: [[80, 48]]}}"
    training = compose(recipe(models, base, "smolvlm", tmp_path / "run", *adapters_of(base), data))
    before = [value.detach().clone() for value in training.roles.trainable("student").values()]
    for phase in (training.warmup, training.npedit):
        phase.begin()
        for step in (0, 3):  # one of each size
            assert all(isfinite(value) for value in phase.step(step).values())
    assert seen == {(name, *size) for name in ("warmup", "npedit") for size in ((64, 64), (80, 48))}
    after = list(training.roles.trainable("student").values())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    photo = torch.rand(1, 3, 64, 64)
    assert training.editor().edit(photo, ["add a hat"], [0]).isfinite().all()


def after_a_step(run: Recipe) -> tuple[dict[str, float], dict[str, torch.Tensor], int]:
    """Metrics, the student's weights after its first step, and the bytes that were kept for backward passes."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    training = compose(run)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        training.npedit.begin()
        metrics = training.npedit.step(0)
    return metrics, {name: value.detach() for name, value in training.roles.trainable("student").items()}, kept


@pytest.mark.parametrize(("base", "judge"), [*zip(BASES, JUDGES, strict=False), ("zimage", "smolvlm")])
def test_recomputing_activations_keeps_less_and_changes_nothing(
    base: str, judge: str, models: Path, tmp_path: Path
) -> None:
    run = recipe(models, base, judge, tmp_path, *adapters_of(base), "npedit.fake_steps=1")
    metrics, trained, kept = after_a_step(run)
    for part in ("base", "judge"):
        small = run.model_copy(update={part: getattr(run, part).model_copy(update={"checkpointing": True})})
        same_metrics, same, less = after_a_step(small)
        assert less < 0.95 * kept, part
        assert same_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-6)
        for name, value in trained.items():
            torch.testing.assert_close(same[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_a_frozen_base_in_half_precision_trains_adapters_in_full(base: str, models: Path, tmp_path: Path) -> None:
    half = ["base.dtype=bfloat16", "judge.dtype=bfloat16"]
    run = recipe(models, base, "smolvlm", tmp_path / "run", *adapters_of(base), *half)
    train(run, resume=False)
    training = compose(run)
    assert {value.dtype for value in training.roles.trainable("student").values()} == {torch.float32}
    assert training.backbone.transformer.dtype == torch.bfloat16  # pyright: ignore
    before, after = weights(training.editor()), weights(Editor.load(tmp_path / "run" / EDITOR, dtype=torch.bfloat16))
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.isfinite().all() for value in after.values())


def test_an_adapter_that_cannot_see_the_reference_is_refused(models: Path, tmp_path: Path) -> None:
    both = "base.lora.targets=[proj, pos_embed.proj]"  # the feed-forward layers have a `proj`, too
    refused = (
        ["base.lora.targets=[to_q]"],
        ["base.lora.targets=[to_q, pos_embed.proj]"],
        ["base.lora.targets=[proj]", "base.lora.ranks={proj: 4}"],
        [both, "base.lora.ranks={proj: 64, pos_embed.proj: 4}"],
    )
    for adapters in refused:
        with pytest.raises(ConfigError, match=r"set base\.lora\.ranks=\{pos_embed\.proj: \d+\}"):
            compose(recipe(models, "sd3", "smolvlm", tmp_path, *LORA, *adapters))
    training = compose(
        recipe(models, "sd3", "smolvlm", tmp_path, *LORA, both, "base.lora.ranks={proj: 2, pos_embed.proj: 16}")
    )
    trained = training.roles.trainable("student")
    assert {len(value) for name, value in trained.items() if name.endswith("proj.lora_A.weight")} == {2, 16}
    assert len(trained["pos_embed.proj.lora_A.weight"]) == 16
    with pytest.raises(ConfigError, match="not among the targets"):
        recipe(models, "sd3", "smolvlm", tmp_path, "base.lora.ranks={proj: 4}")


def test_what_does_not_go_together_is_told(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in ("base.dtype=bfloat16", "base.bits=4"):
        with pytest.raises(ConfigError, match="need roles: lora"):
            recipe(models, "zimage", "smolvlm", tmp_path, one)
    quantised = recipe(models, "zimage", "smolvlm", tmp_path, *LORA, "base.bits=4")
    small = recipe(models, "zimage", "smolvlm", tmp_path, "npedit.optimiser=adamw8bit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision_module.importlib.util, "find_spec", lambda _name: None)
    for wanting in (quantised, small):
        with pytest.raises(MissingExtraError, match=r"nopair\[quant\]"):
            compose(wanting)
    monkeypatch.setattr(precision_module.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ModelError, match=r"in 4 bits .*set bits to null on this machine"):
        compose(quantised)


@pytest.mark.parametrize(
    ("base", "output"), [*((name, "proj_out") for name in BASES[1:]), ("zimage", "all_final_layer")]
)
def test_the_output_matrix_of_a_base_is_never_quantised(base: str, output: str, models: Path) -> None:
    """By the library's rule for names, which skips a module that is named, and all that is in it."""
    transformer = load_backbone(models / "bases" / base).transformer
    matrices = [name for name, part in transformer.named_modules() if isinstance(part, torch.nn.Linear)]
    skipped = {name for name in matrices if any(f"{one}." in name or one == name for one in NEVER_QUANTISED)}
    assert skipped == {name for name in matrices if name.split(".")[0] == output}
    assert skipped


def test_a_quantised_base_exports_onto_the_base_as_it_is(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for a quantised base is one whose weights are rounded to few bits."""
    plain = recipe(models, "zimage", "smolvlm", tmp_path, *adapters_of("zimage"))
    quantised = plain.model_copy(update={"base": plain.base.model_copy(update={"bits": 4})})

    def load(folder: Path, dtype: torch.dtype, bits: int | None = None) -> Any:
        backbone = load_backbone(folder, dtype)
        if bits is not None:
            for parameter in backbone.transformer.parameters():
                parameter.data = (parameter.data * 8).round() / 8
        return backbone

    monkeypatch.setattr(run_module, "load_backbone", load)
    trainings = [compose(quantised), compose(plain)]
    for training in trainings:
        source = torch.Generator().manual_seed(0)
        for value in training.roles.trainable("student").values():
            value.data = 0.2 * torch.randn(value.shape, generator=source)
    exported, original = (weights(training.warm_editor()) for training in trainings)
    untouched = load_backbone(models / "bases" / "zimage").transformer.state_dict()
    assert any(not torch.equal(value, untouched[name]) for name, value in exported.items())
    assert all(torch.equal(value, original[name]) for name, value in exported.items())


@pytest.mark.parametrize("base", BASES)
def test_in_pieces_of_one_sample_what_was_encoded_before_trains_the_same_bits(
    base: str, models: Path, tmp_path: Path
) -> None:
    """The store encodes one by one, so nothing is left that rounds in another way."""
    ones = ["warmup.accumulate=2", "npedit.accumulate=2"]
    plain = recipe(models, base, "smolvlm", tmp_path / "plain", *adapters_of(base), *ones)
    cache = path_override("data.cache", tmp_path / "cache")
    cached = recipe(models, base, "smolvlm", tmp_path / "cached", *adapters_of(base), *ones, cache)
    for run in (plain, cached):
        train(run, resume=False)
    first, second = (weights(Editor.load(tmp_path / name / EDITOR)) for name in ("plain", "cached"))
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], value) for name, value in first.items())


@pytest.mark.parametrize("base", BASES)
def test_what_was_encoded_before_trains_the_same_student(base: str, models: Path, tmp_path: Path) -> None:
    plain = recipe(models, base, "smolvlm", tmp_path / "plain", *adapters_of(base))
    cache = path_override("data.cache", tmp_path / "cache")
    cached = recipe(models, base, "smolvlm", tmp_path / "cached", *adapters_of(base), cache)
    for run in (plain, cached):
        train(run, resume=False)
    first, second = Editor.load(tmp_path / "plain" / EDITOR), Editor.load(tmp_path / "cached" / EDITOR)
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(second)[name], value, rtol=1e-3, atol=1e-4)
    photo = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(
        first.edit(photo, ["make it blue"], [0]), second.edit(photo, ["make it blue"], [0]), atol=0.02, rtol=0
    )

    entries = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len({entry.parent.parent for entry in entries}) == 1
    training = compose(cached)
    assert not list(training.backbone.text_encoder.parameters())  # pyright: ignore
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == entries  # nothing is made again
    for entry in entries:
        entry.write_bytes(b"cut")
    training.npedit.begin()
    with pytest.raises(DataError, match=r"damaged .*; delete it"):
        training.npedit.step(0)
