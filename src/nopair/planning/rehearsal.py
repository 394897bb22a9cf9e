"""The phases of a recipe, run for one step on models without memory, under a ledger."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from nopair.backbones.base import StoredBackbone
from nopair.backbones.roles import TRAINED, FullRoles, LoraRoles, Roles
from nopair.config import JudgeConfig, Recipe
from nopair.judges.base import Judge
from nopair.judges.ensemble import JudgeEnsemble
from nopair.judges.offload import Here, HostWeights, OffloadedJudge
from nopair.judges.vision_language import VisionLanguageJudge
from nopair.method.flow import levels
from nopair.planning.architecture import architecture
from nopair.planning.bases import shape_backbone, text_encoders
from nopair.planning.judges import shape_judge
from nopair.planning.ledger import Ledger, Stage
from nopair.planning.packed import PackedLinear
from nopair.planning.records import shape_source, sizes_of
from nopair.planning.shapes import META, Constants, ShapesOnly
from nopair.planning.views import BYSTANDER, GRADIENTS, JUDGE, NAMES, TEXT, VAE, CountedRoles, counted_judge
from nopair.training.grpo import GrpoPhase
from nopair.training.parts import Parts
from nopair.training.phases import EditPhase, WarmupPhase
from nopair.training.sampling import Sampler

WARMUP: Final = "warmup"
GRPO: Final = "grpo"
STUDENT: Final = "npedit student step"
FAKE: Final = "npedit fake step"
SAMPLES: Final = "samples"
STAGES: Final = (WARMUP, GRPO, STUDENT, FAKE, SAMPLES)
"""What memory is planned for, in the order in which it happens."""

_BETWEEN: Final = "between phases"
"""A stage that nobody asks for."""

_FEW: Final = 16
OPTIMISER: Final = "optimiser state"
EMA: Final = "EMA"
WEIGHTS: Final = "weights: "
VISITING: Final = "offloaded: "
"""Begins the names of owners of weights that are there only while they are used."""


@dataclass(frozen=True)
class Rehearsal:
    """What was counted. Bytes and operations are those of one step of one process, with `fake_steps` of 1.

    `export_bytes` are of host memory, at the end of training; see `nopair.planning.plan.Plan`. `entry_bytes` and
    `caption_bytes` are of disk, for what `data.cache` keeps of a record and of its caption; 0 without a cache.
    """

    stages: dict[str, Stage]
    parameters: dict[str, int]
    trainable: dict[str, int]
    export_bytes: int
    entry_bytes: int
    caption_bytes: int


def rehearse(recipe: Recipe) -> Rehearsal:
    """Build the models of a recipe without memory and take a step of each phase that has any.

    Raises:
        ModelError, JudgeError: a model is unknown, or its configs cannot be used.
        ConfigError: the models do not take what the recipe asks of them.
    """
    models = _models(recipe)
    entries = (0, 0) if recipe.data.cache is None else _entry_bytes(recipe, models.backbone)
    ledger = Ledger("meta", aside=OPTIMISER)
    parameters, export_bytes = _own_frozen(ledger, recipe, models), _export_bytes(recipe, models.backbone)
    judges = _judges(ledger, recipe, models)
    roles = _roles(recipe, models.backbone)
    trainable = {NAMES[role]: _count(roles.trainable(role).values()) for role in TRAINED}
    _own_transformers(ledger, roles)
    parts = _parts(recipe, roles, judges, ledger)
    with ShapesOnly(), ledger, _watched(ledger, roles):
        made = {WARMUP: WarmupPhase(parts), GRPO: GrpoPhase(parts), STUDENT: EditPhase(parts)}
        phases = {stage: phase for stage, phase in made.items() if phase.steps}
        for stage, phase in phases.items():
            for over in phases.values():
                over.end()
            with ledger.owner(EMA):
                phase.begin()
            ledger.stage(stage)
            phase.step(0)
            ledger.stage(_BETWEEN)
            for name in (STUDENT, FAKE) if stage == STUDENT else (stage,):
                ledger.stages[name].peak[OPTIMISER] = ledger.bytes_of(OPTIMISER)
        if recipe.logging.samples_every:
            ledger.stage(SAMPLES)
            with ledger.owner(EMA):
                kept = [value.detach().clone() for value in roles.trainable("student").values()]
            parts.sampler.pixels()
            del kept
    return Rehearsal(ledger.stages, parameters, trainable, export_bytes, *entries)


def judge_and_roles(recipe: Recipe) -> tuple[VisionLanguageJudge, Roles]:
    """The (first) judge and the roles of a recipe, without memory, to count single calls of.

    Raises:
        ModelError, JudgeError, ConfigError: as `rehearse`.
    """
    models = _models(recipe)
    return models.judges[0], _roles(recipe, models.backbone)


@dataclass(frozen=True, eq=False)
class _Models:
    backbone: StoredBackbone
    judges: list[VisionLanguageJudge]
    bystander: VisionLanguageJudge | None


def _models(recipe: Recipe) -> _Models:
    base = recipe.base
    backbone = shape_backbone(architecture(base.path), getattr(torch, base.dtype), base.bits)
    for size in sizes_of(recipe):  # one that the base cannot take is told at once
        backbone.latent_shape(*size)
    if base.checkpointing:
        backbone.checkpoint()
    judges = [shape_judge(architecture(one.path), one) for one in recipe.judges]
    seen = recipe.bystander
    return _Models(backbone, judges, None if seen is None else shape_judge(architecture(seen.path), seen))


@torch.no_grad()
def _entry_bytes(recipe: Recipe, backbone: StoredBackbone) -> tuple[int, int]:
    """Of what `nopair.training.cache.fill` writes of a record, and of its caption besides; means of a few records."""
    records = shape_source(recipe, held_out=False).batch(range(_FEW))

    @cache
    def held(prompt: str) -> int:
        text = backbone.encode_text([prompt])
        return text.features.nbytes + (0 if text.pooled is None else text.pooled.nbytes)

    with ShapesOnly():
        latents = backbone.encode_image(records.reference[:1]).nbytes
        told, captions = (
            sum(map(held, prompts)) // _FEW
            for prompts in ((*records.instructions, *records.edited_captions), records.captions)
        )
    return told + latents, captions


def _export_bytes(recipe: Recipe, backbone: StoredBackbone) -> int:
    """Of the base as `nopair.training.run.Training` reads it again to write an editor, and of a full student's copy."""
    codecs: Any = backbone
    student = [backbone.transformer] if recipe.base.roles == "full" else []
    again = [backbone.transformer, codecs.vae, *text_encoders(backbone)]
    read = student if student and recipe.data.cache is None else again + student
    return sum(map(_count_unpacked, read)) * getattr(torch, recipe.base.dtype).itemsize


