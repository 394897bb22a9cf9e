"""A training run as one frozen value: what a recipe says.

`load_recipe` reads a shipped recipe or a YAML file, applies dotted overrides (`npedit.lr=1e-4`) and returns a `Recipe`,
or raises `ConfigError`; how a recipe is read and checked is in `nopair.settings`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from nopair.config_data import PHOTO_CATEGORIES, DataConfig, WorldDataConfig, require_categories
from nopair.settings import (
    Count,
    Decay,
    Fraction,
    Level,
    Natural,
    NotNegative,
    Positive,
    Section,
    Seed,
    Words,
    load,
    parse,
    shipped_names,
)
from nopair.world.edits import ALL_CATEGORIES

RECIPES: Final = "nopair.recipes"
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

    path: Words = Field(description="model folder, or tiny:judge for one that is shipped with nopair")
    weight: NotNegative = Field(
        default=1.0, description="share of the verdict, where there are several judges; 0 leaves it out"
    )
    dtype: Dtype = Field(default="float32", description="precision of the judge's weights")
    bits: Literal[4, 8] | None = Field(
        default=None, description="quantise its language model to so many bits; needs the extra `quant`, and 4 a GPU"
    )
    checkpointing: bool = Field(default=False, description="recompute its activations: less memory, more time")
    offload: bool = Field(default=False, description="keep its weights in host memory while it is not asked")

    @model_validator(mode="after")
    def _compatible(self) -> "JudgeConfig":
        if self.offload and self.bits is not None:
            raise ValueError("offload needs bits: null; quantised weights stay on the GPU")
        return self


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
        description="adamw; adamw8bit, its moments in 8 bits (extra `quant`); or muon for hidden matrices, else adamw",
    )
    lr: Positive = Field(description="highest step size")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="AdamW decay rates of the two moments, 0 to 1")
    weight_decay: NotNegative = Field(default=0.0, description="decoupled weight decay")
    clip: Positive = Field(default=1.0, description="gradient norm above which a gradient is scaled down")
    ema: Decay = Field(
        default=0.999,
        description="decay per step of the averaged weights; 0 keeps the latest weights. Less in a phase so short that "
        "more than an eighth of the average would still be the weights it began with",
    )
    lr_warmup_steps: Natural = Field(default=0, description="steps over which the step size rises linearly to lr")
    lr_final_fraction: Fraction = Field(default=1.0, description="step size at the end of the cosine, as a share of lr")

    @property
    def average_decay(self) -> float:
        """`ema`, or less in a short phase: at its end at most an eighth of the average is what it began with."""
        return min(self.ema, 0.125 ** (1 / self.steps)) if self.steps else self.ema

    @model_validator(mode="after")
    def _equal_pieces(self) -> "PhaseConfig":
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} cannot be cut into accumulate={self.accumulate} equal pieces")
        return self


class WarmupConfig(PhaseConfig):
    """Learning to copy, and what instructions mean, before judge and teacher correct what comes of it."""

    target: Literal["reference", "estimate"] = Field(
        default="reference",
        description="what comes out: the reference, as in the paper; or the teacher's estimate of the edit where it "
        "sees one, and the reference elsewhere (it is asked as npedit.preserve_time and preserve_width say)",
    )

    @property
    def lesson(self) -> str:
        """What is learnt, in words."""
        if self.target == "reference":
            return "copying the reference"
        return "copying what stays of the reference, and following the teacher's first sight of the edit"


class EditPhaseConfig(PhaseConfig):
    """Training without pairs: judge loss and distribution matching."""

    fake_lr: Positive = Field(description="highest step size of the fake score")
    fake_steps: Count = Field(default=3, description="fake-score steps per student step")
    fake_samples: Literal["reused", "fresh"] = Field(
        default="reused",
        description="what the fake score learns from: the student step's samples, or new ones at each of its own steps",
    )
    judge_weight: NotNegative = Field(default=0.05, description="weight of the judge's loss")
    dmd_weight: NotNegative = Field(default=1.0, description="weight of distribution matching")
    reference_weight: NotNegative = Field(
        default=0.0, description="weight of the latent error to the reference on `nothing`"
    )
    preservation_weight: NotNegative = Field(
        default=0.0, description="weight of that error on all records; not in the paper"
    )
    preserve: Literal["everywhere", "unedited"] = Field(
        default="everywhere",
        description="where that error counts: everywhere, which holds edits back, too; or where the teacher, under "
        "both captions, sees no edit",
    )
    preserve_time: Mapping[str, Level] = Field(
        default={"default": 0.75},
        description="time at which the teacher is asked where the edit is, by category; `default` for those not named",
    )
    preserve_width: Positive = Field(
        default=0.15,
        description="difference of its two answers at which a place counts as edited, in a latent's deviations",
    )
    context: Literal["none", "unedited"] = Field(
        default="none",
        description="what teacher and fake score see of the reference: none of it, as in the paper; or all but where "
        "the teacher sees the edit, for a base that can fill in holes",
    )
    redraw_weight: NotNegative = Field(
        default=0.0,
        description="weight of the distance to what the teacher makes of the student's samples, noised a little and "
        "denoised; not in the paper",
    )
    redraw_context: Literal["none", "unedited"] = Field(
        default="none", description="what the teacher sees of the reference while it does so; as `context`"
    )
    redraw_low: Level = Field(default=0.3, description="lowest time that the samples are noised to for it")
    redraw_high: Level = Field(default=0.7, description="highest time that they are noised to")
    redraw_steps: Count = Field(default=2, description="calls of the teacher that denoise them")
    judge_loss: Literal["binary", "vocabulary"] = Field(
        default="binary", description="cross-entropy over the words Yes and No, or over all of the judge's vocabulary"
    )
    questions: tuple[Literal["edit", "identity"], ...] = Field(
        default=("edit", "identity"), description="kinds of question that are put to the judge"
    )
    inverted: tuple[Words, ...] = Field(
        default=(), description="categories whose answers are wanted wrong, as by a judge that is wrong about them"
    )
    unroll: Literal["one-step", "two-step", "full"] = Field(
        default="two-step",
        description="calls of the student that make a training sample: one, two, or all that the sampler makes",
    )
    guidance: Mapping[str, NotNegative] = Field(
        default={"default": 3.0}, description="teacher's guidance scale by category; `default` for those not named"
    )
    guidance_final_fraction: Fraction = Field(
        default=1.0,
        description="share of the guidance beyond 1 that is left at the end of the phase; it falls evenly",
    )
    normaliser: Literal["per_sample", "per_pixel"] = Field(
        default="per_sample", description="what the score gap is divided by"
    )
    query_low: Level = Field(default=0.02, description="lowest time of a score query, 0 clean to 1 noise")
    query_high: Level = Field(default=0.98, description="highest time of a score query")
    query_shift: Positive = Field(default=1.0, description="time shift of score queries, within these bounds")
    temperature_start: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.1, description="judge temperature at step 0, if `temperature_ramp` is set"
    )
    temperature_ramp: Natural = Field(default=0, description="steps over which the judge temperature rises to 1")
    negative_prompt: str | None = Field(
        default="", description="prompt that the teacher's guidance leads away from; null for the reference's caption"
    )

    @property
    def shows_holes(self) -> bool:
        """Whether the teacher is shown references with a hole where it sees the edit."""
        redrawn = self.redraw_weight > 0 and self.redraw_context != "none"
        return redrawn or self.context != "none"

    @property
    def reads_captions(self) -> bool:
        """Whether the teacher is asked under the references' own captions."""
        return self.negative_prompt is None or self.preserve == "unedited" or self.shows_holes

    @model_validator(mode="after")
    def _sane(self) -> "EditPhaseConfig":
        if self.query_low >= self.query_high:
            raise ValueError(f"query_low {self.query_low} must be below query_high {self.query_high}")
        if self.redraw_low > self.redraw_high:
            raise ValueError(f"redraw_low {self.redraw_low} must not be above redraw_high {self.redraw_high}")
        for name in ("guidance", "preserve_time"):
            if "default" not in getattr(self, name):
                raise ValueError(f"{name} has no `default`")
        judged = self.judge_weight if self.questions else 0.0
        others = (self.dmd_weight, self.reference_weight, self.preservation_weight, self.redraw_weight)
        if not any((judged, *others)):
            raise ValueError(
                "nothing is left to learn from: give a weight above 0 to judge_weight (with some questions), "
                "dmd_weight, reference_weight, preservation_weight or redraw_weight"
            )
        return self


