"""The SmolVLM family: the first generation and Idefics3 (transformers `Idefics3ForConditionalGeneration`), and SmolVLM2
(`SmolVLMForConditionalGeneration`), which is the same with videos.

The family's processor may cut an image into tiles. Here an image is always its "global" view alone, as the processor
makes it with `do_image_splitting=False`: resized to a long side, then squashed to a square, both with Lanczos.

The library drops images whose input is all zero, because it pads batches with such. Uniform grey may be just that, so
its vision tower and connector are called here one by one, and every image is seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import (
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.smolvlm.image_processing_pil_smolvlm import get_resize_output_image_size

from nopair.errors import ModelError
from nopair.judges.folder import load_parts
from nopair.judges.normalise import Normalisation
from nopair.judges.prompts import ImageMarks, Rows
from nopair.judges.resample import Kernel, resize
from nopair.judges.vision_language import Shown, VisionLanguageJudge, pooled
from nopair.precision import Precision

Model = Idefics3ForConditionalGeneration | SmolVLMForConditionalGeneration
Processor = Idefics3ImageProcessorPil | SmolVLMImageProcessorPil


@dataclass(frozen=True, eq=False)
class SmolVLM:
    """A `nopair.judges.vision_language.Family`; sides in pixels: `long` of the first resize, `side` of the tower."""

    model: Model
    long: int
    side: int
    normalise: Normalisation

    @classmethod
    def of(cls, model: Model, processor: Processor) -> "SmolVLM":
        """The model with the preparation its processor makes.

        Raises:
            ModelError: they disagree about the size, or the processor does something else.
        """
        vision: Any = model.config.vision_config
        settings: Any = processor
        long, side = settings.size.longest_edge, settings.max_image_size["longest_edge"]
        facts = {"max_image_size": (side, vision.image_size)}
        if long is None:
            raise ModelError(
                "the judge's image processor has no longest_edge; use the checkpoint's own preprocessor_config.json"
            )
        return cls(model, long, side, Normalisation.of(processor, Kernel.LANCZOS, facts))

    @property
    def marks(self) -> ImageMarks:
        """What the processor writes around the tokens of an image that is not cut into tiles."""
        around = "<fake_token_around_image>"
        return ImageMarks(self.model.config.image_token_id, before=(around, "<global-img>"), after=(around,))

    def image_tokens(self, height: int, width: int) -> int:
        """The same for every size."""
        return self.model.model.image_seq_len

    def prepare(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 side side"]:
        """The vision tower's input in fp32, equal to the processor's up to its roundings to 8 bits."""
        pixels = pixels.float().clamp(0, 1)
        sized: Any = pixels  # the library looks at its shape only
        pixels = resize(pixels, *get_resize_output_image_size(sized, self.long), Kernel.LANCZOS)
        return self.normalise(resize(pixels, self.side, self.side, Kernel.LANCZOS))

    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 token d"]:
        """See `Family.features`."""
        inner = self.model.model
        seen = inner.vision_model(self.prepare(pixels).to(self.model.dtype)).last_hidden_state
        return inner.connector(seen)[:, None]

    def inputs(self, rows: Rows, shown: Sequence[Shown]) -> dict[str, Any]:
        """See `Family.inputs`."""
        features: Any = [pooled(shown)]
        return {
            "position_ids": rows.positions,
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)},
        }


def load_idefics3(folder: Path, precision: Precision) -> VisionLanguageJudge:
    """A frozen judge of the first generation from a checkpoint folder; for errors see `load_smolvlm`."""
    return _load(folder, precision, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil)


def load_smolvlm(folder: Path, precision: Precision) -> VisionLanguageJudge:
    """A frozen judge from a checkpoint folder; for errors see `load_parts`, `SmolVLM.of` and `VisionLanguageJudge`."""
    return _load(folder, precision, SmolVLMForConditionalGeneration, SmolVLMImageProcessorPil)


def _load(folder: Path, precision: Precision, model: type[Model], processor: type[Processor]) -> VisionLanguageJudge:
    parts = load_parts(folder, model, processor, precision, plain=("model.vision_model", "model.connector"))
    return VisionLanguageJudge(SmolVLM.of(parts.model, parts.processor), parts.tokenizer)
