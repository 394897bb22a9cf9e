"""The phases of a recipe, run for one step on models without memory, under a ledger."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from nopair.backbones.base import StoredBackbone
from nopair.backbones.roles import TRAINED, FullRoles, LoraRoles, Roles
from nopair.config import Recipe
from nopair.errors import ConfigError
from nopair.judges.base import Judge
from nopair.judges.ensemble import JudgeEnsemble
from nopair.judges.vision_language import VisionLanguageJudge
from nopair.method.flow import levels
from nopair.planning.architecture import architecture
from nopair.planning.bases import shape_backbone
from nopair.planning.judges import shape_judge
from nopair.planning.ledger import Ledger, Stage
from nopair.planning.packed import pack
from nopair.planning.records import shape_source, size_of
from nopair.planning.shapes import META, ShapesOnly
from nopair.planning.views import GRADIENTS, JUDGE, NAMES, TEXT, VAE, CountedJudge, CountedRoles
from nopair.training.phases import EditPhase, Parts, WarmupPhase
from nopair.training.sampling import Sampler

WARMUP: Final = "warmup"
STUDENT: Final = "npedit student step"
FAKE: Final = "npedit fake step"
SAMPLES: Final = "samples"
STAGES: Final = (WARMUP, STUDENT, FAKE, SAMPLES)
"""What memory is planned for, in the order in which it happens."""

OPTIMISER: Final = "optimiser state"
EMA: Final = "EMA"
WEIGHTS: Final = "weights: "


@dataclass(frozen=True)
class Rehearsal:
    """What was counted. Bytes and operations are those of one step of one process, with `fake_steps` of 1."""

    stages: dict[str, Stage]
    parameters: dict[str, int]
    trainable: dict[str, int]


def rehearse(recipe: Recipe) -> Rehearsal:
    """Build the models of a recipe without memory and take a step of each phase that has any.

    Raises:
        ModelError, JudgeError: a model is unknown, or its configs cannot be used.
        ConfigError: the models do not take what the recipe asks of them.
    """
    backbone, judges = _models(recipe)
    ledger = Ledger("meta")
    parameters = _own_codecs(ledger, recipe, backbone, judges)
    roles = _roles(recipe, backbone)
    trainable = {NAMES[role]: _count(roles.trainable(role).values()) for role in TRAINED}
    _own_transformers(ledger, roles)
    parts = _parts(recipe, roles, judges, ledger)
    with ShapesOnly(), ledger, _watched(ledger, roles):
        with ledger.owner(EMA):
            phases = WarmupPhase(parts), EditPhase(parts)
        for phase, stage in zip(phases, (WARMUP, STUDENT), strict=True):
            if phase.steps:
                with ledger.owner(EMA):
                    phase.begin()
                phase.step(0)  # makes the optimisers' state; the next step has it from the start
                ledger.stages.pop(FAKE, None)
                ledger.stage(stage)
                phase.step(1)
        if recipe.logging.samples_every:
            ledger.stage(SAMPLES)
            with ledger.owner(EMA):
                kept = [value.detach().clone() for value in roles.trainable("student").values()]
            parts.sampler.pixels()
            del kept
    return Rehearsal({name: stage for name, stage in ledger.stages.items()}, parameters, trainable)


def judge_and_roles(recipe: Recipe) -> tuple[VisionLanguageJudge, Roles]:
    """The (first) judge and the roles of a recipe, without memory, to count single calls of.

    Raises:
        ModelError, JudgeError, ConfigError: as `rehearse`.
    """
    backbone, judges = _models(recipe)
    return judges[0], _roles(recipe, backbone)


def _models(recipe: Recipe) -> tuple[StoredBackbone, list[VisionLanguageJudge]]:
    base = recipe.base
    backbone = shape_backbone(architecture(base.path), getattr(torch, base.dtype))
    if base.bits is not None:
        if base.roles == "full":
            raise ConfigError("base.bits needs roles: lora; weights of so few bits cannot be trained")
        # Of the blocks, which stand in numbered lists; what is around them is small, and stays.
        pack(backbone.transformer, base.bits, lambda name: any(part.isdigit() for part in name.split(".")[:-1]))
    judges = [shape_judge(architecture(one.path), one) for one in (recipe.judge, *recipe.ensemble)]
    return backbone, judges


def _codecs(backbone: StoredBackbone) -> dict[str, list[nn.Module]]:
    """The frozen modules of an adapter beside its transformer, by what they are called here."""
    modules = {name: value for name, value in vars(backbone).items() if isinstance(value, nn.Module)}
    encoders = [value for name, value in modules.items() if name.startswith("text_encoder")]
    return {TEXT: encoders, VAE: [modules["vae"]]}


def _own_codecs(
    ledger: Ledger, recipe: Recipe, backbone: StoredBackbone, judges: Sequence[VisionLanguageJudge]
) -> dict[str, int]:
    """Tell the ledger of all frozen modules but the transformer; parameters by module, the transformer's included."""
    counted = {"transformer": _count(backbone.transformer.parameters())}
    cached = _is_cached(recipe)
    for name, modules in _codecs(backbone).items():
        if name == TEXT and cached:
            continue
        for module in modules:
            ledger.own(_tensors(module), f"{WEIGHTS}{name}")
        counted[name] = sum(_count(module.parameters()) for module in modules)
    for number, judge in enumerate(judges, start=1):
        name = JUDGE if number == 1 else f"{JUDGE} {number}"
        ledger.own(_tensors(judge.model), f"{WEIGHTS}{name}")
        counted[name] = _count(judge.model.parameters())
    return counted