class SftConfig(PhaseConfig):
    """Supervised fine-tuning on before/after pairs, a baseline; only the shapes world has pairs."""

    steps: Natural = Field(default=0, description="optimiser steps; 0 leaves the phase out")
    batch: Count = Field(default=16, description="samples per optimiser step")
    lr: Positive = Field(default=1e-4, description="highest step size")
    pairs: Count = Field(default=1000, description="different pairs to train on, over and over")


class GrpoConfig(PhaseConfig):
    """Flow-GRPO, a baseline: the judge's verdict as a reward, without a gradient through the judge."""

    steps: Natural = Field(default=0, description="rollouts of a whole batch; 0 leaves the phase out")
    batch: Count = Field(default=4, description="records per step, each sampled `group` times")
    lr: Positive = Field(default=1e-5, description="highest step size")
    group: Annotated[int, Field(ge=2)] = Field(default=8, description="samples of a record, held against each other")
    policy: Literal["renoise", "sde"] = Field(
        default="renoise", description="renoise, the sampler itself; or sde, Flow-GRPO's, at the sampler's levels"
    )
    noise: Positive = Field(default=0.7, description="noise level a of the policy sde")
    moves: Count = Field(default=2, description="moves of each sample that are trained, drawn anew for each")
    updates: Count = Field(
        default=1, description="optimiser steps on the samples of a step; only later ones are clipped"
    )
    clip_range: Level = Field(
        default=1e-4, description="how far a ratio of probabilities may be from 1 and still teach"
    )
    kl_weight: NotNegative = Field(default=0.01, description="weight of the divergence from the phase's start")
    advantage_limit: Positive = Field(default=5.0, description="largest advantage, in standard deviations")
    std: Literal["group", "global"] = Field(
        default="group", description="whose standard deviation of rewards: each group's, or the whole batch's"
    )


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
    seed: Seed = Field(default=0, description="seed of everything random except the data")
    output: Words = Field(description="folder the run writes to")
    threads: Count | None = Field(default=None, description="CPU threads; null for torch's own choice")
    logging: LoggingConfig = Field(default=LoggingConfig(), description="metrics and samples")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="saving")


