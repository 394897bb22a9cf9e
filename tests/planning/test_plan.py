"""Plans against what training really takes, and the values they are made of."""

import io
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from nopair.backbones.load import load_backbone
from nopair.config import load_recipe
from nopair.errors import ConfigError, ModelError
from nopair.judges.load import load_judge
from nopair.judges.vision_language import VisionLanguageJudge
from nopair.planning.architecture import architecture, published
from nopair.planning.bases import shape_backbone
from nopair.planning.cards import CARDS, throughput
from nopair.planning.judges import shape_judge
from nopair.planning.ledger import ATTENTION
from nopair.planning.packed import PackedLinear
from nopair.planning.plan import BACKWARD, EIGHT_BIT, GIB, RESERVE, Plan, StagePlan, plan
from nopair.planning.rehearsal import FAKE, GRADIENTS, GRPO, SAMPLES, STUDENT, VISITING, WARMUP
from nopair.planning.table import print_plan
from nopair.training.run import Training, compose
from nopair.weights import resolve

SHORT = [
    "threads=1",
    "warmup.steps=4",
    "warmup.batch=8",
    "npedit.steps=4",
    "npedit.batch=8",
    "logging.sample_scenes=4",
    "logging.every=1",
    "npedit.optimiser=adamw",
    "warmup.optimiser=adamw",
]
VARIANTS = {
    "full": [],
    "muon": ["npedit.optimiser=muon"],
    "adapters": ["base.roles=lora"],
    "recomputed": ["base.roles=lora", "base.checkpointing=true", "judge.checkpointing=true"],
    "in pieces": ["npedit.accumulate=2"],
    "half": ["base.roles=lora", "base.dtype=bfloat16", "judge.dtype=bfloat16"],
    "offloaded": ["judge.offload=true"],
    "vocabulary": ["npedit.judge_loss=vocabulary"],
    "context": ["npedit.context=unedited"],
    "redrawn": ["npedit.redraw_weight=1.0", "npedit.redraw_context=unedited"],
    "estimate": ["warmup.target=estimate"],
    "rewards": ["grpo.steps=4", "grpo.batch=2", "grpo.group=4"],
}


QUICK = [VARIANTS["recomputed"], VARIANTS["rewards"]]


def tensors(value: object) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for one in value.values() for tensor in tensors(one))
    elif isinstance(value, list | tuple):
        yield from (tensor for one in value for tensor in tensors(one))


def standing_bytes(training: Training) -> int:
    """Of weights, averages and moments: what is there between two steps."""
    roles, backbone = training.roles, training.backbone
    modules = [value for value in vars(backbone).values() if isinstance(value, nn.Module)]
    modules += [role.transformer for role in (roles.student, roles.teacher, roles.fake)]
    if isinstance(training.judge, VisionLanguageJudge):  # an offloaded one has nothing there between two steps
        modules.append(training.judge.model)
    held = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    held += [tensor for phase in training.phases if phase.is_open for tensor in tensors(phase.state())]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in held}
    return sum(storages.values())


