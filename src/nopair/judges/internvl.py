"""The InternVL3 and InternVL3.5 families (transformers `InternVLForConditionalGeneration`, "-HF" checkpoints).

The family's processor may cut an image into tiles by its aspect ratio. Here an image is always one square tile, as the
processor makes it with `crop_to_patches=False`: squashed, not padded. It costs 256 tokens at the family's own sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import GotOcr2ImageProcessorPil, InternVLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nopair.errors import ModelError
from nopair.judges.folder import load_parts
from nopair.judges.normalise import Normalisation
from nopair.judges.prompts import ImageMarks, Rows
from nopair.judges.resample import Kernel, resize
from nopair.judges.vision_language import Shown, VisionLanguageJudge, pooled
from nopair.precision import Precision


@dataclass(frozen=True, eq=False)
class InternVL:
    """A `nopair.judges.vision_language.Family`; `side` is the vision tower's, in pixels."""

    model: InternVLForConditionalGeneration
    side: int
    normalise: Normalisation

    @classmethod
    def of(cls, model: InternVLForConditionalGeneration, processor: GotOcr2ImageProcessorPil) -> "InternVL":
        """The model with the preparation its processor makes.

        Raises:
            ModelError: they disagree about the size, images are not square, or the processor does something else.
        """
        side, _ = _vision_sizes(model)
        size: Any = processor.size
        facts = {"size": ((size.height, size.width), (side, side))}
        return cls(model, side, Normalisation.of(processor, Kernel.BICUBIC, facts))

    @property
    def marks(self) -> ImageMarks:
        """The processor puts `<img>` and `</img>` around the tokens of an image."""
        return ImageMarks(self.model.config.image_token_id, before=("<img>",), after=("</img>",))

    def image_tokens(self, height: int, width: int) -> int:
        """The same for every size."""
        side, patch = _vision_sizes(self.model)
        return int(side // patch * self.model.config.downsample_ratio) ** 2

    def prepare(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 side side"]:
        """The vision tower's input in fp32, equal to the processor's up to its rounding to 8 bits."""
        return self.normalise(resize(pixels.float().clamp(0, 1), self.side, self.side, Kernel.BICUBIC))

    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 token d"]:
        """See `Family.features`."""
        packed: Any = self.model.get_image_features(self.prepare(pixels).to(self.model.dtype))
        return packed.pooler_output[:, None]

    def inputs(self, rows: Rows, shown: Sequence[Shown]) -> dict[str, Any]:
        """See `Family.inputs`."""
        features: Any = pooled(shown)
        return {
            "position_ids": rows.positions,
            "mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=features)},
        }


def load(folder: Path, precision: Precision) -> VisionLanguageJudge:
    """A frozen judge from a checkpoint folder; for errors see `load_parts`, `InternVL.of` and `VisionLanguageJudge`."""
    parts = load_parts(
        folder,
        InternVLForConditionalGeneration,
        GotOcr2ImageProcessorPil,
        precision,
        plain=("model.vision_tower", "model.multi_modal_projector"),
    )
    return VisionLanguageJudge(InternVL.of(parts.model, parts.processor), parts.tokenizer)


def _vision_sizes(model: InternVLForConditionalGeneration) -> tuple[int, int]:
    """Side of the vision tower's input and of a patch, in pixels."""
    vision: Any = model.config.vision_config
    (height, width), (rows, columns) = vision.image_size, vision.patch_size
    if height != width or rows != columns:
        raise ModelError(f"the judge's vision tower takes images of {height}x{width}, not squares; use another judge")
    return height, rows
