"""A run's parts as they are, with a ledger told whose work is being done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from nopair.backbones.base import Backbone
from nopair.backbones.roles import Role, Roles
from nopair.judges.base import Judge, VocabularyJudge
from nopair.planning.ledger import Ledger
from nopair.types import Question, Text

TEXT, VAE, JUDGE, BYSTANDER = "text encoder", "VAE", "judge", "bystander"
NAMES: dict[Role, str] = {"student": "student", "teacher": "teacher", "fake": "fake score"}
GRADIENTS = "gradients"


@final
@dataclass(frozen=True, eq=False)
class CountedBackbone:
    """A `Backbone`. With `cached`, texts and references come from disk: encoding them costs nothing."""

    inner: Backbone
    name: str
    ledger: Ledger
    cached: bool

    @property
    def transformer(self) -> nn.Module:
        return self.inner.transformer

    @property
    def adapter_ranks(self) -> Mapping[str, int]:
        return self.inner.adapter_ranks

    def shift_for(self, height: int, width: int, steps: int) -> float:
        return self.inner.shift_for(height, width, steps)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.inner.latent_shape(height, width)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        if not self.cached:
            with self.ledger.owner(TEXT):
                return self.inner.encode_text(prompts)
        with self.ledger.paused():
            text = self.inner.encode_text(prompts)
        self.ledger.own([text.features] if text.pooled is None else [text.features, text.pooled], TEXT)
        return text

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        if not self.cached:
            with self.ledger.owner(VAE):
                return self.inner.encode_image(pixels)
        with self.ledger.paused():
            latents = self.inner.encode_image(pixels)
        self.ledger.own([latents], VAE)
        return latents

    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        with self.ledger.owner(VAE):
            return self.inner.decode_latents(latents)

    def velocity(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        text: Text,
        reference: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        with self.ledger.owner(self.name):
            return self.inner.velocity(noisy, t, text, reference)

    def with_transformer(self, transformer: nn.Module) -> Backbone:
        return self.inner.with_transformer(transformer)


@final
@dataclass(frozen=True, eq=False)
class CountedRoles:
    """`Roles`. When the fake score is activated for a step of its own, stage `fake_stage` begins."""

    inner: Roles
    ledger: Ledger
    cached: bool
    fake_stage: str

    @property
    def student(self) -> Backbone:
        return self._view(self.inner.student, "student")

    @property
    def teacher(self) -> Backbone:
        return self._view(self.inner.teacher, "teacher")

    @property
    def fake(self) -> Backbone:
        return self._view(self.inner.fake, "fake")

    def _view(self, backbone: Backbone, role: Role) -> Backbone:
        return CountedBackbone(backbone, NAMES[role], self.ledger, self.cached)

    def activate(self, role: Role) -> None:
        if role == "fake":
            self.ledger.stage(self.fake_stage)
        self.inner.activate(role)

    def backward(self, loss: Float[Tensor, ""], role: Role) -> None:
        self.inner.backward(loss, role)

    def trainable(self, role: Role) -> dict[str, nn.Parameter]:
        return self.inner.trainable(role)

    def export(self, role: Role, weights: Mapping[str, Tensor]) -> nn.Module:
        return self.inner.export(role, weights)


@final
@dataclass(frozen=True, eq=False)
class CountedJudge:
    """A `Judge`, and no more."""

    inner: Judge
    name: str
    ledger: Ledger

    def yes_minus_no(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question"]:
        with self.ledger.owner(self.name):
            return self.inner.yes_minus_no(reference, edited, questions)


@final
@dataclass(frozen=True, eq=False)
class CountedVocabularyJudge:
    """A `VocabularyJudge`."""

    inner: VocabularyJudge
    name: str
    ledger: Ledger

    @property
    def answer_tokens(self) -> tuple[int, int]:
        return self.inner.answer_tokens

    def yes_minus_no(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question"]:
        with self.ledger.owner(self.name):
            return self.inner.yes_minus_no(reference, edited, questions)

    def answer_logits(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question vocabulary"]:
        with self.ledger.owner(self.name):
            return self.inner.answer_logits(reference, edited, questions)

    def odds(self, logits: Float[Tensor, "*rows vocabulary"]) -> Float[Tensor, "*rows"]:
        with self.ledger.owner(self.name):
            return self.inner.odds(logits)


def counted_judge(judge: Judge, name: str, ledger: Ledger) -> Judge:
    """A judge that tells whose work it does; it has a vocabulary if `judge` has one."""
    if isinstance(judge, VocabularyJudge):
        return CountedVocabularyJudge(judge, name, ledger)
    return CountedJudge(judge, name, ledger)
