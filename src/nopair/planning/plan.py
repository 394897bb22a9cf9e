"""The plan of a recipe: memory, operations, and what each switch would change."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from nopair.config import PhaseConfig, Recipe, parse_recipe
from nopair.errors import ConfigError
from nopair.planning.cards import Throughput
from nopair.planning.ledger import TEMPORARY
from nopair.planning.rehearsal import (
    EMA,
    FAKE,
    GRADIENTS,
    GRPO,
    OPTIMISER,
    SAMPLES,
    STAGES,
    STUDENT,
    WARMUP,
    WEIGHTS,
    Rehearsal,
    rehearse,
)
from nopair.planning.views import BYSTANDER
from nopair.settings import dump
from nopair.training.cache import described, visited

GIB: Final = 2**30
RESERVE: Final = 0.08
"""Share of a card's memory that is left alone: torch's own, and what its allocator cannot use."""
BACKWARD: Final = "backward"
"""The part of operations that belongs to no model by name: all backward passes, what they compute again included."""
EIGHT_BIT: Final = (2 + 2 * 4 / 256) / 8
"""Bytes of AdamW's state in 8 bits, with a float32 for each block of 256, as a share of its bytes in float32."""

_STANDING: Final = (WEIGHTS, "adapter: ", EMA, OPTIMISER)
"""Begin the names of owners whose bytes are there all the time."""


@dataclass(frozen=True)
class StagePlan:
    """One stage: bytes by owner at its worst moment, and operations by part of one step.

    For a phase of training "step" means an optimiser step of the phase: the operations of the stage `npedit fake step`
    are those of all its `fake_steps` together.
    """

    name: str
    owners: Mapping[str, int]
    flops: Mapping[str, int]

    @property
    def peak_bytes(self) -> int:
        """Bytes alive at the worst moment."""
        return sum(self.owners.values())

    @property
    def total_flops(self) -> int:
        """Operations of all parts."""
        return sum(self.flops.values())


@dataclass(frozen=True)
class Switch:
    """What one change of the recipe would do. `changes` are overrides; bytes and operations are those with it."""

    changes: tuple[str, ...]
    peak_bytes: int
    flops: int


@dataclass(frozen=True)
class Plan:
    """What a recipe costs each of `ranks` processes. All numbers are computed, none is measured.

    `parameters` are counts by model, `trainable` those of them, or beside them, that are trained. `steps` are the
    recipe's, by phase. `export_bytes` are of host memory, for the base that the process which writes the editor reads
    again; 0 where it does not. `cache_bytes` are of disk, for all that `data.cache` holds in the end, if no photo and
    no words come twice.
    """

    recipe: str
    ranks: int
    parameters: Mapping[str, int]
    trainable: Mapping[str, int]
    stages: tuple[StagePlan, ...]
    switches: tuple[Switch, ...]
    steps: Mapping[str, int]
    export_bytes: int = 0
    cache_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """Bytes alive at the worst moment of the run."""
        return max((stage.peak_bytes for stage in self.stages), default=0)

    @property
    def step_flops(self) -> Mapping[str, int]:
        """Operations of one step of each phase that the recipe has."""
        totals = {stage.name: stage.total_flops for stage in self.stages}
        steps = {name: totals.get(name, 0) for name in (WARMUP, GRPO)}
        steps["npedit"] = totals.get(STUDENT, 0) + totals.get(FAKE, 0)
        return {name: count for name, count in steps.items() if count}

    def hours(self, speed: Throughput) -> float:
        """Estimated time of all steps of the run; drawing samples and writing checkpoints is left out."""
        return sum(self.steps[name] * speed.seconds(count) for name, count in self.step_flops.items()) / 3600

    def fits(self, gib: float) -> bool:
        """Whether a card of so many GiB has room for it, `RESERVE` left alone."""
        return self.peak_bytes <= gib * GIB * (1 - RESERVE)

    def as_json(self, speed: Throughput | None = None) -> dict[str, Any]:
        """The plan as plain values; see docs/planning.md. Times are there if a speed is."""
        found: dict[str, Any] = {
            "recipe": self.recipe,
            "ranks": self.ranks,
            "peak_gib": self.peak_bytes / GIB,
            "parameters": dict(self.parameters),
            "trainable": dict(self.trainable),
            "export_host_gib": self.export_bytes / GIB,
            "cache_disk_gib": self.cache_bytes / GIB,
            "stages": {
                stage.name: {
                    "peak_gib": stage.peak_bytes / GIB,
                    "owners_gib": {name: size / GIB for name, size in stage.owners.items()},
                    "flops": dict(stage.flops),
                }
                for stage in self.stages
            },
            "step_flops": dict(self.step_flops),
            "switches": [
                {"changes": list(one.changes), "peak_gib": one.peak_bytes / GIB, "npedit_flops": one.flops}
                for one in self.switches
            ],
        }
        if speed is not None:
            found["estimated_step_seconds"] = {name: speed.seconds(count) for name, count in self.step_flops.items()}
            found["hours"] = self.hours(speed)
        return found


