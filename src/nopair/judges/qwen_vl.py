"""The Qwen2.5-VL and Qwen3-VL families, which take images at their own shape.

Both share an image processor, a prompt and how positions are counted (three axes for the tokens of an image). Qwen3-VL
adds features of further layers of its vision tower to the first layers of its language model: they travel as further
levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from nopair.errors import JudgeError
from nopair.judges.folder import load_parts
from nopair.judges.normalise import Normalisation
from nopair.judges.prompts import ImageMarks, Rows
from nopair.judges.resample import Kernel, resize
from nopair.judges.vision_language import Shown, VisionLanguageJudge, pooled
from nopair.precision import Precision


@dataclass(frozen=True, slots=True)
class QwenPreparation:
    """The families' image processor: resize to whole patches within bounds of area, normalise, cut into patches.

    `patch` and `merge` are the side of a patch in pixels and of a token in patches; `frames` is how often a still image
    is repeated in time; `least` and `most` bound the area in pixels.
    """

    patch: int
    merge: int
    frames: int
    least: int
    most: int
    normalise: Normalisation

    @classmethod
    def of(cls, processor: Qwen2VLImageProcessorPil, vision: Any) -> "QwenPreparation":
        """The preparation of `processor` for the vision tower configured by `vision`.

        Raises:
            ModelError: they disagree, or the processor does something else.
        """
        settings: Any = processor
        facts = {
            "patch_size": (settings.patch_size, vision.patch_size),
            "merge_size": (settings.merge_size, vision.spatial_merge_size),
            "temporal_patch_size": (settings.temporal_patch_size, vision.temporal_patch_size),
        }
        return cls(
            settings.patch_size,
            settings.merge_size,
            settings.temporal_patch_size,
            settings.size.shortest_edge,
            settings.size.longest_edge,
            Normalisation.of(processor, Kernel.BICUBIC, facts),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches that an image of this size is cut into.

        Raises:
            JudgeError: the image is longer than the processor takes.
        """
        try:
            rows, columns = smart_resize(height, width, self.patch * self.merge, self.least, self.most)
        except ValueError as error:
            raise JudgeError(f"the judge cannot take images of {height}x{width} ({error}); crop them") from error
        return rows // self.patch, columns // self.patch

    def __call__(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "patch value"]:
        """Patches of all images, one after another, in fp32; equal to the processor's up to its rounding to 8 bits."""
        rows, columns = self.grid(*pixels.shape[-2:])
        size = rows * self.patch, columns * self.patch
        image = self.normalise(resize(pixels.float().clamp(0, 1), *size, Kernel.BICUBIC))
        # Patches of one token stand together: (token row, token column, row and column within the token).
        cut = image.view(
            len(image), 3, rows // self.merge, self.merge, self.patch, columns // self.merge, self.merge, self.patch
        ).permute(0, 2, 5, 3, 6, 1, 4, 7)
        in_time = cut[..., None, :, :].expand(*cut.shape[:-2], self.frames, self.patch, self.patch)
        return in_time.flatten(0, 4).flatten(1)


@dataclass(frozen=True, eq=False)
class QwenVL:
    """A `nopair.judges.vision_language.Family`."""

    model: Qwen2_5_VLForConditionalGeneration | Qwen3VLForConditionalGeneration
    prepare: QwenPreparation

    @property
    def marks(self) -> ImageMarks:
        """The template itself writes what stands around an image."""
        return ImageMarks(self.model.config.image_token_id)

    def image_tokens(self, height: int, width: int) -> int:
        """One for each square of `merge` x `merge` patches."""
        rows, columns = self.prepare.grid(height, width)
        return rows * columns // self.prepare.merge**2

    def features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch level token d"]:
        """See `Family.features`. One level in Qwen2.5-VL."""
        patches = self.prepare(pixels).to(self.model.dtype)
        grids: Any = self._grids([(pixels.shape[-2], pixels.shape[-1])] * len(pixels), pixels.device)
        packed: Any = self.model.get_image_features(patches, grids)
        levels = [packed.pooler_output]
        if isinstance(self.model, Qwen3VLForConditionalGeneration):
            levels += packed.deepstack_features
        return torch.stack([torch.stack(level) for level in levels], dim=1)

    def inputs(self, rows: Rows, shown: Sequence[Shown]) -> dict[str, Any]:
        """See `Family.inputs`. The library counts positions itself, from the grids and the kinds of token."""
        first: Any = [pooled(shown)]
        deeper: Any = [[torch.cat(level)] for level in zip(*(image.features[1:] for image in shown), strict=True)]
        if isinstance(self.model, Qwen3VLForConditionalGeneration):
            images = BaseModelOutputWithDeepstackFeatures(pooler_output=first, deepstack_features=deeper)
        else:
            images = BaseModelOutputWithPooling(pooler_output=first)
        return {
            "mm_encoder_outputs": {"image": images},
            "image_grid_thw": self._grids([(image.height, image.width) for image in shown], rows.ids.device),
            "mm_token_type_ids": (rows.ids == self.marks.image).int(),
        }

    def _grids(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Int[Tensor, "image 3"]:
        """Frames (1), rows and columns of patches of each image."""
        return torch.tensor([(1, *self.prepare.grid(*size)) for size in sizes], device=device)


def load_qwen2_5_vl(folder: Path, precision: Precision) -> VisionLanguageJudge:
    """A frozen Qwen2.5-VL; for errors see `load_parts`, `QwenPreparation.of` and `VisionLanguageJudge`."""
    return _load(folder, Qwen2_5_VLForConditionalGeneration, precision)


def load_qwen3_vl(folder: Path, precision: Precision) -> VisionLanguageJudge:
    """A frozen Qwen3-VL; for errors see `load_parts`, `QwenPreparation.of` and `VisionLanguageJudge`."""
    return _load(folder, Qwen3VLForConditionalGeneration, precision)


def _load(
    folder: Path,
    model_class: type[Qwen2_5_VLForConditionalGeneration | Qwen3VLForConditionalGeneration],
    precision: Precision,
) -> VisionLanguageJudge:
    parts = load_parts(folder, model_class, Qwen2VLImageProcessorPil, precision, plain=("model.visual",))
    prepare = QwenPreparation.of(parts.processor, parts.model.config.vision_config)
    return VisionLanguageJudge(QwenVL(parts.model, prepare), parts.tokenizer)