def _own_frozen(ledger: Ledger, recipe: Recipe, models: _Models) -> dict[str, int]:
    """Tell the ledger of all frozen models but transformer and judges; parameters by model, those two's included."""
    codecs: Any = models.backbone
    owned: dict[str, list[nn.Module]] = {VAE: [codecs.vae]}
    if recipe.data.cache is None:
        owned[TEXT] = text_encoders(models.backbone)
    for name, modules in owned.items():
        for module in modules:
            ledger.own(_tensors(module), f"{WEIGHTS}{name}")
    whole = {"transformer": [models.backbone.transformer]} | owned
    whole |= {name: [judge.model] for name, (judge, _) in _asked(recipe, models).items()}
    return {name: sum(map(_count_unpacked, modules)) for name, modules in whole.items()}


def _asked(recipe: Recipe, models: _Models) -> dict[str, tuple[VisionLanguageJudge, JudgeConfig]]:
    """All judges by name; the bystander, if there is one, is the last."""
    configs = recipe.judges
    names = [JUDGE if number == 1 else f"{JUDGE} {number}" for number in range(1, len(configs) + 1)]
    found = dict(zip(names, zip(models.judges, configs, strict=True), strict=True))
    if models.bystander is not None and recipe.bystander is not None:
        found[BYSTANDER] = models.bystander, recipe.bystander
    return found