def plan(recipe: Recipe, *, ranks: int = 1, device: Literal["cuda", "cpu"] = "cuda", switches: bool = True) -> Plan:
    """Plan a recipe without loading a weight. Takes seconds for a full-size model, and as long for every switch.

    Args:
        recipe: its models are local folders, or published models that nopair knows.
        ranks: processes that share each batch.
        device: optimisers work on all weights at once on GPUs, and take memory for it.
        switches: whether to plan again with single keys changed.

    Raises:
        ModelError, JudgeError: a model is unknown, or its configs cannot be used.
        ConfigError: the models do not take what the recipe asks of them, a batch cannot be shared, or the phase `sft`
            has steps, which cannot be planned.
    """
    if recipe.sft.steps:
        raise ConfigError("sft cannot be planned: only the shapes world has pairs; plan the rest with sft.steps=0")
    found, stages = _plan_once(recipe, ranks, device)
    tried = []
    for changes in _changes(recipe, ranks) if switches else ():
        try:
            other = parse_recipe(dump(recipe), changes)
        except ConfigError:
            continue  # a change that the rest of the recipe does not allow is no switch
        _, with_it = _plan_once(other, ranks, device)
        made = Plan(recipe.name, ranks, {}, {}, with_it, (), {})
        tried.append(Switch(changes, made.peak_bytes, made.step_flops.get("npedit", 0)))
    steps = {WARMUP: recipe.warmup.steps, GRPO: recipe.grpo.steps, "npedit": recipe.npedit.steps}
    cached = visited(recipe) * found.entry_bytes + described(recipe) * found.caption_bytes
    sizes = found.export_bytes, cached
    return Plan(recipe.name, ranks, found.parameters, found.trainable, stages, tuple(tried), steps, *sizes)


def _plan_once(recipe: Recipe, ranks: int, device: str) -> tuple[Rehearsal, tuple[StagePlan, ...]]:
    found = rehearse(_shortened(recipe, ranks))
    stages = []
    for name in STAGES:
        if name not in found.stages:
            continue
        phase = _open_phase(recipe, name)
        times = 1
        if name not in (SAMPLES, GRPO):
            times = phase.accumulate // _pieces(phase) * (recipe.npedit.fake_steps if name == FAKE else 1)
        owners = _with_8_bits(found.stages[name].peak, phase)
        moving = {WARMUP: "student", GRPO: "student", STUDENT: "student", FAKE: "fake score"}.get(name)
        if device == "cuda" and moving is not None and phase.optimiser == "adamw":
            owners = max(owners, _while_moving(owners, found.trainable[moving]), key=lambda each: sum(each.values()))
        flops = {}
        for part, count in found.stages[name].flops.items():
            asked = recipe.logging.every if part == BYSTANDER else 1  # it is asked at recorded steps alone
            flops[BACKWARD if part == TEMPORARY else part] = count * times // asked
        stages.append(StagePlan(name, owners, flops))
    return found, tuple(stages)