class Recipe(Run):
    """A complete training run. Equal recipes on the same CPU give the same weights, bit for bit."""

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
    warmup: WarmupConfig = Field(description="learning to copy the reference")
    sft: SftConfig = Field(default=SftConfig(), description="a baseline: learning to edit from pairs")
    grpo: GrpoConfig = Field(default=GrpoConfig(), description="a baseline: reinforcing what the judge prefers")
    npedit: EditPhaseConfig = Field(description="learning to edit without pairs")
    guard: GuardConfig = Field(default=GuardConfig(), description="refusing bad steps")

    @property
    def judges(self) -> tuple[JudgeConfig, ...]:
        """Those that have a say: a judge of weight 0 has none, and is not loaded. At least one."""
        return tuple(one for one in (self.judge, *self.ensemble) if one.weight > 0)

    @model_validator(mode="after")
    def _some_judge(self) -> "Recipe":
        if not self.judges:
            raise ValueError(
                "judge.weight is 0, and no other judge has a say; give it one, or train without: npedit.judge_weight=0"
            )
        return self

    @model_validator(mode="after")
    def _no_say(self) -> "Recipe":
        if self.bystander is not None and self.bystander.weight != 1:
            raise ValueError("bystander.weight says nothing, as a bystander has no vote; leave it out")
        return self

    @model_validator(mode="after")
    def _known_guidance(self) -> "Recipe":
        known = ALL_CATEGORIES if isinstance(self.data, WorldDataConfig) else PHOTO_CATEGORIES
        for key in ("guidance", "preserve_time"):
            named = [name for name in getattr(self.npedit, key) if name != "default"]
            require_categories(f"npedit.{key}", named, known)
        require_categories("npedit.inverted", self.npedit.inverted, known)
        return self

    @model_validator(mode="after")
    def _possible_baselines(self) -> "Recipe":
        if self.sft.steps and not isinstance(self.data, WorldDataConfig):
            raise ValueError("sft.steps needs before/after pairs, which photos do not have; set it to 0")
        if self.sft.steps and self.data.cache is not None:
            raise ValueError("sft.steps cannot use data.cache, which holds no right answers; set data.cache to null")
        if self.grpo.steps and not self.npedit.questions:
            raise ValueError(
                "grpo.steps needs npedit.questions, whose answers are its reward; name edit, identity or both"
            )
        if self.grpo.steps and self.npedit.inverted:
            raise ValueError(
                "grpo.steps takes the judge at its word; leave npedit.inverted empty, or set grpo.steps to 0"
            )
        if self.grpo.steps and self.grpo.moves >= self.sampling.steps:
            raise ValueError(
                f"grpo.moves={self.grpo.moves} must be below sampling.steps={self.sampling.steps}: the last prediction "
                "adds no noise and cannot be reinforced"
            )
        return self


def recipe_names() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted."""
    return shipped_names(RECIPES)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name, or of a YAML file (anything that ends in .yaml or .yml, or has a `/`).

    `overrides` are `dotted.key=value` with YAML values, applied in order. Raises ConfigError.
    """
    return load(Recipe, RECIPES, name_or_path, overrides)


def parse_recipe(source: str | bytes, overrides: Sequence[str] = (), where: str = "recipe") -> Recipe:
    """A recipe from YAML text; `where` names it in errors. `parse_recipe(dump(recipe)) == recipe`. Raises ConfigError.

    The text is a complete recipe by itself; overrides change single keys of it.
    """
    return parse(Recipe, source, overrides, where)