def peak_beyond(work: Callable[[], object]) -> int:
    """The most bytes allocated at once during `work`, less those from before, as torch's profiler has it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("overrides", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_plan_is_within_a_tenth_of_a_measured_step(overrides: list[str]) -> None:
    if overrides not in QUICK and not os.environ.get("TEST_PLANS"):
        pytest.skip("plans of all variants take minutes; TEST_PLANS=1 makes them")
    recipe = load_recipe("demo", [*SHORT, *overrides])
    planned = plan(recipe, device="cpu", switches=False)
    training = compose(recipe)
    stages_of = {"warmup": [WARMUP], "grpo": [GRPO], "npedit": [STUDENT, FAKE]}
    for phase in training.phases:
        phase.begin()
        phase.step(0)
        before = standing_bytes(training)
        measured = before + peak_beyond(lambda phase=phase: phase.step(1))
        expected = max(stage.peak_bytes for stage in planned.stages if stage.name in stages_of[phase.name])
        assert expected == pytest.approx(measured, rel=0.1)
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            phase.step(2)
        assert planned.step_flops[phase.name] == pytest.approx(counter.get_total_flops(), rel=0.02)
        phase.end()


SEEN = ("bystander={path: 'tiny:judge-64'}",)


@pytest.fixture(scope="module")
def demo() -> Plan:
    return plan(load_recipe("demo", SHORT), switches=False)


def test_a_plan_names_every_owner(demo: Plan) -> None:
    stages = {stage.name: stage for stage in demo.stages}
    assert list(stages) == [WARMUP, STUDENT, FAKE, SAMPLES]
    owners = set(stages[STUDENT].owners)
    for name in ("student", "teacher", "fake score", "VAE", "judge", "text encoder"):
        assert f"weights: {name}" in owners
    assert {"EMA", "optimiser state", "judge", "student", "VAE"} <= owners
    assert any(GRADIENTS in stage.owners for stage in demo.stages)
    weights = demo.parameters["transformer"]
    assert demo.trainable == {"student": weights, "fake score": weights}
    assert stages[STUDENT].owners["weights: student"] == pytest.approx(4 * weights, rel=0.01)
    assert stages[STUDENT].owners["optimiser state"] == pytest.approx(2 * 8 * weights, rel=0.01), "warm-up's is gone"
    assert stages[STUDENT].owners["EMA"] == pytest.approx(4 * weights, rel=0.01)
    assert stages[WARMUP].owners["optimiser state"] == pytest.approx(8 * weights, rel=0.01)
    assert stages[WARMUP].owners["EMA"] == pytest.approx(4 * weights, rel=0.01)
    assert demo.peak_bytes == max(stage.peak_bytes for stage in demo.stages)


def test_every_stage_has_the_moments_of_its_own_optimiser() -> None:
    """Moments are 8 bytes a weight, those in 8 bits a little more than 2; the fake score has as many."""

    def moments(*overrides: str) -> dict[str, float]:
        few = ["warmup.batch=1", "npedit.batch=1", "logging.sample_scenes=1"]
        made = plan(load_recipe("demo", [*SHORT, *few, *overrides]), switches=False)
        weights = made.trainable["student"]
        return {stage.name: stage.owners["optimiser state"] / weights for stage in made.stages}

    small = 8 * EIGHT_BIT
    assert moments("warmup.optimiser=adamw", "npedit.optimiser=adamw8bit") == pytest.approx(
        {WARMUP: 8, STUDENT: 2 * small, FAKE: 2 * small, SAMPLES: 2 * small}, rel=0.01
    )
    assert moments("warmup.optimiser=adamw8bit", "npedit.optimiser=adamw", "npedit.steps=0") == pytest.approx(
        {WARMUP: small, SAMPLES: small}, rel=0.01
    )


def test_a_loss_over_the_whole_vocabulary_is_planned_where_it_can_be_trained() -> None:
    vocabulary = [*SHORT, "npedit.judge_loss=vocabulary", "base.roles=lora"]
    for offload in ("false", "true"):
        found = plan(load_recipe("demo", [*vocabulary, f"judge.offload={offload}"]), switches=False)
        (student,) = [stage for stage in found.stages if stage.name == STUDENT]
        assert student.flops["judge"] > 0
    with pytest.raises(ConfigError, match="needs a single vision-language model"):
        plan(load_recipe("demo", [*vocabulary, "ensemble=[{path: tiny:judge}]"]), switches=False)


def test_an_offloaded_judge_is_there_only_when_it_is_asked() -> None:
    common = [*SHORT, "logging.samples_every=0", "base.roles=lora", "base.checkpointing=true"]
    kept, away = (
        plan(
            load_recipe(
                "demo", [*common, f"judge.offload={value}", f"ensemble=[{{path: tiny:judge, offload: {value}}}]"]
            ),
            switches=False,
        )
        for value in ("false", "true")
    )
    assert away.parameters == kept.parameters
    before, after = ({stage.name: stage for stage in one.stages} for one in (kept, away))
    judges = [f"weights: {name}" for name in ("judge", "judge 2")]
    for name in (WARMUP, FAKE):
        assert all(before[name].owners[judge] > 0 for judge in judges)
        gone = [before[name].owners[judge] - after[name].owners[judge] for judge in judges]
        assert gone == pytest.approx([before[name].owners[judge] for judge in judges], rel=0.01), "all but buffers"
        assert before[name].peak_bytes - after[name].peak_bytes == sum(gone)
    visiting = [name for name in after[STUDENT].owners if name.startswith(VISITING)]
    assert len(visiting) == 1, "the worst moment is a judge's, and the other one is away"
    assert away.step_flops["npedit"] > kept.step_flops["npedit"], "asked twice"


def test_an_offloaded_judge_is_away_while_all_weights_are_moved() -> None:
    little = ["npedit.batch=1", "base.checkpointing=true", "judge.checkpointing=true"]
    small = [*SHORT, *little, "npedit.questions=[edit]", "logging.samples_every=0"]
    peaks = []
    for offload in ("false", "true"):
        planned = plan(load_recipe("demo", [*small, f"judge.offload={offload}"]), switches=False)
        (student,) = [stage for stage in planned.stages if stage.name == STUDENT]
        assert "VAE" not in student.owners, "the worst moment is that of the optimiser"
        peaks.append(student.peak_bytes)
    judge = sum(parameter.nbytes for parameter in load_judge(resolve("tiny:judge")).model.parameters())
    assert peaks[0] - peaks[1] == pytest.approx(judge, rel=0.01)


@pytest.mark.skipif(
    not os.environ.get("TEST_PLANS"), reason="a plan for every switch takes minutes; TEST_PLANS=1 makes them"
)
def test_switches_say_what_they_would_change() -> None:
    demo = plan(load_recipe("demo", SHORT), switches=True)
    found = {one.changes[0]: one for one in demo.switches}
    assert found["base.roles=lora"].peak_bytes < demo.peak_bytes
    assert found["base.checkpointing=true"].peak_bytes < demo.peak_bytes
    assert found["base.checkpointing=true"].flops > demo.step_flops["npedit"]
    assert found["warmup.optimiser=adamw8bit"].peak_bytes < demo.peak_bytes
    assert found["npedit.accumulate=2"].peak_bytes < demo.peak_bytes
    assert found["npedit.accumulate=2"].flops == pytest.approx(demo.step_flops["npedit"], rel=0.01)
    assert found["data.cache=cache"].peak_bytes < demo.peak_bytes
    assert not any(name.startswith("base.bits") for name in found)  # weights that are trained are not quantised


def test_fake_steps_and_pieces_are_counted_in_full() -> None:
    def flops(*overrides: str) -> dict[str, int]:
        made = plan(load_recipe("demo", [*SHORT, *overrides]), switches=False)
        return {stage.name: stage.total_flops for stage in made.stages}

    one, many = flops("npedit.fake_steps=1"), flops("npedit.fake_steps=7")
    assert many[FAKE] == 7 * one[FAKE]
    assert many[STUDENT] == one[STUDENT]
    assert flops("npedit.accumulate=8")[STUDENT] == pytest.approx(one[STUDENT], rel=0.02)


def test_fine_tuning_is_not_left_out_in_silence() -> None:
    with pytest.raises(ConfigError, match=r"sft\.steps=0"):
        plan(load_recipe("demo", ["sft.steps=1"]), switches=False)


def test_a_step_of_rewards_is_planned_whole() -> None:
    def stage(*overrides: str) -> StagePlan:
        found = plan(load_recipe("demo", [*SHORT, "grpo.steps=1", "grpo.batch=4", *overrides]), switches=False)
        assert found.step_flops["grpo"] > 0
        return next(stage for stage in found.stages if stage.name == GRPO)

    one, pieces, twice = stage(), stage("grpo.accumulate=2"), stage("grpo.updates=2", "grpo.kl_weight=0.0")
    assert pieces.total_flops == pytest.approx(one.total_flops, rel=0.02)
    assert pieces.peak_bytes < one.peak_bytes
    bare = stage("grpo.kl_weight=0.0")
    assert twice.flops[BACKWARD] == 2 * bare.flops[BACKWARD]
    assert "teacher" not in one.flops


def test_fresh_samples_for_the_fake_score_are_counted() -> None:
    """Each of its two steps has the student's calls over again."""

    def stages(samples: str) -> tuple[StagePlan, StagePlan]:
        settings = [f"npedit.fake_samples={samples}", "npedit.fake_steps=2", "npedit.batch=2"]
        found = plan(load_recipe("demo", settings), switches=False)
        student, fake = (next(stage for stage in found.stages if stage.name == name) for name in (STUDENT, FAKE))
        return student, fake

    (student, reused), (again, fresh) = stages("reused"), stages("fresh")
    assert student.flops == again.flops
    assert "student" not in reused.flops
    assert fresh.flops["student"] == 2 * student.flops["student"]


