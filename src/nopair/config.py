"""A training run as one frozen value: what a recipe says, checked to the last key.

`load_recipe` reads a shipped recipe or a YAML file, applies dotted overrides (`npedit.lr=1e-4`) and returns a `Recipe`,
or raises `ConfigError` with one line that names the key, the value and what was expected.

Fields are strict (a number is never read from text) and unknown keys are errors. YAML scalars are read as in YAML 1.2:
`1e-4` is a number, `no` is text.
"""

import difflib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import yaml
from pydantic import Field, ValidationError, model_validator

from nopair.config_data import (
    PHOTO_CATEGORIES,
    Count,
    DataConfig,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Section,
    Words,
    WorldDataConfig,
    require_categories,
)
from nopair.errors import ConfigError
from nopair.world.edits import CATEGORIES

Level = Annotated[float, Field(gt=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16"]


class LoraConfig(Section):
    """Low-rank adapters; used only where `roles` is `lora`."""

    rank: Count = Field(default=16, description="rank of each adapter")
    alpha: Positive = Field(default=16.0, description="adapters are scaled by alpha / rank")
    targets: tuple[Words, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"),
        min_length=1,
        description="name endings of the layers that get an adapter",
    )
    ranks: Mapping[str, Count] = Field(default={}, description="other ranks for some of the targets, by name ending")

    @model_validator(mode="after")
    def _ranks_of_targets(self) -> "LoraConfig":
        for name in self.ranks:
            if name not in self.targets:
                raise ValueError(f"ranks names {name!r}, which is not among the targets {', '.join(self.targets)}")
        return self


class BaseConfig(Section):
    """The text-to-image model to start from."""

    path: Words = Field(description="model folder, or tiny:base for the one shipped with nopair")
    student: Words | None = Field(
        default=None, description="editor folder whose transformer the student starts from; null for the base itself"
    )
    roles: Literal["full", "lora"] = Field(
        default="full", description="student, teacher and fake score as full copies, or as adapters on one shared base"
    )
    lora: LoraConfig = Field(default=LoraConfig(), description="the adapters, where roles is lora")
    dtype: Dtype = Field(default="float32", description="precision of frozen weights; adapters are float32 always")
    bits: Literal[4, 8] | None = Field(
        default=None,
        description="quantise transformer and text encoder to so many bits; needs a GPU and the extra `quant`",
    )
    checkpointing: bool = Field(
        default=False, description="recompute activations of transformer and decoder: less memory, more time"
    )
    compile: bool = Field(
        default=False, description="compile the transformers' blocks: minutes at the start, needs a C++ compiler"
    )

    @model_validator(mode="after")
    def _compatible(self) -> "BaseConfig":
        if self.student is not None and self.roles == "lora":
            raise ValueError("student needs roles: full; adapters start from the base that they share")
        if self.roles == "full" and (self.dtype != "float32" or self.bits is not None):
            raise ValueError("dtype and bits need roles: lora; weights that are trained are kept in float32")
        if self.compile and self.roles == "lora":
            raise ValueError("compile needs roles: full; adapters that are switched all the time cannot be compiled")
        return self


class JudgeConfig(Section):
    """A vision-language model that judges edits."""

    path: Words = Field(description="model folder, or tiny:judge for the one shipped with nopair")
    weight: NotNegative = Field(default=1.0, description="share of the verdict, where there are several judges")
    dtype: Dtype = Field(default="float32", description="precision of the judge's weights")
    bits: Literal[4, 8] | None = Field(
        default=None, description="quantise its language model to so many bits; needs a GPU and the extra `quant`"
    )
    checkpointing: bool = Field(default=False, description="recompute its activations: less memory, more time")


class SamplingConfig(Section):
    """The schedule of noise levels, one for training and for editing."""

    steps: Count = Field(default=4, description="noise levels, which is model calls per edit")
    shift: Positive | None = Field(default=None, description="time shift of the levels; null for the base's own")


class PhaseConfig(Section):
    """One phase of training: an optimiser with a warmed-up cosine schedule on an averaged model."""

    steps: Natural = Field(description="optimiser steps; 0 leaves the phase out")
    batch: Count = Field(description="samples per optimiser step")
    accumulate: Count = Field(default=1, description="equal pieces a batch is cut into to save memory")
    optimiser: Literal["adamw", "adamw8bit", "muon"] = Field(
        default="adamw",
        description="adamw; adamw8bit, its moments in 8 bits (needs a GPU); or muon for hidden matrices, else adamw",
    )
    lr: Positive = Field(description="highest step size")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="AdamW decay rates of the two moments, 0 to 1")
    weight_decay: NotNegative = Field(default=0.0, description="decoupled weight decay")
    clip: Positive = Field(default=1.0, description="gradient norm above which a gradient is scaled down")
    ema: Decay = Field(default=0.999, description="decay per step of the averaged weights; 0 keeps the latest weights")
    lr_warmup_steps: Natural = Field(default=0, description="steps over which the step size rises linearly to lr")
    lr_final_fraction: Fraction = Field(default=1.0, description="step size at the end of the cosine, as a share of lr")

    @model_validator(mode="after")
    def _equal_pieces(self) -> "PhaseConfig":
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} cannot be cut into accumulate={self.accumulate} equal pieces")
        return self


