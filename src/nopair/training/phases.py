"""The two phases of NP-Edit: warm-up (copy the reference) and training without pairs (judge and teacher)."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from nopair.config import EditPhaseConfig
from nopair.judges.questions import VERSION
from nopair.method.matching import Normaliser, denoising_loss, dmd_loss, per_pixel, per_sample, query_times, redraw_loss
from nopair.method.objective import (
    StudentLosses,
    Weights,
    does_nothing,
    preservation_loss,
    reference_loss,
    student_losses,
)
from nopair.method.verdict import ramp
from nopair.training.asking import ASKINGS, count_right, questions_about, require_same_questions, shares_right
from nopair.training.generated import FAKE_SAMPLES, UNROLLS, Made, generate
from nopair.training.keeping import CONTEXTS, KEPT, everywhere
from nopair.training.lessons import LESSONS, WARMUP
from nopair.training.optim import Ema, accumulate
from nopair.training.parts import Parts, Piece, Trained, assign
from nopair.training.phase import State
from nopair.training.teaching import guided_teacher

NORMALISERS: dict[str, Normaliser] = {"per_sample": per_sample, "per_pixel": per_pixel}


@final
class WarmupPhase:
    """Flow matching with the reference as clean tokens: the student learns to copy it, or what stays of it."""

    name = WARMUP

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config = parts.recipe.warmup
        self._teach = LESSONS[self._config.target]
        self.steps = self._config.steps
        self.is_open = False

    def begin(self) -> None:
        self._student = Trained(self._parts, "student", self.name, self._config, self._config.lr)
        self._ema = Ema(self._student.parameters, self._config.average_decay)
        self.is_open = True

    def end(self) -> None:
        if self.is_open:
            del self._student, self._ema
            self.is_open = False

    def step(self, index: int) -> dict[str, float]:
        config, ranks = self._config, self._parts.ranks
        losses = (self._loss(piece) for piece in ranks.pieces(index, config.batch, config.accumulate))
        loss = ranks.mean(accumulate(losses, config.accumulate))
        metrics = self._student.step(loss, index)
        self._ema.update()
        if index + 1 == self.steps:
            assign(self._student.parameters, self._ema.weights())
        return {"loss": loss} | metrics

    def _loss(self, indices: Sequence[int]) -> Float[Tensor, ""]:
        roles = self._parts.roles
        lesson = self._teach(self._parts, indices)
        t = query_times(lesson.draws.uniform(), 0.0, 1.0, self._parts.shift)
        roles.activate("student")
        return denoising_loss(
            lesson.goal,
            lambda x, time: roles.student.velocity(x, time, lesson.text, lesson.reference),
            t,
            lesson.draws.noise(),
        ).mean()

    def state(self) -> State:
        return {"student": self._student.state(), "ema": self._ema.state()}

    def load_state(self, state: State) -> None:
        self.begin()
        self._student.load_state(state["student"])
        self._ema.load_state(state["ema"])

    def samples(self, index: int) -> Image | None:
        with self._ema.applied():
            return self._parts.sampler.grid()

    def weights(self) -> dict[str, Tensor]:
        """The averaged student."""
        return self._ema.weights()


@final
class EditPhase:
    """NP-Edit: the student's unrolled samples are judged, and matched to the teacher's distribution."""

    name = "npedit"

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._config: EditPhaseConfig = parts.recipe.npedit
        config = self._config
        self._weights = Weights(
            config.judge_weight,
            config.dmd_weight,
            config.reference_weight,
            config.preservation_weight,
            config.redraw_weight,
        )
        self._ask = ASKINGS[config.judge_loss](parts.judge)
        self._unroll = UNROLLS[config.unroll]
        self._kept = KEPT[config.preserve] if config.preservation_weight > 0 else everywhere
        self._context = CONTEXTS[config.context]
        self._shown = FAKE_SAMPLES[config.fake_samples](parts, self.name, config)
        self.steps = config.steps
        self.is_open = False

    def begin(self) -> None:
        config = self._config
        self._student = Trained(self._parts, "student", self.name, config, config.lr)
        self._fake = Trained(self._parts, "fake", self.name, config, config.fake_lr)
        self._ema = Ema(self._student.parameters, config.average_decay)
        self.is_open = True

    def end(self) -> None:
        if self.is_open:
            del self._student, self._fake, self._ema
            self.is_open = False

    def step(self, index: int) -> dict[str, float]:
        """One student step, then `fake_steps` fake-score steps on the student's samples."""
        config, ranks = self._config, self._parts.ranks
        shares = ranks.pieces(index, config.batch, config.accumulate)
        pieces = [Piece.of(self._parts, self.name, indices) for indices in shares]
        made: list[Made] = []
        sums: dict[str, float] = {}
        for piece in pieces:
            context = self._context(self._parts.roles.teacher, config, piece)
            x0, losses, verdict = self._student_losses(piece, context, index)
            if losses.total.requires_grad:  # a judge that was asked nothing, and no other term: nothing to learn
                self._parts.roles.backward(losses.total / len(pieces), "student")
            made.append(Made(piece, x0.detach(), context))
            means = {name: value / (len(pieces) * ranks.world) for name, value in losses.metrics().items()}
            for name, value in (means | verdict).items():
                sums[name] = sums.get(name, 0.0) + value
        metrics = shares_right(ranks.sum(sums))
        metrics |= self._student.step(metrics["total"], index)
        self._ema.update()
        for turn in range(config.fake_steps):
            metrics |= self._fake_step(made, index, turn)
        return metrics

    def _student_losses(
        self, piece: Piece, context: Float[Tensor, "b c h w"] | None, index: int
    ) -> tuple[Float[Tensor, "b c h w"], StudentLosses, dict[str, float]]:
        config, roles, batch = self._config, self._parts.roles, piece.batch
        x0 = generate(self._parts, piece, self._unroll)
        t, noise = self._query(piece), piece.draws.noise()
        real = guided_teacher(roles.teacher, config, piece, context, index)

        def fake(x: Float[Tensor, "b c h w"], time: Float[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
            return roles.fake.velocity(x, time, piece.caption, context)

        dmd = dmd_loss(x0, real, fake, t, noise, NORMALISERS[config.normaliser])
        judged, verdict = self._judge(piece, x0, index)
        reference = reference_loss(x0, piece.reference, does_nothing(batch).to(x0.device))
        drift = preservation_loss(x0, piece.reference, self._kept(roles.teacher, config, piece))
        redraw = self._redraw(piece, x0) if config.redraw_weight > 0 else torch.zeros_like(drift)
        return x0, student_losses(self._weights, judged, dmd, reference, drift, redraw), verdict

    def _redraw(self, piece: Piece, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """How far each sample is from what the teacher makes of it."""
        config, teacher = self._config, self._parts.roles.teacher
        context = CONTEXTS[config.redraw_context](teacher, config, piece)
        t = query_times(piece.draws.uniform(), config.redraw_low, config.redraw_high, 1.0)
        return redraw_loss(
            x0,
            lambda x, time: teacher.velocity(x, time, piece.caption, context),
            t,
            piece.draws.noise(),
            config.redraw_steps,
            NORMALISERS[config.normaliser],
        )

    def _judge(
        self, piece: Piece, x0: Float[Tensor, "b c h w"], index: int
    ) -> tuple[Float[Tensor, " b"], dict[str, float]]:
        """Judge loss per sample, and how many questions of each kind were asked and answered right."""
        batch = piece.batch
        questions = questions_about(batch, self._config.questions, self._config.inverted)
        temperature = ramp(index, self._config.temperature_ramp, self._config.temperature_start)
        with torch.set_grad_enabled(self._config.judge_weight > 0):  # else it only watches, and keeps no activations
            pixels = self._parts.roles.student.decode_latents(x0)
            answered = self._ask(batch.reference, pixels, questions, temperature)
        verdict = count_right("judge", answered.odds, questions)
        recorded = (index + 1) % self._parts.recipe.logging.every == 0 or index + 1 == self.steps
        if self._parts.bystander is not None and recorded:
            with torch.no_grad():
                odds = self._parts.bystander.yes_minus_no(batch.reference, pixels, questions)
            verdict |= count_right("bystander", odds, questions)
        return answered.loss, verdict

    def _fake_step(self, made: Sequence[Made], index: int, turn: int) -> dict[str, float]:
        roles = self._parts.roles
        roles.activate("fake")
        losses = (
            denoising_loss(
                shown.x0,
                lambda x, t, shown=shown: roles.fake.velocity(x, t, shown.piece.caption, shown.context),
                self._query(shown.piece),
                shown.piece.draws.noise(),
            ).mean()
            for shown in self._shown(made, index, turn)
        )
        loss = self._parts.ranks.mean(accumulate(losses, len(made)))
        outcome = self._fake.step(loss, index)
        return {"fake": loss, "fake_grad_norm": outcome["grad_norm"], "fake_skipped": outcome["skipped"]}

    def _query(self, piece: Piece) -> Float[Tensor, " b"]:
        config = self._config
        return query_times(piece.draws.uniform(), config.query_low, config.query_high, config.query_shift)

    def state(self) -> State:
        models = {"student": self._student.state(), "fake": self._fake.state(), "ema": self._ema.state()}
        return models | {"questions": VERSION}

    def load_state(self, state: State) -> None:
        require_same_questions(state)
        self.begin()
        self._student.load_state(state["student"])
        self._fake.load_state(state["fake"])
        self._ema.load_state(state["ema"])

    def samples(self, index: int) -> Image | None:
        with self._ema.applied():
            return self._parts.sampler.grid()

    def weights(self) -> dict[str, Tensor]:
        """The averaged student: what is shipped."""
        return self._ema.weights()