def test_the_largest_bucket_is_planned_and_every_bucket_is_tried() -> None:
    def stages(*overrides: str) -> dict[str, StagePlan]:
        photos = ["data={source: photos, path: nowhere, height: 64, width: 64}", "base.roles=lora", *overrides]
        return {one.name: one for one in plan(load_recipe("demo", [*SHORT, *photos]), switches=False).stages}

    mixed = stages("data.buckets=[[64, 128], [128, 96], [32, 32]]")
    large, small = stages("data.height=128", "data.width=96"), stages()
    for name in (WARMUP, STUDENT, FAKE):
        assert (mixed[name].owners, mixed[name].flops) == (large[name].owners, large[name].flops)
    assert mixed[SAMPLES].flops == small[SAMPLES].flops
    with pytest.raises(ConfigError, match="image size 64x100"):
        stages("data.buckets=[[64, 100]]")


def test_the_host_memory_of_an_export_is_that_of_the_base_read_again(demo: Plan) -> None:
    """Whatever of it was quantised or dropped in training; of full roles the student is beside it."""
    base: Any = load_backbone(resolve("tiny:base"))

    def count(*parts: nn.Module) -> int:
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    whole = count(base.transformer, base.vae, base.text_encoder)

    def exported(*overrides: str) -> Plan:
        return plan(load_recipe("demo", [*SHORT, "warmup.steps=0", *overrides]), switches=False)

    small = ["base.roles=lora", "base.dtype=bfloat16", "base.bits=4", "data.cache=cache"]
    assert exported(*small).export_bytes == 2 * whole
    assert exported("data.cache=cache").export_bytes == 4 * (whole + count(base.transformer))
    assert demo.export_bytes == 4 * count(base.transformer)
    console = Console(file=io.StringIO(), width=200)
    print_plan(exported(*small), None, console)
    assert "host memory at export: 0.01 GiB" in console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_disk_that_a_cache_takes_is_planned(demo: Plan, tmp_path: Path) -> None:
    """Where no photo and no words come twice, which is nearly so in the shapes world."""
    assert demo.cache_bytes == 0
    for captions in ([], ["npedit.negative_prompt=''", "npedit.preserve=everywhere", "npedit.redraw_weight=0.0"]):
        folder = tmp_path / str(len(captions))
        short = [*SHORT, "npedit.batch=6", "warmup.batch=4", "logging.sample_scenes=1", f"output={folder / 'run'}"]
        recipe = load_recipe("demo", [*short, f"data.cache={folder / 'cache'}", *captions])
        compose(recipe)
        written = sum(tensor.nbytes for path in folder.rglob("*.safetensors") for tensor in load_file(path).values())
        assert plan(recipe, switches=False).cache_bytes == pytest.approx(written, rel=0.15)