class EditPhaseConfig(PhaseConfig):
    """Training without pairs: judge loss and distribution matching."""

    fake_lr: Positive = Field(description="highest step size of the fake score")
    fake_steps: Count = Field(default=3, description="fake-score steps per student step")
    judge_weight: NotNegative = Field(default=0.05, description="weight of the judge's loss")
    dmd_weight: NotNegative = Field(default=1.0, description="weight of distribution matching")
    reference_weight: NotNegative = Field(
        default=0.0, description="weight of the latent error to the reference on `nothing`"
    )
    guidance: Mapping[str, NotNegative] = Field(
        default={"default": 3.0}, description="teacher's guidance scale by category; `default` for those not named"
    )
    normaliser: Literal["per_sample", "per_pixel"] = Field(
        default="per_sample", description="what the score gap is divided by"
    )
    query_low: Level = Field(
        default=0.02, description="lowest time of a score query, 0 clean to 1 noise, before the shift"
    )
    query_high: Level = Field(default=0.98, description="highest time of a score query, before the shift")
    query_shift: Positive = Field(default=1.0, description="time shift of score queries")
    temperature_start: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="judge temperature at step 0"
    )
    temperature_ramp: Natural = Field(default=0, description="steps over which the judge temperature rises to 1")
    negative_prompt: str | None = Field(
        default="", description="prompt that the teacher's guidance leads away from; null for the reference's caption"
    )

    @model_validator(mode="after")
    def _sane(self) -> "EditPhaseConfig":
        if self.query_low >= self.query_high:
            raise ValueError(f"query_low {self.query_low} must be below query_high {self.query_high}")
        if "default" not in self.guidance:
            raise ValueError("guidance has no `default`")
        return self


class LoggingConfig(Section):
    """What a run tells while it runs."""

    every: Count = Field(default=10, description="steps between two metric records")
    samples_every: Natural = Field(default=100, description="steps between two sample grids; 0 for none")
    sample_scenes: Count = Field(default=8, description="references shown in a sample grid")


class CheckpointConfig(Section):
    """When the state of a run is saved."""

    every: Natural = Field(default=100, description="steps between two checkpoints; 0 for the end of each phase only")
    keep: Count = Field(default=2, description="newest checkpoints that are kept")


class GuardConfig(Section):
    """When an optimiser step is refused."""

    max_grad_norm_spike: Positive = Field(default=300.0, description="gradient norm, before clipping, that is a spike")
    max_skipped: Natural = Field(default=10, description="refused steps in a row that are put up with")


class Run(Section):
    """What the training loop knows of a run, whatever it trains. Abstract: a subclass says what is trained."""

    name: Words = Field(description="what the recipe is called")
    seed: Natural = Field(default=0, description="seed of everything random except the data")
    output: Words = Field(description="folder the run writes to")
    threads: Count | None = Field(default=None, description="CPU threads; null for torch's own choice")
    logging: LoggingConfig = Field(default=LoggingConfig(), description="metrics and samples")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="saving")


class Recipe(Run):
    """A complete training run. Equal recipes on the same machine give the same weights, bit for bit."""

    base: BaseConfig = Field(description="the model to start from")
    judge: JudgeConfig = Field(description="the model that judges")
    ensemble: tuple[JudgeConfig, ...] = Field(
        default=(), description="further judges; all judge together, by the weighted mean of their log-odds"
    )
    bystander: JudgeConfig | None = Field(
        default=None, description="a judge that only measures: its verdict is recorded and never trained on"
    )
    data: DataConfig = Field(description="the unlabelled photos")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="the noise schedule")
    warmup: PhaseConfig = Field(description="learning to copy the reference")
    npedit: EditPhaseConfig = Field(description="learning to edit without pairs")
    guard: GuardConfig = Field(default=GuardConfig(), description="refusing bad steps")

    @model_validator(mode="after")
    def _known_guidance(self) -> "Recipe":
        known = CATEGORIES if isinstance(self.data, WorldDataConfig) else PHOTO_CATEGORIES
        require_categories("npedit.guidance", [name for name in self.npedit.guidance if name != "default"], known)
        return self


