"""The two phases of NP-Edit: warm-up (copy the reference) and training without pairs (judge and teacher)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn

from nopair.backbones.roles import Role, Roles
from nopair.config import EditPhaseConfig, PhaseConfig, Recipe
from nopair.data.loader import Source
from nopair.judges.base import Judge
from nopair.method.flow import guided
from nopair.method.matching import Normaliser, denoising_loss, dmd_loss, per_pixel, per_sample, query_times
from nopair.method.objective import (
    StudentLosses,
    Weights,
    does_nothing,
    preservation_loss,
    reference_loss,
    student_losses,
)
from nopair.method.rollout import rollout, sampler_levels, training_levels
from nopair.method.verdict import ramp
from nopair.precision import require_bitsandbytes
from nopair.training.asking import ASKINGS, count_right, questions_about, shares_right
from nopair.training.optim import Ema, GuardedStep, MuonAdamW, Optimiser, accumulate, learning_rate
from nopair.training.parallel import ALONE, Ranks
from nopair.training.phase import State, generator
from nopair.training.sampling import Sampler
from nopair.types import EditBatch, Text

NORMALISERS: dict[str, Normaliser] = {"per_sample": per_sample, "per_pixel": per_pixel}


def _adamw(
    parameters: Mapping[str, nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> Optimiser:
    return torch.optim.AdamW(parameters.values(), lr=lr, betas=betas, weight_decay=weight_decay)


def _adamw8bit(
    parameters: Mapping[str, nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> Optimiser:
    require_bitsandbytes("optimiser adamw8bit", "set optimiser to adamw")
    from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports] (an extra)

    return AdamW8bit(parameters.values(), lr=lr, betas=betas, weight_decay=weight_decay)


OPTIMISERS = {"adamw": _adamw, "adamw8bit": _adamw8bit, "muon": MuonAdamW}


@dataclass(frozen=True, eq=False)
class Parts:
    """What both phases work with, on one device. `bystander` only measures, if there is one. `levels` is the sampler's
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


class _Trained:
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
        return {
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "step": self._guarded.state(),
        }

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        if state["parameters"].keys() != self.parameters.keys():
            raise ValueError("the checkpoint holds other parameters")
        for name, value in self.parameters.items():
            value.copy_(state["parameters"][name])
        self._guarded.load_state(state["step"])


@final
class WarmupPhase:
    """Flow matching onto the reference image itself, given as clean tokens: the student learns to copy."""

    name = "warmup"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config = parts.recipe.warmup
        self.steps = self._config.steps
        self.begin()

    def begin(self) -> None:
        self._student = _Trained(self._parts, "student", self.name, self._config, self._config.lr)
        self._ema = Ema(self._student.parameters, self._config.ema)

    def step(self, index: int) -> dict[str, float]:
        config, ranks = self._config, self._parts.ranks
        losses = (self._loss(piece) for piece in ranks.pieces(index, config.batch, config.accumulate))
        loss = ranks.mean(accumulate(losses, config.accumulate))
        metrics = self._student.step(loss, index)
        self._ema.update()
        if index + 1 == self.steps:
            _assign(self._student.parameters, self._ema.weights())
        return {"loss": loss} | metrics

    def _loss(self, indices: Sequence[int]) -> Float[Tensor, ""]:
        roles, seed = self._parts.roles, self._parts.recipe.seed
        batch = self._parts.source.batch(indices)
        student = roles.student
        with torch.no_grad():
            reference = student.encode_image(batch.reference)
        # The caption agrees with the reference, so the student goes on listening to text while it learns to copy.
        text = student.encode_text(batch.captions)
        draws = Draws(seed, self.name, indices, reference)
        t = query_times(draws.uniform(), 0.0, 1.0, self._parts.shift)
        roles.activate("student")
        return denoising_loss(
            reference, lambda x, time: student.velocity(x, time, text, reference), t, draws.noise()
        ).mean()

    def state(self) -> State:
        return {"student": self._student.state(), "ema": self._ema.state()}

    def load_state(self, state: State) -> None:
        self._student.load_state(state["student"])
        self._ema.load_state(state["ema"])

    def samples(self, index: int) -> Image | None:
        with self._ema.applied():
            return self._parts.sampler.grid()


