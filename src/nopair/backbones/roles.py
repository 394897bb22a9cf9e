"""The three roles one base plays: student (the editor), teacher (the frozen base) and fake (the online score model).

`FullRoles` gives student and fake their own copy of the transformer; `LoraRoles` shares one transformer and gives each
its own adapter. Both have the `Roles` shape, so training code does not know which it holds. Optimiser, EMA and
checkpoints work on the named parameters that `trainable` returns.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from nopair.backbones.base import Backbone
from nopair.errors import ConfigError
from nopair.types import Text

Role = Literal["student", "teacher", "fake"]
TRAINED: tuple[Role, Role] = ("student", "fake")


@runtime_checkable
class Roles(Protocol):
    """Student, teacher and fake as views of one base. At the start all three predict the same.

    Call `backward`, or `activate` right before a backward pass of your own: under gradient checkpointing the backward
    pass runs the forward again, with whatever role is active at that moment. With shared weights the wrong role then
    gives wrong gradients, and no error.
    """

    @property
    def student(self) -> Backbone: ...

    @property
    def teacher(self) -> Backbone: ...

    @property
    def fake(self) -> Backbone: ...

    def activate(self, role: Role) -> None:
        """Make `role` the one that the transformer plays, until the next velocity or activation of another role."""
        ...

    def backward(self, loss: Float[Tensor, ""], role: Role) -> None:
        """`loss.backward()` for a loss whose graph went through `role` (and through no other role with gradient)."""
        ...

    def trainable(self, role: Role) -> dict[str, nn.Parameter]:
        """The live parameters of `role` by name; empty for the teacher. Names are the same for student and fake."""
        ...

    def export(self, role: Role, weights: Mapping[str, Tensor]) -> nn.Module:
        """A separate, plain, frozen transformer that plays `role` with `weights` in it (an EMA, say).

        Raises:
            ValueError: the names and shapes of `weights` are not exactly those of `trainable(role)`.
        """
        ...


@final
@dataclass(frozen=True, eq=False)
class FullRoles:
    """Each role has a transformer of its own: three times the base's memory, every weight trained. See `Roles`."""

    student: Backbone
    teacher: Backbone
    fake: Backbone

    @classmethod
    def of(cls, backbone: Backbone) -> "FullRoles":
        """Take over `backbone` as the teacher (its transformer is frozen) and copy its transformer twice."""
        copies = [copy.deepcopy(backbone.transformer).requires_grad_(True).train() for _ in TRAINED]
        backbone.transformer.requires_grad_(False).eval()
        student, fake = (backbone.with_transformer(transformer) for transformer in copies)
        return cls(student=student, teacher=backbone, fake=fake)

    def activate(self, role: Role) -> None:
        """Nothing to do: no two roles share a module."""

    def backward(self, loss: Float[Tensor, ""], role: Role) -> None:
        loss.backward()

    def trainable(self, role: Role) -> dict[str, nn.Parameter]:
        return {} if role == "teacher" else dict(self._transformer(role).named_parameters())

    def export(self, role: Role, weights: Mapping[str, Tensor]) -> nn.Module:
        """As in `Roles`, in host memory: a GPU that trains all weights has no room for a fourth copy."""
        _check_names(self.trainable(role), weights)
        transformer = self._transformer(role)
        copied: dict[int, object] = {}  # by the id of what it is a copy of, as deepcopy asks for
        for name, own in transformer.named_parameters():
            given = weights.get(name, own).detach().to("cpu", own.dtype, copy=True)
            copied[id(own)] = nn.Parameter(given, requires_grad=False)
        for buffer in transformer.buffers():
            copied[id(buffer)] = buffer.detach().to("cpu", copy=True)
        return copy.deepcopy(transformer, copied).eval()

    def _transformer(self, role: Role) -> nn.Module:
        return {"student": self.student, "teacher": self.teacher, "fake": self.fake}[role].transformer