def test_what_the_library_never_quantises_is_planned_whole() -> None:
    """T5's `wo`, a fifth of its weights, which transformers leaves out by the model's own list."""
    [name] = [name for name in published() if "stable-diffusion-3.5" in name]
    backbone: Any = shape_backbone(architecture(name), torch.bfloat16, 4)
    layers = {name: one for name, one in backbone.text_encoder_3.named_modules() if isinstance(one, nn.Linear)}
    whole = {name for name, layer in layers.items() if not isinstance(layer, PackedLinear)}
    assert whole
    assert whole == {name for name in layers if name.endswith(".wo")}


def test_processes_share_a_batch() -> None:
    recipe = load_recipe("demo", SHORT)
    alone, shared = plan(recipe, switches=False), plan(recipe, ranks=4, switches=False)
    assert shared.peak_bytes < alone.peak_bytes
    assert shared.step_flops["npedit"] == pytest.approx(alone.step_flops["npedit"] / 4, rel=0.1)
    with pytest.raises(ConfigError, match="cannot be shared by 3 processes"):
        plan(recipe, ranks=3, switches=False)


def test_json_is_plain_and_has_the_peak(demo: Plan) -> None:
    found = json.loads(json.dumps(demo.as_json(throughput("h100", None, 0.5))))
    assert found["peak_gib"] == demo.peak_bytes / GIB
    assert found["stages"][STUDENT]["owners_gib"]["EMA"] > 0
    seconds = demo.step_flops["npedit"] / (CARDS["h100"].tflops * 1e12 * 0.5)
    assert found["estimated_step_seconds"]["npedit"] == pytest.approx(seconds)
    plain = demo.as_json()
    assert "estimated_step_seconds" not in plain
    assert "hours" not in plain


