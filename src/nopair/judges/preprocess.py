"""The LLaVA-OneVision image processor for prompts with several images, differentiable and batched.

Follows `LlavaOnevisionImageProcessorPil` of transformers for `batch_num_images != 1`: pad to a square with the mean
colour, resize with Pillow's bicubic, normalise. No tiles, so that every image costs the same number of tokens.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformers import LlavaOnevisionImageProcessorPil

from nopair.judges.normalise import Normalisation
from nopair.judges.resample import Kernel, resize


@dataclass(frozen=True, slots=True)
class Preprocess:
    """RGB in [0, 1] of any size to the `side` × `side` input of a vision tower."""

    side: int
    normalise: Normalisation

    @classmethod
    def of(cls, processor: LlavaOnevisionImageProcessorPil, side: int) -> "Preprocess":
        """The same preparation as `processor` makes, for a vision tower of `side` pixels.

        Raises:
            ModelError: the processor asks for a step that has no equivalent here, or for another size.
        """
        size: Any = processor.size
        facts = {
            "size": ((size.height, size.width), (side, side)),
            "do_center_crop": (bool(processor.do_center_crop), False),
        }
        return cls(side, Normalisation.of(processor, Kernel.BICUBIC, facts))

    def __call__(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 side side"]:
        """Normalised input of the vision tower, in fp32.

        Equal to the processor on 8-bit images up to the processor's own rounding to 8 bits (at most 1.2/255 before
        normalisation). Values outside [0, 1] are clamped first, as they would be in a file.
        """
        square = self._pad_to_square(pixels.float().clamp(0, 1))
        return self.normalise(resize(square, self.side, self.side, Kernel.BICUBIC))

    def _pad_to_square(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 long long"]:
        height, width = pixels.shape[-2:]
        if height == width:
            return pixels
        long = max(height, width)
        # The processor pads 8-bit images, so the mean colour is truncated to 8 bits.
        colour = pixels.new_tensor([int(255 * mean) / 255 for mean in self.normalise.mean])
        square = colour.view(1, 3, 1, 1).repeat(len(pixels), 1, long, long)
        top, left = (long - height) // 2, (long - width) // 2
        square[:, :, top : top + height, left : left + width] = pixels
        return square
