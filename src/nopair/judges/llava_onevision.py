"""The LLaVA-OneVision family (transformers `LlavaOnevisionForConditionalGeneration`).

Every image goes the way the family gives to prompts with several images: one square view, no tiles, so one image costs
(side / patch)² + 1 tokens also in a question about a single image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nopair.errors import ModelError
from nopair.judges.folder import load_parts
from nopair.judges.preprocess import Preprocess
from nopair.judges.prompts import ImageMarks, Rows
from nopair.judges.tokens import Answers
from nopair.judges.vision_language import Shown, VisionLanguageJudge, pooled
from nopair.precision import Precision
from nopair.types import Question


@dataclass(frozen=True, eq=False)
class LlavaOnevision:
    """A `nopair.judges.vision_language.Family`."""

    model: LlavaOnevisionForConditionalGeneration
    prepare: Preprocess

    @property
    def marks(self) -> ImageMarks:
        """No tokens around an image."""
        return ImageMarks(self.model.config.image_token_id)

    def image_tokens(self, height: int, width: int) -> int:
        """The same for every size."""
        side, patch = _vision_sizes(self.model)
        # One more for the newline token; the "default" strategy drops the vision tower's first token.
        return (side // patch) ** 2 + 1 - (self.model.config.vision_feature_select_strategy == "default")

    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 token d"]:
        """See `Family.features`."""
        inputs = self.prepare(pixels).to(self.model.dtype)
        # Any number but 1 tells the library that an image is one of several: no tiles, and its size does not matter.
        several: Any = [max(2, len(inputs))]
        sizes = torch.full((len(inputs), 2), self.prepare.side)
        packed: Any = self.model.get_image_features(inputs, sizes, batch_num_images=several)
        return torch.stack(packed.pooler_output)[:, None]

    def inputs(self, rows: Rows, shown: Sequence[Shown]) -> dict[str, Any]:
        """See `Family.inputs`."""
        per_prompt: Any = [pooled(shown)]  # a list, as the library's own `get_image_features` has it
        return {
            "position_ids": rows.positions,
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=per_prompt)},
        }


def load(folder: Path, precision: Precision) -> VisionLanguageJudge:
    """A frozen judge from a checkpoint folder; for errors see `load_parts` and `VisionLanguageJudge`."""
    parts = load_parts(
        folder,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessorPil,
        precision,
        plain=("model.vision_tower", "model.multi_modal_projector"),
    )
    preprocess = Preprocess.of(parts.processor, _vision_sizes(parts.model)[0])
    return VisionLanguageJudge(LlavaOnevision(parts.model, preprocess), parts.tokenizer)


class LlavaOnevisionJudge:
    """A LLaVA-OneVision model as a judge whose parts can also be trained; a `nopair.judges.base.Judge`.

    Attributes:
        model: as given. `load` freezes it; a model that is still being trained may be given to the constructor.
        tokenizer, preprocess: of the same checkpoint.
        answers: the tokens that mean Yes and No.
        image_tokens: language-model tokens per image.
    """

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        preprocess: Preprocess,
    ) -> None:
        """Puts the parts together.

        Raises:
            JudgeError: Yes and No cannot be told apart by one token.
            ModelError: the vision tower is no square SigLIP, or the tokenizer has no padding token or no template.
        """
        self._family = LlavaOnevision(model, preprocess)
        side, _ = _vision_sizes(model)
        self.image_tokens: int = self._family.image_tokens(side, side)
        self._judge = VisionLanguageJudge(self._family, tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.answers: Answers = self._judge.answers

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "LlavaOnevisionJudge":
        """A frozen judge from an ordinary checkpoint folder: safetensors weights, tokenizer, image processor, template.

        Nothing is downloaded and no code from the folder is run.

        Raises:
            ModelError: the folder is missing, incomplete, or of another family.
            JudgeError: see the constructor.
        """
        judge = load(folder, Precision(dtype))
        assert isinstance(judge.family, LlavaOnevision)
        return cls(judge.family.model, judge.tokenizer, judge.family.prepare)

    def yes_minus_no(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question"]:
        """See `nopair.judges.base.Judge.yes_minus_no`. Two vision calls at most and one language-model call."""
        return self._judge.yes_minus_no(reference, edited, questions)

    def image_features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch token d"]:
        """Images as language-model tokens, `image_tokens` each, with gradient; RGB in [0, 1]."""
        return self._family.features(pixels)[:, 0]

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a question's prompt in the chat template, each image spread over `image_tokens` image tokens.

        Raises:
            JudgeError: the prompt shows no image, or its words hold the image token.
        """
        return self._judge.encode_prompt(prompt, (self.preprocess.side, self.preprocess.side))


def _vision_sizes(model: LlavaOnevisionForConditionalGeneration) -> tuple[int, int]:
    """Side of the vision tower's input and of a patch, in pixels."""
    vision = model.config.vision_config
    if isinstance(vision, SiglipVisionConfig):
        side, patch = vision.image_size, vision.patch_size
        if isinstance(side, int) and isinstance(patch, int):
            return side, patch
    raise ModelError(f"the judge's vision tower is no square SigLIP but {type(vision).__name__}; use another judge")