def _judges(ledger: Ledger, recipe: Recipe, models: _Models) -> dict[str, Judge]:
    """All judges by name as training asks them, those that are offloaded without their weights."""
    found: dict[str, Judge] = {}
    for name, (judge, config) in _asked(recipe, models).items():
        visits = f"{VISITING}{name}"
        found[name] = OffloadedJudge(judge, _counted(judge, visits, ledger)) if config.offload else judge
        ledger.own(_tensors(judge.model), f"{WEIGHTS}{name}")
    return found


def _counted(judge: VisionLanguageJudge, owner: str, ledger: Ledger) -> Here:
    """Offload a judge's weights, and tell the ledger whose they are whenever they are here."""
    weights = HostWeights(judge.model, "meta")

    @contextmanager
    def here() -> Iterator[None]:
        with weights.here(), Constants():
            ledger.own(judge.model.parameters(), owner)
            yield

    return here


def _own_transformers(ledger: Ledger, roles: Roles) -> None:
    """Tell the ledger whose the transformers' weights are."""
    if isinstance(roles, FullRoles):
        for role, backbone in zip(NAMES.values(), (roles.student, roles.teacher, roles.fake), strict=True):
            ledger.own(_tensors(backbone.transformer), f"{WEIGHTS}{role}")
        return
    ledger.own(_tensors(roles.teacher.transformer), f"{WEIGHTS}transformer")
    for role in TRAINED:
        ledger.own(roles.trainable(role).values(), f"adapter: {NAMES[role]}")


def _roles(recipe: Recipe, backbone: StoredBackbone) -> Roles:
    with META:
        if recipe.base.roles == "full":
            return FullRoles.of(backbone)
        lora = recipe.base.lora
        return LoraRoles.of(backbone, lora.rank, lora.alpha, lora.targets, recipe.seed, lora.ranks)


def _parts(recipe: Recipe, roles: Roles, judges: Mapping[str, Judge], ledger: Ledger) -> Parts:
    weights = [one.weight for one in recipe.judges]
    asked = [judge for name, judge in judges.items() if name != BYSTANDER]
    judge = asked[0] if len(asked) == 1 else JudgeEnsemble(asked, weights)
    seen = judges.get(BYSTANDER)
    counted = CountedRoles(roles, ledger, cached=recipe.data.cache is not None, fake_stage=FAKE)
    shift = recipe.sampling.shift or roles.student.shift_for(*sizes_of(recipe)[0], recipe.sampling.steps)
    schedule = levels(recipe.sampling.steps, shift)
    shown = shape_source(recipe, held_out=True).batch(range(recipe.logging.sample_scenes))
    sampler = Sampler(counted.student, shown, schedule, recipe.seed)
    return Parts(
        recipe=recipe,
        roles=counted,
        judge=counted_judge(judge, JUDGE, ledger),
        bystander=None if seen is None else counted_judge(seen, BYSTANDER, ledger),
        source=shape_source(recipe, held_out=False),
        shift=shift,
        levels=schedule,
        sampler=sampler,
    )


@contextmanager
def _watched(ledger: Ledger, roles: Roles) -> Iterator[None]:
    """Inside, gradients and what optimisers make are told to the ledger as such."""
    owners: list[Any] = []

    def before(*_: Any) -> None:
        owners.append(ledger.owner(OPTIMISER))
        owners[-1].__enter__()

    def after(*_: Any) -> None:
        owners.pop().__exit__(None, None, None)

    def gradient(parameter: Tensor) -> None:
        assert parameter.grad is not None, "torch has just made it"
        ledger.own([parameter.grad], GRADIENTS)

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    hooks += [
        one.register_post_accumulate_grad_hook(gradient) for role in TRAINED for one in roles.trainable(role).values()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _count_unpacked(module: nn.Module) -> int:
    """Parameters, quantised ones too, which share bytes."""
    packed = [layer for layer in module.modules() if isinstance(layer, PackedLinear)]
    extra = sum(layer.in_features * layer.out_features - layer.weight.numel() for layer in packed)
    return _count(module.parameters()) + extra


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