@final
@dataclass(frozen=True, eq=False)
class LoraRoles:
    """One shared, frozen transformer with an adapter (arXiv 2106.09685) each for student and fake. See `Roles`.

    The teacher is the transformer with its adapters off. Adapters are kept in float32 whatever the base's dtype.
    """

    backbone: Backbone
    layers: tuple[LoraLayer, ...]

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        seed: int,
        ranks: Mapping[str, int] | None = None,
    ) -> "LoraRoles":
        """Take over `backbone`: freeze its transformer and wrap, in place, the modules whose names end in `targets`.

        An adapter adds alpha / rank * B A to a weight. A is drawn from `seed`; B is zero, so nothing changes at first.
        `ranks` are other ranks for some of the targets, the longest name counts where several fit a module. Their alpha
        grows along, so that alpha / rank is one for all.

        Raises:
            ConfigError: a target names no module of this base, or one that cannot take an adapter; or the base cannot
                take a reference with these adapters.
        """
        transformer = backbone.transformer
        names = [name for name, _ in transformer.named_modules()]
        for target in targets:
            if not any(_ends(name, target) for name in names):
                raise ConfigError(
                    f"LoRA target {target!r}: no module of this base has that name; some are {_leaves(transformer)}"
                )
        # The library takes the first that fits.
        ranks = {} if ranks is None else {name: ranks[name] for name in sorted(ranks, key=len, reverse=True)}
        for module, least in backbone.adapter_ranks.items():
            is_target = any(_ends(module, target) for target in targets)
            given = next((value for name, value in ranks.items() if _ends(module, name)), rank)
            if not is_target or given < least:
                raise ConfigError(
                    f"this base sees the reference through {module} alone: put {module} among base.lora.targets, and "
                    f"set base.lora.ranks={{{module}: {least}}} or more"
                )
        transformer.requires_grad_(False).train()
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # pyright: ignore
            target_modules=list(targets),
            lora_dropout=0.0,
            rank_pattern={_pattern(name): value for name, value in ranks.items()},
            alpha_pattern={_pattern(name): alpha * value / rank for name, value in ranks.items()},
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for role in TRAINED:
                try:
                    inject_adapter_in_model(config, transformer, adapter_name=role)
                except ValueError as error:
                    raise ConfigError(f"LoRA targets {list(targets)}: {str(error).splitlines()[0]}") from None
                del transformer.peft_config  # the library's own record; it would call the second adapter a mistake
        layers = tuple(module for module in transformer.modules() if isinstance(module, LoraLayer))
        for layer in layers:
            for role in TRAINED:
                layer.lora_A[role].float()
                layer.lora_B[role].float()
        _activate(layers, "student")
        return cls(backbone=backbone, layers=layers)

    @property
    def student(self) -> Backbone:
        return _LoraView(self.backbone, self.layers, "student")

    @property
    def teacher(self) -> Backbone:
        return _LoraView(self.backbone, self.layers, "teacher")

    @property
    def fake(self) -> Backbone:
        return _LoraView(self.backbone, self.layers, "fake")

    def activate(self, role: Role) -> None:
        _activate(self.layers, role)

    def backward(self, loss: Float[Tensor, ""], role: Role) -> None:
        self.activate(role)
        loss.backward()

    def trainable(self, role: Role) -> dict[str, nn.Parameter]:
        return _adapter(self.backbone.transformer, role)

    def export(self, role: Role, weights: Mapping[str, Tensor]) -> nn.Module:
        """As in `Roles`: the adapter is merged into the weights (in the base's dtype) and its wrappers are gone."""
        _check_names(self.trainable(role), weights)
        return _merged(copy.deepcopy(self.backbone.transformer), role, weights)

    def dissolve(self, role: Role, weights: Mapping[str, Tensor]) -> nn.Module:
        """What `export` gives, made of the shared transformer itself: no second copy, and no roles any more.

        Raises:
            ValueError: as `export`.
        """
        _check_names(self.trainable(role), weights)
        return _merged(self.backbone.transformer, role, weights)


@dataclass(frozen=True, eq=False)
class _LoraView:
    """The shared backbone playing one role: makes its adapter the active one before each velocity."""

    backbone: Backbone
    layers: tuple[LoraLayer, ...]
    role: Role

    @property
    def transformer(self) -> nn.Module:
        return self.backbone.transformer

    @property
    def adapter_ranks(self) -> Mapping[str, int]:
        return self.backbone.adapter_ranks

    def shift_for(self, height: int, width: int, steps: int) -> float:
        return self.backbone.shift_for(height, width, steps)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        return self.backbone.encode_text(prompts)

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        return self.backbone.encode_image(pixels)

    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        return self.backbone.decode_latents(latents)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.backbone.latent_shape(height, width)

    def velocity(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        text: Text,
        reference: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        _activate(self.layers, self.role)
        return self.backbone.velocity(noisy, t, text, reference)

    def with_transformer(self, transformer: nn.Module) -> Backbone:
        """The plain backbone around `transformer`: an exported role brings no adapters."""
        return self.backbone.with_transformer(transformer)


def _ends(name: str, target: str) -> bool:
    """Whether `target` is the last part, or the last parts, of a module's name."""
    return name == target or name.endswith(f".{target}")


def _pattern(target: str) -> str:
    """`target` as the library's patterns want it: it puts them behind the start of a name or a dot."""
    return re.escape(target)


def _activate(layers: Sequence[LoraLayer], role: Role) -> None:
    """Switch adapters, and undo what the library does besides.

    It makes inactive adapters not require gradients. A backward pass would then silently drop the gradients of a role
    whose forward pass was recorded before another role was switched to.
    """
    for layer in layers:
        layer.enable_adapters(role != "teacher")
        if role != "teacher":
            layer.set_adapter(role)
        for trained in TRAINED:
            layer.lora_A[trained].requires_grad_(True)
            layer.lora_B[trained].requires_grad_(True)


def _merged(transformer: nn.Module, role: Role, weights: Mapping[str, Tensor]) -> nn.Module:
    """The transformer, changed: with the role's adapter, of those weights, in its own weights, and no adapters."""
    _assign(_adapter(transformer, role), weights)
    for name, module in list(transformer.named_modules()):
        if isinstance(module, LoraLayer):
            if role != "teacher":
                module.merge(adapter_names=[role])
            transformer.set_submodule(name, module.get_base_layer())
    return transformer.requires_grad_(False).eval()


def _adapter(transformer: nn.Module, role: Role) -> dict[str, nn.Parameter]:
    """The adapter of `role` by name, the role itself not in the names: `blocks.0.to_q.lora_A.weight`."""
    if role == "teacher":
        return {}
    layers = [(name, module) for name, module in transformer.named_modules() if isinstance(module, LoraLayer)]
    down = {f"{name}.lora_A.weight": layer.lora_A[role].get_parameter("weight") for name, layer in layers}
    up = {f"{name}.lora_B.weight": layer.lora_B[role].get_parameter("weight") for name, layer in layers}
    return down | up


def _leaves(transformer: nn.Module) -> str:
    """Last name parts of the linear layers, for an error message."""
    names = {name.rsplit(".", 1)[-1] for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    return ", ".join(sorted(name for name in names if not name.isdigit()))


def _check_names(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if wrong:
        raise ValueError(
            f"weights to export do not fit the role: {len(wrong)} names or shapes differ, {wrong[0]!r} first"
        )


@torch.no_grad()
def _assign(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        parameters[name].copy_(tensor)