def _open_phase(recipe: Recipe, stage: str) -> PhaseConfig:
    """The phase whose optimiser is there in a stage; samples are planned at the end of the last one."""
    if stage in (STUDENT, FAKE):
        return recipe.npedit
    if stage == SAMPLES:
        return next((one for one in (recipe.npedit, recipe.grpo) if one.steps), recipe.warmup)
    return {WARMUP: recipe.warmup, GRPO: recipe.grpo}[stage]


def _shortened(recipe: Recipe, ranks: int) -> Recipe:
    """The same recipe with what repeats done once or, of the pieces of a batch, twice; and the share of one process.

    A step of `grpo` is left whole: all its rollouts are kept until the last of its updates.
    """
    updates = {}
    for name, phase in (("warmup", recipe.warmup), ("grpo", recipe.grpo), ("npedit", recipe.npedit)):
        least = phase.accumulate * ranks
        if phase.steps and phase.batch % least:
            raise ConfigError(f"{name}.batch={phase.batch} cannot be shared by {ranks} processes in equal pieces")
        pieces = phase.accumulate if name == "grpo" else _pieces(phase)
        changes: dict[str, Any] = {"accumulate": pieces, "batch": max(1, phase.batch // least) * pieces}
        if phase.optimiser == "adamw8bit":
            changes["optimiser"] = "adamw"  # the library's own wants a GPU; its state is scaled afterwards
        if name == "npedit":
            changes["fake_steps"] = 1
        updates[name] = phase.model_copy(update=changes)
    logging = recipe.logging.model_copy(update={"every": 1})  # a bystander is asked at every record
    return recipe.model_copy(update=updates | {"logging": logging})


def _pieces(phase: PhaseConfig) -> int:
    """Pieces of a batch that are rehearsed. Two show a gradient of the first beside the activations of the second."""
    return 2 if phase.accumulate % 2 == 0 else 1 if phase.accumulate == 1 else phase.accumulate


def _with_8_bits(peak: Mapping[str, int], phase: PhaseConfig) -> dict[str, int]:
    share = EIGHT_BIT if phase.optimiser == "adamw8bit" else 1
    return {name: round(size * share) if name == OPTIMISER else size for name, size in peak.items()}


def _while_moving(owners: Mapping[str, int], trained: int) -> dict[str, int]:
    """Bytes while AdamW moves all weights of a role at once: gradients, and a denominator for each of them."""
    standing = {name: size for name, size in owners.items() if name.startswith(_STANDING)}
    return standing | {GRADIENTS: 4 * trained, TEMPORARY: 4 * trained}


def _changes(recipe: Recipe, ranks: int) -> Iterator[tuple[str, ...]]:
    """Changes of single switches, as overrides."""
    base, npedit = recipe.base, recipe.npedit
    yield ("base.roles=full", "base.bits=null", "base.dtype=float32") if base.roles == "lora" else ("base.roles=lora",)
    yield (f"base.dtype={'float32' if base.dtype == 'bfloat16' else 'bfloat16'}",)
    for bits in _others(base.bits):
        yield (f"base.bits={bits}",)
    yield (f"base.checkpointing={_flipped(base.checkpointing)}",)
    other = "adamw" if npedit.optimiser == "adamw8bit" else "adamw8bit"
    yield (f"warmup.optimiser={other}", f"npedit.optimiser={other}")
    doubled = 2 * npedit.accumulate
    if npedit.batch % (doubled * ranks) == 0:
        yield (f"npedit.accumulate={doubled}",)
    yield ("data.cache=cache" if recipe.data.cache is None else "data.cache=null",)
    yield (f"judge.dtype={'float32' if recipe.judge.dtype == 'bfloat16' else 'bfloat16'}",)
    for bits in _others(recipe.judge.bits):
        yield (f"judge.bits={bits}",)
    yield (f"judge.checkpointing={_flipped(recipe.judge.checkpointing)}",)
    offload = f"judge.offload={_flipped(recipe.judge.offload)}"
    yield (offload,) if recipe.judge.bits is None else ("judge.bits=null", offload)


def _others(bits: int | None) -> Sequence[str]:
    known = {None: "null", 8: "8", 4: "4"}
    return [text for value, text in known.items() if value != bits]


def _flipped(value: bool) -> str:
    return "false" if value else "true"