def _own_transformers(ledger: Ledger, roles: Roles) -> None:
    """Tell the ledger whose the transformers' weights are."""
    if isinstance(roles, FullRoles):
        for role, backbone in (("student", roles.student), ("teacher", roles.teacher), ("fake", roles.fake)):
            ledger.own(_tensors(backbone.transformer), f"{WEIGHTS}{NAMES[role]}")
        return
    ledger.own(_tensors(roles.teacher.transformer), f"{WEIGHTS}transformer")
    for role in TRAINED:
        ledger.own(roles.trainable(role).values(), f"adapter: {NAMES[role]}")


def _roles(recipe: Recipe, backbone: StoredBackbone) -> Roles:
    base = recipe.base
    transformer: Any = backbone.transformer
    if base.checkpointing:
        transformer.enable_gradient_checkpointing()
        vae: Any = _codecs(backbone)[VAE][0]
        vae.enable_gradient_checkpointing()
    with META:
        if base.roles == "full":
            roles = FullRoles.of(backbone)
            for role in (roles.student, roles.fake):
                nn.Module.to(role.transformer, torch.float32)  # what is trained is kept exactly
            return roles
        lora = base.lora
        return LoraRoles.of(backbone, lora.rank, lora.alpha, lora.targets, recipe.seed)


def _parts(recipe: Recipe, roles: Roles, judges: Sequence[VisionLanguageJudge], ledger: Ledger) -> Parts:
    one = judges[0] if len(judges) == 1 else JudgeEnsemble(judges, [each.weight for each in (recipe.judge, *recipe.ensemble)])
    judge: Judge = CountedJudge(one, ledger)
    counted = CountedRoles(roles, ledger, cached=_is_cached(recipe), fake_stage=FAKE)
    height, width = size_of(recipe)
    shift = recipe.sampling.shift or roles.student.shift_for(height, width, recipe.sampling.steps)
    schedule = levels(recipe.sampling.steps, shift)
    shown = shape_source(recipe, held_out=True).batch(range(recipe.logging.sample_scenes))
    sampler = Sampler(counted.student, shown, schedule, recipe.seed)
    return Parts(
        recipe=recipe,
        roles=counted,
        judge=judge,
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
    hooks += [one.register_post_accumulate_grad_hook(gradient) for role in TRAINED for one in roles.trainable(role).values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_cached(recipe: Recipe) -> bool:
    """Whether texts and references come from disk, so that the text encoder is not needed."""
    return getattr(recipe.data, "cache", None) is not None


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