def test_the_whole_run_is_told(demo: Plan) -> None:
    """Of 4 steps of each phase, and of a plan by hand: 3600 steps of 2 s and 7200 of 3 s."""
    speed = throughput("h100", None, 0.5)
    assert speed is not None
    seconds = demo.as_json(speed)["estimated_step_seconds"]
    assert demo.as_json(speed)["hours"] == pytest.approx(4 * (seconds["warmup"] + seconds["npedit"]) / 3600)
    stages = StagePlan(WARMUP, {}, {"student": 10**12}), StagePlan(STUDENT, {}, {"student": 15 * 10**11})
    made = Plan("x", 1, {}, {}, stages, (), {"warmup": 3600, "grpo": 5, "npedit": 7200})
    console = Console(file=io.StringIO(), width=200)
    print_plan(made, throughput(None, 1.0, 0.5), console)
    printed = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "whole run: 3,600 warmup + 7,200 npedit steps, about 8.0 h at 50% of 1 TFLOP/s (a guess)" in printed
    print_plan(made, None, other := Console(file=io.StringIO(), width=200))
    assert "whole run" not in other.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_reserve_is_left_alone() -> None:
    full = Plan("x", 1, {}, {}, (StagePlan("s", {"a": int(24 * GIB * (1 - RESERVE))}, {}),), (), {})
    assert full.fits(24.0)
    assert not full.fits(23.9)


def test_speeds_that_make_no_sense_are_refused() -> None:
    assert throughput(None, None) is None
    assert throughput("h100", None) == throughput("h100", None, 0.35)
    cards = (("h100", 3.0, 0.3), ("abacus", None, 0.3), ("h100", None, 1.5), ("h100", None, math.nan))
    speeds = ((None, speed, 0.3) for speed in (-1.0, math.nan, math.inf, None))
    for card, tflops, efficiency in (*cards, *speeds):
        with pytest.raises(ConfigError):
            throughput(card, tflops, efficiency)


@pytest.mark.parametrize("name", published())
def test_published_architectures_have_the_published_numbers_of_parameters(name: str) -> None:
    found = architecture(name)
    is_base = "model_index.json" in found.configs
    overrides = [f"base.path={name}"] if is_base else [f"judge.path={name}"]
    if is_base:
        backbone = vars(shape_backbone(found, torch.bfloat16))
        counts = {part: backbone[part] for part in found.parameters}
    else:
        recipe = load_recipe("demo", overrides)
        counts = {"judge": shape_judge(found, recipe.judge).model}
    for part, module in counts.items():
        made = sum(parameter.numel() for parameter in module.parameters())
        assert made == pytest.approx(found.parameters[part], rel=0.01), part


