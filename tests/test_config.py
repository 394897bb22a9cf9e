"""A recipe is complete, strict and frozen, survives a round trip, and every mistake in one is one clear line."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from nopair.config import JudgeConfig, Recipe, WarmupConfig, load_recipe, parse_recipe, recipe_names
from nopair.config_data import PhotoDataConfig
from nopair.errors import ConfigError
from nopair.settings import Section, dump, path_override
from nopair.world.edits import ALL_CATEGORIES

MINIMAL = """
name: golden
output: runs/golden
base: {path: tiny:base}
judge: {path: tiny:judge}
data: {source: world}
warmup: {steps: 10, batch: 4, lr: 1e-4}
npedit: {steps: 20, batch: 4, lr: 2e-5, fake_lr: 1e-4}
"""

GOLDEN = """\
name: golden
seed: 0
output: runs/golden
threads: null
logging:
  every: 10
  samples_every: 100
  sample_scenes: 8
checkpoint:
  every: 100
  keep: 2
base:
  path: tiny:base
  student: null
  roles: full
  lora:
    rank: 16
    alpha: 16.0
    targets:
    - to_q
    - to_k
    - to_v
    - to_out.0
    ranks: {}
  dtype: float32
  bits: null
  checkpointing: false
  compile: false
judge:
  path: tiny:judge
  weight: 1.0
  dtype: float32
  bits: null
  checkpointing: false
  offload: false
ensemble: []
bystander: null
data:
  source: world
  seed: 0
  nothing_share: 0.01
  categories: null
  captions: complete
  limit: null
  cache: null
sampling:
  steps: 4
  shift: null
warmup:
  steps: 10
  batch: 4
  accumulate: 1
  optimiser: adamw
  lr: 0.0001
  betas:
  - 0.9
  - 0.999
  weight_decay: 0.0
  clip: 1.0
  ema: 0.999
  lr_warmup_steps: 0
  lr_final_fraction: 1.0
  target: reference
sft:
  steps: 0
  batch: 16
  accumulate: 1
  optimiser: adamw
  lr: 0.0001
  betas:
  - 0.9
  - 0.999
  weight_decay: 0.0
  clip: 1.0
  ema: 0.999
  lr_warmup_steps: 0
  lr_final_fraction: 1.0
  pairs: 1000
grpo:
  steps: 0
  batch: 4
  accumulate: 1
  optimiser: adamw
  lr: 1.0e-05
  betas:
  - 0.9
  - 0.999
  weight_decay: 0.0
  clip: 1.0
  ema: 0.999
  lr_warmup_steps: 0
  lr_final_fraction: 1.0
  group: 8
  policy: renoise
  noise: 0.7
  moves: 2
  updates: 1
  clip_range: 0.0001
  kl_weight: 0.01
  advantage_limit: 5.0
  std: group
npedit:
  steps: 20
  batch: 4
  accumulate: 1
  optimiser: adamw
  lr: 2.0e-05
  betas:
  - 0.9
  - 0.999
  weight_decay: 0.0
  clip: 1.0
  ema: 0.999
  lr_warmup_steps: 0
  lr_final_fraction: 1.0
  fake_lr: 0.0001
  fake_steps: 3
  fake_samples: reused
  judge_weight: 0.05
  dmd_weight: 1.0
  reference_weight: 0.0
  preservation_weight: 0.0
  preserve: everywhere
  preserve_time:
    default: 0.75
  preserve_width: 0.15
  context: none
  redraw_weight: 0.0
  redraw_context: none
  redraw_low: 0.3
  redraw_high: 0.7
  redraw_steps: 2
  judge_loss: binary
  questions:
  - edit
  - identity
  inverted: []
  unroll: two-step
  guidance:
    default: 3.0
  guidance_final_fraction: 1.0
  normaliser: per_sample
  query_low: 0.02
  query_high: 0.98
  query_shift: 1.0
  temperature_start: 0.1
  temperature_ramp: 0
  negative_prompt: ''
guard:
  max_grad_norm_spike: 300.0
  max_skipped: 10