def recipe_names() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted."""
    files = importlib.resources.files("nopair.recipes").iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name, or of a YAML file (anything that ends in .yaml or .yml, or has a `/`).

    `overrides` are `dotted.key=value` with YAML values, applied in order. Raises ConfigError.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        try:
            source = Path(name_or_path).read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"recipe {text!r} cannot be read: {reason}") from error
        return parse_recipe(source, overrides, where=text)
    names = recipe_names()
    if text not in names:
        near = difflib.get_close_matches(text, names, n=3, cutoff=0.0) or ["none"]
        raise ConfigError(f"there is no recipe {text!r}; nearest: {', '.join(near)}; or give the path of a .yaml file")
    return parse_recipe((importlib.resources.files("nopair.recipes") / f"{text}.yaml").read_bytes(), overrides, text)


def path_override(key: str, path: Path) -> str:
    """`key=path` for `load_recipe`, whatever characters the path holds."""
    return f"{key}='" + str(path).replace("'", "''") + "'"


def parse_recipe(source: str | bytes, overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """A recipe from YAML text; `where` names it in errors. `parse_recipe(dump(recipe)) == recipe`. Raises ConfigError.

    The text is a complete recipe by itself; overrides change single keys of it.
    """
    tree = parse_tree(source, where)
    recipe = _validate(tree, where)
    if not overrides:
        return recipe
    tree = recipe.model_dump(mode="json")
    for override in overrides:
        _apply(tree, override)
    return _validate(tree, where)


def parse_tree(source: str | bytes, where: str) -> dict[Any, Any]:
    """The keys and values of a recipe, of whatever kind, unchecked. Raises ConfigError if it is not YAML with keys."""
    tree = _parse_yaml(source, where)
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected keys with values, such as `name: demo`, found {_brief(tree)}")
    return tree


def _validate(tree: dict[Any, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(error)}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: holds a value that is neither text, number, list nor section ({error})") from error


def dump(recipe: Run) -> str:
    """The recipe, every key spelled out, as YAML."""
    tree = recipe.model_dump(mode="json")
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


# Reading and writing YAML ---------------------------------------------------------------------------------------------

_FLOAT: Final = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else None)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which either YAML version would read as something else."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _parse_yaml(source: str | bytes, where: str) -> Any:
    try:
        return yaml.load(source, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}: not valid YAML{place}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not valid YAML: {_brief(str(error))}") from error


# Overrides and errors -------------------------------------------------------------------------------------------------


def _apply(tree: dict[Any, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"override {_brief(override)}: expected key=value, such as npedit.lr=1e-4")
    value = _parse_yaml(text, f"override {_brief(override)}")
    *sections, last = key.split(".")
    known = {name: kind for name, kind, _ in _keys(Recipe)}
    if key not in known and get_origin(known.get(".".join(sections))) is not Mapping:
        raise ConfigError(f"override {_brief(override)}: unknown key {key}{_nearest(key)}")
    for section in sections:
        if tree[section] is None:  # an optional section that the recipe leaves out
            tree[section] = {}
        tree = tree[section]
    if key == "data.source" and value != tree[last]:
        tree.clear()  # another source has other keys
    tree[last] = value


def _keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every dotted key with its type and its description."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field.annotation, field.description or ""
        for inner in (field.annotation, *get_args(field.annotation)):  # one section, or those of a union
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from _keys(inner, f"{prefix}{name}.")


def _nearest(key: str) -> str:
    """`; did you mean ...?` with the keys that are most like `key`, as a whole or in their last part."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        return max(whole, 0.9 * last + 0.1 * whole)

    known = [candidate for candidate, _, _ in _keys(Recipe)]
    return "; it belongs to another data.source" if key in known else f"; did you mean {max(known, key=likeness)}?"


def _explain(error: ValidationError) -> str:
    """One line for the first problem pydantic found: key, value, what was expected."""
    problems: Any = error.errors(include_url=False)
    # An unknown key explains a missing one, so it is told first.
    problem = min(problems, key=lambda one: one["type"] != "extra_forbidden")
    kind = problem["type"]
    # Where a union's members are told apart, pydantic puts the member's tag between the key and those in it.
    path = [part for i, part in enumerate(problem["loc"]) if not (i == 1 and problem["loc"][0] == "data")]
    key = ".".join(str(part) for part in path)
    if kind == "union_tag_invalid":
        line = f"{key}.source is {problem['ctx']['tag']!r}, expected {problem['ctx']['expected_tags']}{_meaning(key)}"
    elif kind == "extra_forbidden":
        line = f"unknown key {key}{_nearest(key)}"
    elif kind == "value_error":
        line = f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    elif kind == "missing":
        line = f"{key} is missing{_meaning(key)}"
    else:
        line = f"{key} is {_brief(problem['input'])}, expected {_expected(kind, problem)}{_meaning(key)}"
    more = len(problems) - 1
    return line.replace("\n", " ") + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _expected(kind: str, problem: Mapping[str, Any]) -> str:
    context = problem.get("ctx", {})
    plain = {
        "model_type": "a section with keys of its own",
        "dict_type": "names with values",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "string_type": "text, in quotes if it looks like a number",
        "string_too_short": "some text",
        "tuple_type": "a list",
        "too_short": f"at least {context.get('min_length')} values",
        "too_long": f"at most {context.get('max_length')} values",
        "greater_than": f"more than {context.get('gt')}",
        "greater_than_equal": f"at least {context.get('ge')}",
        "less_than": f"less than {context.get('lt')}",
        "less_than_equal": f"at most {context.get('le')}",
        "literal_error": str(context.get("expected")),
        "union_tag_not_found": "a section with source: world or source: photos",
    }
    return plain.get(kind, str(problem["msg"]))


def _meaning(key: str) -> str:
    """` (description)` of the field that `key` is, or is inside of."""
    descriptions = {name: description for name, _, description in _keys(Recipe)}
    while key and key not in descriptions:
        key = key.rpartition(".")[0]
    return f" ({descriptions[key]})" if key else ""


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