@pytest.mark.parametrize(("bits", "block", "scale"), [(4, 64, 1 + 4 / 256), (8, None, 4)])
def test_a_quantised_judge_holds_the_bytes_that_loading_makes(bits: int, block: int | None, scale: float) -> None:
    """Of `nopair.precision.quantisation`: NF4 with quantised scales, or int8 with a float32 for each row."""
    recipe = load_recipe("demo", [f"judge.bits={bits}", "judge.dtype=bfloat16"])
    made, plain = (
        shape_judge(architecture("tiny:judge"), config).model
        for config in (recipe.judge, recipe.judge.model_copy(update={"bits": None}))
    )

    def held(module: nn.Module) -> int:
        return sum(one.nbytes for one in (*module.parameters(), *module.buffers()))

    layers = [plain.get_submodule(name) for name, one in made.named_modules() if isinstance(one, PackedLinear)]
    assert layers
    weights = [layer.get_parameter("weight") for layer in layers]
    scales = sum(one.numel() / block if block else len(one) for one in weights)
    saved = sum(one.nbytes - one.numel() * bits / 8 for one in weights) - scale * scales
    assert held(plain) - held(made) == pytest.approx(saved, rel=0.002)


def test_judges_are_planned_whichever_version_saved_their_processor(
    tmp_path: Path, sibling: Callable[[str], ModuleType]
) -> None:
    cases = sibling("judges/families.py").CASES
    for family in cases:
        folder = tmp_path / family
        cases[family].save(folder)
        config = load_recipe("demo", [f"judge.path={folder}"]).judge
        old = shape_judge(architecture(str(folder)), config).family
        alone = folder / "preprocessor_config.json"
        settings = json.loads(alone.read_text())
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
        alone.unlink()
        template = (folder / "chat_template.jinja").read_text()
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        (folder / "chat_template.jinja").unlink()
        for found in (shape_judge(architecture(str(folder)), config).family, load_judge(folder).family):
            assert found.image_tokens(40, 56) == old.image_tokens(40, 56)
            assert found.marks == old.marks
        (folder / "processor_config.json").write_text("{}")
        with pytest.raises(ModelError, match=r"preprocessor_config\.json: cannot be read"):
            shape_judge(architecture(str(folder)), config)


def test_an_unknown_model_is_one_line() -> None:
    with pytest.raises(
        ModelError, match=r"nobody/nothing: no such model folder, and none of the models known: .*Z-Image"
    ) as told:
        architecture("nobody/nothing")
    assert str(told.value).endswith(
        "; or download its config files: run: hf download nobody/nothing --include '*.json' '*.jinja' '*.txt' "
        "--local-dir FOLDER, and give FOLDER instead (a gated model needs hf auth login first)"
    )
    with pytest.raises(ModelError, match=r"models known: .*; check the path$"):
        architecture("a/longer/path")


def test_broken_configs_are_one_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("model")
    recipe = load_recipe("demo", [f"base.path={folder}"])
    with pytest.raises(ModelError, match=r"model_index.json: cannot be read"):
        plan(recipe, switches=False)
    (folder / "model_index.json").write_text('{"_class_name": "OtherPipeline"}')
    with pytest.raises(ModelError, match="holds a OtherPipeline; nopair knows"):
        plan(recipe, switches=False)
    (folder / "model_index.json").write_text('{"_class_name": "ZImagePipeline"}')
    with pytest.raises(ModelError, match="cannot be read"):
        plan(recipe, switches=False)


def test_a_bystander_is_asked_at_recorded_steps_alone() -> None:
    alone, *seen = (
        plan(load_recipe("demo", [*SHORT, *more]), switches=False).step_flops["npedit"]
        for more in ([], *([*SEEN, f"logging.every={every}"] for every in (1, 4)))
    )
    assert seen[0] - alone == pytest.approx(4 * (seen[1] - alone), rel=1e-6)
    assert seen[1] > alone


def test_photos_are_planned_with_the_guidance_that_asks_the_teacher_twice() -> None:
    photos = "data={source: photos, path: x, height: 64, width: 64}"
    found = [
        plan(load_recipe("demo", [*SHORT, photos, f"npedit.guidance={scales}"]), switches=False).step_flops["npedit"]
        for scales in ("{default: 4}", "{default: 4, replace: 1}", "{default: 1, add: 4}", "{default: 1}")
    ]
    assert found[0] == found[1] == found[2] > found[3]