"""


def complaint(*overrides: str, text: str | bytes = MINIMAL) -> str:
    """The message of the ConfigError that parsing must raise; always one line."""
    with pytest.raises(ConfigError) as caught:
        parse_recipe(text, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_golden() -> None:
    assert dump(parse_recipe(MINIMAL)) == GOLDEN


def test_a_recipe_cannot_be_changed() -> None:
    recipe = parse_recipe(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.name = "other"
    with pytest.raises(ValidationError, match="frozen"):
        recipe.npedit.lr = 1.0


def test_every_field_says_what_it_is() -> None:
    def undescribed(section: type[Section]) -> Iterator[str]:
        for name, field in section.model_fields.items():
            if not field.description or "\n" in field.description:
                yield f"{section.__name__}.{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                yield from undescribed(field.annotation)

    assert not list(undescribed(Recipe))


# Round trips ----------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
tricky = st.sampled_from(
    ["1e-4", "no", "null", "~", "1:30", "0x1f", "010", "2026-01-01", "<<", "=", "a: b", "#", " ", "1_0"]
)
positive = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


@given(
    name=texts | tricky,
    negative=texts | tricky,
    lr=positive,
    shift=st.none() | positive,
    beta=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63 - 1),
    guidance=st.dictionaries(st.sampled_from(ALL_CATEGORIES), st.floats(0, 1e9)),
    categories=st.none() | st.lists(st.sampled_from(ALL_CATEGORIES), min_size=1),
)
def test_round_trip(
    name: str,
    negative: str,
    lr: float,
    shift: float | None,
    beta: float,
    seed: int,
    guidance: dict[str, float],
    categories: list[str] | None,
) -> None:
    """No text is read back as a number, no number loses a bit."""
    tree = parse_recipe(MINIMAL).model_dump()
    tree |= {"name": name, "seed": seed}
    tree["npedit"] |= {"negative_prompt": negative, "lr": lr, "betas": (beta, 0.5)}
    tree["npedit"]["guidance"] = guidance | {"default": 1.0}
    tree["sampling"]["shift"] = shift
    tree["data"]["categories"] = None if categories is None else tuple(categories)
    recipe = Recipe.model_validate(tree)
    assert recipe.name == name
    assert parse_recipe(dump(recipe)) == recipe


def test_overrides_do_what_the_same_edit_of_the_file_does() -> None:
    edited = MINIMAL.replace("lr: 2e-5", "lr: 3.5e-6").replace("name: golden", "name: other")
    assert parse_recipe(MINIMAL, ["npedit.lr=3.5e-6", "name=other"]) == parse_recipe(edited)


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "+1e-4", "0.0001", ".0001", "1.e-4", "1.0e-4", "10e-5"])
def test_every_way_to_write_a_number(written: str) -> None:
    assert parse_recipe(MINIMAL, [f"npedit.lr={written}"]).npedit.lr == 1e-4


def test_overrides_of_lists_names_and_nothing() -> None:
    recipe = parse_recipe(
        MINIMAL,
        ["data.categories=[add, move]", "npedit.guidance.remove=7.5", "sampling.shift=6", "sampling.shift=null"],
    )
    assert recipe.data.categories == ("add", "move")
    assert recipe.npedit.guidance == {"default": 3.0, "remove": 7.5}
    assert recipe.sampling.shift is None
    assert parse_recipe(MINIMAL, ["name=a=b"]).name == "a=b"


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("npedit.lrr=1e-4", "npedit.lr"),
        ("npedit.normalizer=per_pixel", "npedit.normaliser"),
        ("warmpu.batch=3", "warmup.batch"),
        ("train.fake_lr=1e-4", "npedit.fake_lr"),
        ("fake_steps=2", "npedit.fake_steps"),
        ("base.lora.rnak=2", "base.lora.rank"),
        ("npedit.lr.x=1", "npedit.lr"),
        ("threds=2", "threads"),
        ("lr=1e-4", "warmup.lr or sft.lr or grpo.lr or npedit.lr"),
        ("npedit.learning_rate=1e-4", "npedit.lr"),
        ("warmup.batch_size=8", "warmup.batch"),
        ("a.b.keep=1", "checkpoint.keep"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, nearest: str) -> None:
    message = complaint(override)
    assert f"unknown key {override.partition('=')[0]}" in message
    assert message.endswith(f"did you mean {nearest}?")


def test_an_unknown_key_in_the_file_names_the_nearest() -> None:
    message = complaint(text=MINIMAL.replace("fake_lr", "fake_rate"))
    assert "unknown key npedit.fake_rate; did you mean npedit.fake_" in message
    assert "1 more problem" in message  # that fake_lr is missing


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("npedit.lr=fast", ["npedit.lr", "'fast'", "expected a number"]),
        ("npedit.lr='1e-4'", ["npedit.lr", "'1e-4'", "expected a number"]),
        ("npedit.lr=-1", ["npedit.lr", "-1", "more than 0"]),
        ("npedit.lr=.inf", ["npedit.lr", "inf", "finite"]),
        ("npedit.lr=1e999", ["npedit.lr", "inf", "finite"]),
        ("npedit.lr=true", ["npedit.lr", "True", "expected a number"]),
        ("npedit.lr=", ["npedit.lr", "None", "expected a number"]),
        ("npedit.ema=1", ["npedit.ema", "1", "less than 1"]),
        ("npedit=5", ["npedit", "5", "section"]),
        ("npedit.betas=[0.1]", ["npedit.betas.1", "missing"]),
        ("npedit.guidance=3", ["npedit.guidance", "3", "names with values"]),
        ("npedit.guidance={add: 1}", ["npedit", "default"]),
        ("npedit.guidance.ad=1", ["npedit.guidance", "'ad'", "add"]),
        ("npedit.guidance.add=-1", ["npedit.guidance.add", "-1", "at least 0"]),
        ("npedit.normaliser=per", ["npedit.normaliser", "'per'", "'per_sample' or 'per_pixel'"]),
        ("npedit.query_low=0.99", ["query_low 0.99", "query_high 0.98"]),
        ("npedit.redraw_low=0.9", ["redraw_low 0.9", "redraw_high 0.7"]),
        ("npedit.query_high=1", ["npedit.query_high", "1", "less than 1"]),
        ("warmup.steps=2.5", ["warmup.steps", "2.5", "whole number"]),
        ("warmup.steps=true", ["warmup.steps", "True", "whole number"]),
        ("warmup.steps=010", ["warmup.steps", "'010'", "whole number"]),
        ("warmup.accumulate=3", ["warmup", "batch 4", "accumulate=3"]),
        ("name=", ["name", "None", "text"]),
        ("name=''", ["name", "''", "some text"]),
        ("name=1", ["name", "1", "text"]),
        ("threads=0", ["threads", "0", "at least 1"]),
        ("data.categories=[recolor]", ["categories", "'recolor'", "recolour"]),
        ("data.categories=[]", ["data.categories", "[]", "at least 1"]),
        ("data.source=web", ["data.source", "'web'", "'world'", "'photos'"]),
        ("data.source=photos", ["data.path is missing"]),
        ("data=[]", ["data", "names with values"]),
        ("data={}", ["data", "source: world"]),
        ("data={source: photos, path: x, categories: [add]}", ["data.categories", "another data.source"]),
        ("judge.bits=3", ["judge.bits", "4 or 8"]),
        ("judge={path: tiny:judge, bits: 4, offload: true}", ["judge", "offload needs bits: null"]),
        ("ensemble=[{}]", ["ensemble.0.path is missing"]),
        ("bystander.weight=2", ["bystander.path is missing"]),
        ("base.roles=half", ["base.roles", "'half'", "'full' or 'lora'"]),
        ("seed=-1", ["seed", "-1", "at least 0"]),
        (f"seed={2**63}", ["seed", str(2**63), f"less than {2**63}"]),
        (f"data.seed={2**63}", ["data.seed", f"less than {2**63}"]),
        (f"data={{source: photos, path: x, seed: {2**63}}}", ["data.seed", f"less than {2**63}"]),
    ],
)
def test_a_wrong_value_says_key_value_and_what_was_expected(override: str, parts: list[str]) -> None:
    message = complaint(override)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ensemble.path=tiny:judge-2"], "ensemble is a list; give all of it, as ensemble=[...]"),
        (["ensemble.0.path=tiny:judge-2"], "ensemble is a list; give all of it, as ensemble=[...]"),
        (["npedit.betas.0=0.5"], "npedit.betas is a list; give all of it, as npedit.betas=[...]"),
        (["judge=tiny:judge", "judge.bits=4"], "judge is 'tiny:judge' and has no keys of its own"),
        (["bystander=tiny:judge-2", "bystander.dtype=bfloat16"], "bystander is 'tiny:judge-2' and has no keys"),
        (["npedit.guidance=3", "npedit.guidance.add=4"], "npedit.guidance is 3 and has no keys of its own"),
        (["base.lora=[]", "base.lora.ranks.x=4"], "base.lora is [] and has no keys of its own"),
        (["data={path: x}", "data.cache=y"], "data is {'path': 'x', 'cache': 'y'}, expected a section with source"),
        (["base={roles: lora}", "base.lora.rank=8"], "base.path is missing"),
    ],
)
def test_an_override_within_what_has_no_such_keys(overrides: list[str], message: str) -> None:
    assert message in complaint(*overrides)


def test_an_override_within_a_section_that_another_replaced() -> None:
    lora = parse_recipe(MINIMAL, ["base={path: x, roles: lora}", "base.lora.rank=8"]).base
    assert (lora.path, lora.lora.rank, lora.lora.alpha) == ("x", 8, 16.0)
    data = parse_recipe(MINIMAL, ["data={path: x}", "data.source=photos", "data.height=64"]).data
    assert data == PhotoDataConfig(source="photos", path="x", height=64)
    assert parse_recipe(MINIMAL, ["bystander=null", "bystander.path=x"]).bystander == JudgeConfig(path="x")


def test_an_unknown_key_in_a_list_names_the_nearest() -> None:
    assert complaint("ensemble=[{pth: x}]").startswith("recipe: unknown key ensemble.0.pth; did you mean ensemble.N.p")


@pytest.mark.parametrize("override", ["npedit.lr", "", "=3", "npedit.lr = [", "name=!!binary x", "seed=" + "9" * 5000])
def test_a_malformed_override(override: str) -> None:
    assert complaint(override).startswith("override ")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name: [1", "line 1, column 9"),
        ("name: a: b", "line 1, column 8"),
        ("name: a\nname: b", "line 2, column 1: the key 'name' is given twice"),
        ("a: {b: 1, b: 2}", "given twice"),
        ("- 1", "expected keys with values"),
        ("", "expected keys with values"),
        ("[" * 5_000, "not valid YAML"),
        (b"\xff\xfe\xfa", "not valid YAML"),
        ("x: \x00", "not valid YAML"),
        ("x: &a [*a]", "neither text, number, list nor section"),
        ("x: !!timestamp 2026-01-01", "neither text, number, list nor section"),
        ("x: !!python/object:os.system {}", "could not determine a constructor"),
        ("? [1]\n: 2", "unhashable"),
        ("name: golden", "output is missing (folder the run writes to)"),
    ],
)
def test_a_malformed_file(text: str | bytes, part: str) -> None:
    assert part in complaint(text=text)


@given(st.text())
def test_any_text_is_a_recipe_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_recipe(text)


@given(st.sampled_from([*yaml.safe_load(MINIMAL), "npedit.lr", "npedit.guidance", "npedit.negative_prompt"]), st.text())
def test_any_override_is_a_recipe_or_a_config_error(key: str, value: str) -> None:
    try:
        recipe = parse_recipe(MINIMAL, [f"{key}={value}"])
    except ConfigError:
        return
    assert parse_recipe(dump(recipe)) == recipe


def keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from keys(inner, f"{prefix}{name}.")


values = st.sampled_from(["1", "x", "null", "[]", "{}", "{path: x}", "[{path: x}]", "{roles: lora}", "photos", "true"])


@given(st.sampled_from([key for key in keys(Recipe) if "." in key]), st.tuples(values, values, values))
def test_any_overrides_within_another_are_a_recipe_or_a_config_error(key: str, given: tuple[str, str, str]) -> None:
    around = accumulate(key.split("."), "{}.{}".format)
    try:
        recipe = parse_recipe(MINIMAL, [f"{one}={value}" for one, value in zip(around, given, strict=False)])
    except ConfigError:
        return
    assert parse_recipe(dump(recipe)) == recipe


# Finding recipes ------------------------------------------------------------------------------------------------------


def test_every_shipped_recipe_is_valid() -> None:
    for name in recipe_names():
        assert isinstance(load_recipe(name), Recipe)


def test_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    assert load_recipe(path, ["seed=4"]) == load_recipe(str(path), ["seed=4"]) == parse_recipe(MINIMAL, ["seed=4"])


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL.replace("batch: 4", "batch: four"))
    with pytest.raises(ConfigError, match=r"mine\.yaml: warmup\.batch is 'four'"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "part"),
    [("missing.yaml", "No such file"), ("/", "Is a directory"), ("a\0/b", "null byte"), ("dmeo", "nearest: ")],
)
def test_a_recipe_that_is_not_there(name: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(name)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["plain", "it's", "a: b", "# no comment", "größe", "[1]", "~", "1e3", "  spaced "])
def test_a_path_override_keeps_any_path(name: str) -> None:
    assert load_recipe("demo", [path_override("output", Path(name))]).output == name


def test_adapters_are_not_compiled() -> None:
    with pytest.raises(ConfigError, match="compile needs roles: full"):
        load_recipe("demo", ["base.roles=lora", "base.compile=true"])


PHOTOS = "data={source: photos, path: photos}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sft.steps=5", PHOTOS], "sft.steps needs before/after pairs, which photos do not have"),
        (["sft.steps=5", "data.cache=somewhere"], "sft.steps cannot use data.cache"),
        (["grpo.steps=5", "grpo.moves=4"], "grpo.moves=4 must be below sampling.steps=4"),
        (["grpo.steps=5", "sampling.steps=1", "grpo.moves=1"], "grpo.moves=1 must be below sampling.steps=1"),
        (["grpo.steps=5", "npedit.questions=[]"], "grpo.steps needs npedit.questions"),
        (["grpo.steps=5", "npedit.inverted=[recolour]"], "leave npedit.inverted empty"),
        (["grpo.group=1"], "grpo.group is 1, expected at least 2"),
        (["grpo.clip_range=0.0"], "grpo.clip_range is 0.0"),
        (["grpo.policy=ode"], "'renoise' or 'sde'"),
        (["sft.pairs=0"], "sft.pairs is 0, expected at least 1"),
    ],
)
def test_impossible_baselines_are_refused(overrides: list[str], words: str) -> None:
    assert words in complaint(*overrides)


@pytest.mark.parametrize("key", ["guidance", "preserve_time"])
def test_a_category_that_there_is_not_is_refused(key: str) -> None:
    assert "backgruond" in complaint(f"npedit.{key}={{default: 0.75, backgruond: 0.5}}")
    assert parse_recipe(MINIMAL, [f"npedit.{key}={{default: 0.75, background: 0.5}}"])


@given(steps=st.integers(1, 5000), ema=st.floats(0, 0.9999))
def test_of_what_a_phase_begins_with_little_is_left_in_its_average(steps: int, ema: float) -> None:
    phase = WarmupConfig(steps=steps, batch=1, lr=1.0, ema=ema)
    left = phase.average_decay**steps
    assert left <= 0.125 + 1e-9
    assert phase.average_decay == ema if ema**steps <= 0.124 else left == pytest.approx(0.125)


def test_short_phases_of_shipped_recipes_average_as_they_say() -> None:
    """So no figure of theirs follows from the limit."""
    for name in recipe_names():
        recipe = load_recipe(name)
        for phase in (recipe.warmup, recipe.npedit):
            assert phase.average_decay == phase.ema, name


@given(
    judge=st.sampled_from([0, 0.05]),
    dmd=st.sampled_from([0, 1]),
    reference=st.sampled_from([0, 0.5]),
    preservation=st.sampled_from([0, 0.5]),
    questions=st.sampled_from(["[]", "[edit]", "[edit, identity]"]),
    steps=st.sampled_from([0, 5]),
)
def test_an_objective_has_a_term(
    judge: float, dmd: float, reference: float, preservation: float, questions: str, steps: int
) -> None:
    weights = {"judge_weight": judge, "dmd_weight": dmd, "reference_weight": reference}
    weights |= {"preservation_weight": preservation, "questions": questions, "steps": steps}
    overrides = [f"npedit.{key}={value}" for key, value in weights.items()]
    if dmd or reference or preservation or (judge and questions != "[]"):
        assert parse_recipe(MINIMAL, overrides).npedit.judge_weight == judge
    else:
        assert complaint(*overrides).startswith("recipe: npedit: nothing is left to learn from: give a weight above 0")


def test_baselines_that_are_left_out_refuse_nothing() -> None:
    assert parse_recipe(MINIMAL, [PHOTOS, "grpo.moves=9"]).sft.steps == 0


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_path_is_a_value_whatever_its_characters(name: str) -> None:
    assume("\0" not in name)
    path = Path("runs") / name
    assert load_recipe("demo", [path_override("output", path)]).output == str(path)


def test_a_path_that_no_recipe_can_hold_is_told() -> None:
    with pytest.raises(ConfigError, match=r"^output: the path 'runs/\\udcff' is not UTF-8 text"):
        path_override("output", Path("runs/\udcff"))


def test_a_single_share_can_be_changed() -> None:
    recipe = load_recipe("zimage-24gb", ["data.path=x", "data.shares={default: 1, remove: 2}", "data.shares.add=3"])
    assert isinstance(recipe.data, PhotoDataConfig)
    assert recipe.data.shares == {"default": 1, "remove": 2, "add": 3}
    assert load_recipe("zimage-24gb", ["data.path=x", "data.shares.add=3", "data.shares.default=1"]).data != recipe.data


def test_a_bystander_has_no_weight() -> None:
    for weight in (0, 0.5):
        with pytest.raises(ConfigError, match=r"bystander.weight says nothing"):
            load_recipe("demo", [f"bystander={{path: x, weight: {weight}}}"])