@final
class EditPhase:
    """NP-Edit: the student's unrolled samples are judged, and matched to the teacher's distribution."""

    name = "npedit"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config: EditPhaseConfig = parts.recipe.npedit
        config = self._config
        self._weights = Weights(
            config.judge_weight, config.dmd_weight, config.reference_weight, config.preservation_weight
        )
        self._ask = ASKINGS[config.judge_loss](parts.judge)
        self._unroll = UNROLLS[config.unroll]
        self.steps = config.steps
        self.begin()

    def begin(self) -> None:
        config = self._config
        self._student = _Trained(self._parts, "student", self.name, config, config.lr)
        self._fake = _Trained(self._parts, "fake", self.name, config, config.fake_lr)
        self._ema = Ema(self._student.parameters, config.ema)

    def step(self, index: int) -> dict[str, float]:
        """One student step, then `fake_steps` fake-score steps on the samples the student has just made.

        Fresh samples for every fake-score step would cost a rollout each and show the fake score the same student.
        """
        config, ranks = self._config, self._parts.ranks
        shares = ranks.pieces(index, config.batch, config.accumulate)
        pieces = [_Piece.of(self._parts, self.name, indices) for indices in shares]
        made: list[tuple[_Piece, Float[Tensor, "b c h w"]]] = []
        sums: dict[str, float] = {}
        for piece in pieces:
            x0, losses, verdict = self._student_losses(piece, index)
            self._parts.roles.backward(losses.total / len(pieces), "student")
            made.append((piece, x0.detach()))
            means = {name: value / (len(pieces) * ranks.world) for name, value in losses.metrics().items()}
            for name, value in (means | verdict).items():
                sums[name] = sums.get(name, 0.0) + value
        metrics = shares_right(ranks.sum(sums))
        metrics |= self._student.step(metrics["total"], index)
        self._ema.update()
        for _ in range(config.fake_steps):
            metrics["fake"] = self._fake_step(made, index)
        return metrics

    def _student_losses(
        self, piece: "_Piece", index: int
    ) -> tuple[Float[Tensor, "b c h w"], StudentLosses, dict[str, float]]:
        config, roles, batch = self._config, self._parts.roles, piece.batch
        noises, chosen = self._unroll(piece.draws, self._parts.levels)
        x0 = rollout(lambda x, t: roles.student.velocity(x, t, piece.instruction, piece.reference), noises, chosen)
        t, noise = self._query(piece), piece.draws.noise()
        scale = torch.tensor([config.guidance.get(name, config.guidance["default"]) for name in batch.categories])
        negative = roles.teacher.encode_text(self._negatives(batch))

        def real(x: Float[Tensor, "b c h w"], time: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            conditional = roles.teacher.velocity(x, time, piece.caption)
            return guided(conditional, roles.teacher.velocity(x, time, negative), scale.to(x))

        def fake(x: Float[Tensor, "b c h w"], time: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            return roles.fake.velocity(x, time, piece.caption)

        dmd = dmd_loss(x0, real, fake, t, noise, NORMALISERS[config.normaliser])
        judged, verdict = self._judge(piece, x0, index)
        reference = reference_loss(x0, piece.reference, does_nothing(batch).to(x0.device))
        drift = preservation_loss(x0, piece.reference)
        return x0, student_losses(self._weights, judged, dmd, reference, drift), verdict

    def _negatives(self, batch: EditBatch) -> tuple[str, ...]:
        """What guidance leads away from: the recipe's prompt, or the references as they are."""
        prompt = self._config.negative_prompt
        return batch.captions if prompt is None else (prompt,) * len(batch)

    def _judge(
        self, piece: "_Piece", x0: Float[Tensor, "b c h w"], index: int
    ) -> tuple[Float[Tensor, " b"], dict[str, float]]:
        """Judge loss per sample, and how many questions of each kind were asked and answered right."""
        batch = piece.batch
        questions = questions_about(batch, self._config.questions)
        pixels = self._parts.roles.student.decode_latents(x0)
        temperature = ramp(index, self._config.temperature_ramp, self._config.temperature_start)
        answered = self._ask(batch.reference, pixels, questions, temperature)
        verdict = count_right("judge", answered.odds, questions)
        recorded = (index + 1) % self._parts.recipe.logging.every == 0 or index + 1 == self.steps
        if self._parts.bystander is not None and recorded:
            with torch.no_grad():
                odds = self._parts.bystander.yes_minus_no(batch.reference, pixels, questions)
            verdict |= count_right("bystander", odds, questions)
        return answered.loss, verdict

    def _fake_step(self, made: Sequence[tuple["_Piece", Float[Tensor, "b c h w"]]], index: int) -> float:
        roles = self._parts.roles
        roles.activate("fake")
        losses = (
            denoising_loss(
                x0,
                lambda x, t, piece=piece: roles.fake.velocity(x, t, piece.caption),
                self._query(piece),
                piece.draws.noise(),
            ).mean()
            for piece, x0 in made
        )
        loss = self._parts.ranks.mean(accumulate(losses, len(made)))
        self._fake.step(loss, index)
        return loss

    def _query(self, piece: "_Piece") -> Float[Tensor, " b"]:
        config = self._config
        return query_times(piece.draws.uniform(), config.query_low, config.query_high, config.query_shift)

    def state(self) -> State:
        return {"student": self._student.state(), "fake": self._fake.state(), "ema": self._ema.state()}

    def load_state(self, state: State) -> None:
        self._student.load_state(state["student"])
        self._fake.load_state(state["fake"])
        self._ema.load_state(state["ema"])

    def samples(self, index: int) -> Image | None:
        with self._ema.applied():
            return self._parts.sampler.grid()

    def weights(self) -> dict[str, Tensor]:
        """The averaged student: what is shipped."""
        return self._ema.weights()


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


Unrolled = tuple[Float[Tensor, "call b c h w"], Float[Tensor, "call b"]]
"""Noises and levels of a rollout."""


def _one_step(draws: Draws, schedule: Float[Tensor, " step"]) -> Unrolled:
    """From pure noise in one call, the ablation."""
    noises = torch.stack([draws.noise()])
    return noises, sampler_levels(schedule[:1].to(noises.device), noises.shape[1])


def _two_steps(draws: Draws, schedule: Float[Tensor, " step"]) -> Unrolled:
    """The paper's (Eq. 8)."""
    noises = torch.stack([draws.noise(), draws.noise()])
    return noises, training_levels(schedule.to(noises.device), draws.integers(len(schedule)) + 1)


def _all_steps(draws: Draws, schedule: Float[Tensor, " step"]) -> Unrolled:
    """As the sampler does it, the other ablation."""
    noises = torch.stack([draws.noise() for _ in schedule])
    return noises, sampler_levels(schedule.to(noises.device), noises.shape[1])


UNROLLS: dict[str, Callable[[Draws, Float[Tensor, " step"]], Unrolled]] = {
    "one-step": _one_step,
    "two-step": _two_steps,
    "full": _all_steps,
}


@dataclass(frozen=True, eq=False)
class _Piece:
    """One piece of a batch, encoded."""

    batch: EditBatch
    reference: Float[Tensor, "b c h w"]
    instruction: Text
    caption: Text
    draws: Draws

    @classmethod
    def of(cls, parts: Parts, phase: str, indices: Sequence[int]) -> "_Piece":
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
def _assign(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
