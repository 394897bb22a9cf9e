"""What the phases share: models and data, a role with its optimiser, and samples with their random numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nopair.backbones.roles import Role, Roles
from nopair.config import PhaseConfig, Recipe
from nopair.data.loader import Source
from nopair.judges.base import Judge
from nopair.precision import require_bitsandbytes
from nopair.training.optim import GuardedStep, MuonAdamW, Optimiser, learning_rate
from nopair.training.parallel import ALONE, Ranks
from nopair.training.phase import State, generator
from nopair.training.sampling import Sampler
from nopair.types import EditBatch, Text


def require_optimiser(name: str) -> None:
    """Check that an optimiser of a recipe can work here; it is only made when its phase begins.

    Raises:
        MissingExtraError: see `require_bitsandbytes`.
    """
    if name == "adamw8bit":
        require_bitsandbytes()


def _adamw(
    parameters: Mapping[str, nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> Optimiser:
    return torch.optim.AdamW(parameters.values(), lr=lr, betas=betas, weight_decay=weight_decay)


def _adamw8bit(
    parameters: Mapping[str, nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> Optimiser:
    require_optimiser("adamw8bit")
    from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports] (an extra)

    return AdamW8bit(parameters.values(), lr=lr, betas=betas, weight_decay=weight_decay)


OPTIMISERS = {"adamw": _adamw, "adamw8bit": _adamw8bit, "muon": MuonAdamW}


@dataclass(frozen=True, eq=False)
class Parts:
    """What the phases work with, on one device. `bystander` only measures, if there is one. `levels` is the sampler's
    schedule, with timestep shift `shift`; `sampler` draws the sample grids; `ranks` share the batches."""

    recipe: Recipe
    roles: Roles
    judge: Judge
    bystander: Judge | None
    source: Source
    shift: float
    levels: Float[Tensor, " step"]
    sampler: Sampler
    ranks: Ranks = ALONE


class Trained:
    """A role with its optimiser: what one `GuardedStep` and one learning-rate schedule act on."""

    def __init__(self, parts: Parts, role: Role, phase: str, config: PhaseConfig, lr: float) -> None:
        self.parameters = parts.roles.trainable(role)
        self._ranks = parts.ranks
        self._config, self._lr = config, lr
        guard = parts.recipe.guard
        optimiser = OPTIMISERS[config.optimiser](self.parameters, lr, config.betas, config.weight_decay)
        self._guarded = GuardedStep(
            optimiser,
            label=f"{phase} {role}",
            clip=config.clip,
            spike=guard.max_grad_norm_spike,
            max_skipped=guard.max_skipped,
        )

    def step(self, loss: float, index: int) -> dict[str, float]:
        """Apply the mean over ranks of the gradients that are there; `loss` is such a mean already. Metrics."""
        config = self._config
        self._ranks.mean_gradients(list(self.parameters.values()))
        lr = learning_rate(
            index,
            peak=self._lr,
            warmup_steps=config.lr_warmup_steps,
            total_steps=config.steps,
            final_fraction=config.lr_final_fraction,
        )
        outcome = self._guarded.step(loss, lr=lr, index=index)
        return {"grad_norm": outcome.grad_norm, "lr": outcome.lr, "skipped": float(self._guarded.skipped)}

    def state(self) -> State:
        """Parameters, moments and counters."""
        return {
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "step": self._guarded.state(),
        }

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Go on from `state()`. Raises ValueError if it is of other parameters."""
        if state["parameters"].keys() != self.parameters.keys():
            raise ValueError("the checkpoint holds other parameters")
        for name, value in self.parameters.items():
            value.copy_(state["parameters"][name])
        self._guarded.load_state(state["step"])


class Draws:
    """Random numbers for samples of a batch, each from a generator of its own: sample k's do not depend on its
    batch."""

    def __init__(self, seed: int, phase: str, indices: Sequence[int], like: Float[Tensor, "b c h w"]) -> None:
        self._generators = [generator(seed, phase, "sample", index) for index in indices]
        self._like = like

    def noise(self) -> Float[Tensor, "b c h w"]:
        """Standard normal, shaped like a latent."""
        shape = self._like.shape[1:]
        return torch.stack([torch.randn(shape, generator=source) for source in self._generators]).to(self._like)

    def uniform(self) -> Float[Tensor, " b"]:
        """Uniform in [0, 1)."""
        return torch.cat([torch.rand(1, generator=source) for source in self._generators]).to(self._like)

    def integers(self, count: int) -> Int[Tensor, " b"]:
        """Uniform in 0 ... count - 1."""
        drawn = [torch.randint(count, (1,), generator=source) for source in self._generators]
        return torch.cat(drawn).to(self._like.device)

    def subsets(self, count: int, size: int) -> Int[Tensor, "b size"]:
        """`size` different numbers of 0 ... count - 1."""
        drawn = [torch.randperm(count, generator=source)[:size] for source in self._generators]
        return torch.stack(drawn).to(self._like.device)


@dataclass(frozen=True, eq=False)
class Piece:
    """One piece of a batch, encoded."""

    batch: EditBatch
    reference: Float[Tensor, "b c h w"]
    instruction: Text
    caption: Text
    draws: Draws

    @classmethod
    def of(cls, parts: Parts, phase: str, indices: Sequence[int]) -> "Piece":
        """Those samples, encoded as the student's base does; random numbers as `phase` draws them."""
        batch = parts.source.batch(indices)
        student = parts.roles.student
        with torch.no_grad():
            reference = student.encode_image(batch.reference)
        return cls(
            batch,
            reference,
            student.encode_text(batch.instructions),
            student.encode_text(batch.edited_captions),
            Draws(parts.recipe.seed, phase, indices, reference),
        )


@torch.no_grad()
def assign(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    """Give the parameters those values."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
