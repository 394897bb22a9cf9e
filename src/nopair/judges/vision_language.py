"""A vision-language model as a judge: what is the same in every family.

Questions become rows of tokens, images become features, once each, and one call of the language model answers all
questions of all samples. What differs between families is behind `Family`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from nopair.judges.prompts import ImageMarks, Prompts, Rows
from nopair.judges.tokens import Answers, answers_of
from nopair.types import Question


@dataclass(frozen=True, slots=True)
class Shown:
    """One image at its place in a prompt: its features, and how large the image was in pixels.

    Level 0 takes the place of the image tokens; families with further levels add them deeper in the language model.
    """

    features: Float[Tensor, "level token d"]
    height: int
    width: int


@runtime_checkable
class Family(Protocol):
    """What a judge has to know of a family of models."""

    @property
    def model(self) -> PreTrainedModel:
        """The library's model for conditional generation."""
        ...

    @property
    def marks(self) -> ImageMarks:
        """How an image is written in a prompt."""
        ...

    def image_tokens(self, height: int, width: int) -> int:
        """Tokens an image of this size costs in the language model.

        Raises:
            JudgeError: the family cannot take images of this size.
        """
        ...

    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch level token d"]:
        """Images as the language model sees them, with gradient; RGB, clamped to [0, 1] first."""
        ...

    def inputs(self, rows: Rows, shown: Sequence[Shown]) -> dict[str, Any]:
        """What the model's `forward` needs beside ids and mask: features, and how positions are counted.

        Args:
            rows: token ids with every image spread over its tokens.
            shown: the images in the order in which all rows, one after another, show them.
        """
        ...


class VisionLanguageJudge:
    """A model that answers Yes/No questions about images; a `nopair.judges.base.Judge`.

    Attributes:
        family: the model and how to use it. Loading freezes the model; one in training may be given as well.
        tokenizer: of the same checkpoint.
        answers: the tokens that mean Yes and No.
    """

    def __init__(self, family: Family, tokenizer: PreTrainedTokenizerBase) -> None:
        """Puts the parts together.

        Raises:
            JudgeError: Yes and No cannot be told apart by one token, or the template leaves out images.
            ModelError: the tokenizer lacks a padding token, a template, or the family's image tokens.
        """
        self.family = family
        self.tokenizer = tokenizer
        self.prompts = Prompts(tokenizer, family.marks)
        self.answers: Answers = answers_of(tokenizer)

    @property
    def model(self) -> PreTrainedModel:
        """The family's model."""
        return self.family.model

    def to(self, device: torch.device | str) -> "VisionLanguageJudge":
        """Move the model to `device`, in place, and return self. A quantised model is already where it belongs."""
        self.model.to(device)  # pyright: ignore[reportArgumentType]
        return self

    def checkpoint(self) -> None:
        """From now on, recompute activations in the backward pass instead of keeping them. Changes no result.

        The library does so in train mode only. Just the layers that recompute are told that they train, and not what
        is in them, so that dropout stays off.
        """
        self.model.activation_checkpointing_enable()
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True

    @property
    def answer_tokens(self) -> tuple[int, int]:
        """See `nopair.judges.base.VocabularyJudge`."""
        return self.answers.usual

    def yes_minus_no(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question"]:
        """See `nopair.judges.base.Judge.yes_minus_no`. Two vision calls at most and one language-model call.

        Images may be on another device than the judge; the answers are where `edited` is.
        """
        places, logits = self._answered(reference, edited, questions)
        table = edited.new_zeros(len(questions), max(map(len, questions), default=0), dtype=torch.float32)
        return table if logits is None else table.index_put(places, self.odds(logits).to(table))

    def answer_logits(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question vocabulary"]:
        """See `nopair.judges.base.VocabularyJudge`."""
        places, logits = self._answered(reference, edited, questions)
        size = 0 if logits is None else logits.shape[1]  # nothing is asked, so nothing is looked up
        table = edited.new_zeros(len(questions), max(map(len, questions), default=0), size, dtype=torch.float32)
        return table if logits is None else table.index_put(places, logits.to(table))

    def odds(self, logits: Float[Tensor, "*rows vocabulary"]) -> Float[Tensor, "*rows"]:
        """log p(Yes) - log p(No), in fp32, each summed over the spellings of the answer."""
        yes, no = (logits[..., list(ids)].float().logsumexp(dim=-1) for ids in (self.answers.yes, self.answers.no))
        return yes - no

    def _answered(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> tuple[tuple[Tensor, Tensor], Float[Tensor, "row vocabulary"] | None]:
        """(sample, column) of every question, and the logits of its answer; None if there is no question at all."""
        batch = len(questions)
        if not batch == len(reference) == len(edited):
            raise ValueError(f"{len(reference)} references, {len(edited)} edited images, {batch} rows of questions")
        prompts = [self.prompts.prompt(question.prompt) for row in questions for question in row]
        samples = [sample for sample, row in enumerate(questions) for _ in row]
        columns = [column for row in questions for column in range(len(row))]
        places = torch.tensor(samples), torch.tensor(columns)
        if not prompts:
            return places, None
        looks = list(zip(samples, prompts, strict=True))
        images = {True: self._look(edited)}
        if any(not shows_edited for prompt in prompts for shows_edited in prompt.shows_edited):
            with torch.no_grad():
                images[False] = self._look(reference)
        shown = [images[is_edited][sample] for sample, prompt in looks for is_edited in prompt.shows_edited]
        worth = {is_edited: views[0].features.shape[1] for is_edited, views in images.items()}
        rows = [self.prompts.expand(prompt, worth[True], worth.get(False, 0)) for prompt in prompts]
        return places, self._answer_logits(rows, shown)

    def encode_prompt(
        self, prompt: str, edited: tuple[int, int], reference: tuple[int, int] | None = None
    ) -> list[int]:
        """Token ids of a question's prompt, for images of these heights and widths (by default of one size).

        Raises:
            JudgeError: the prompt shows no image, or its words hold the image token; or the images are of a size that
                the family does not take.
        """
        worth = self.family.image_tokens(*edited), self.family.image_tokens(*(reference or edited))
        return self.prompts.expand(self.prompts.prompt(prompt), *worth)

    def _look(self, pixels: Float[Tensor, "batch 3 height width"]) -> list[Shown]:
        height, width = pixels.shape[-2:]
        features = self.family.features(pixels.to(self.model.device))
        return [Shown(own, height, width) for own in features.unbind()]

    def _answer_logits(self, rows: Sequence[Sequence[int]], shown: Sequence[Shown]) -> Float[Tensor, "row vocabulary"]:
        """Logits of the token after each row, in one language-model call."""
        padded = self.prompts.rows(rows, shown[0].features.device)
        output: Any = self.model(
            input_ids=padded.ids,
            attention_mask=padded.mask.long(),
            logits_to_keep=1,
            use_cache=False,
            **self.family.inputs(padded, shown),
        )
        return output.logits[:, -1]


def pooled(shown: Sequence[Shown]) -> Float[Tensor, "token d"]:
    """What takes the place of the image tokens of all rows, one after another."""
    return torch.cat([image.features[0] for image in shown])
