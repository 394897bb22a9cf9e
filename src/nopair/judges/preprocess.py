"""The LLaVA-OneVision image processor for prompts with several images, differentiable and batched.

Follows `LlavaOnevisionImageProcessorPil` of transformers for `batch_num_images != 1`: pad to a square with the mean
colour, resize with Pillow's bicubic, normalise. No tiles, so that every image costs the same number of tokens.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import LlavaOnevisionImageProcessorPil

from nopair.errors import ModelError

_BICUBIC = 3
"""`PIL.Image.Resampling.BICUBIC`."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """RGB in [0, 1] of any size to the `side` × `side` input of a vision tower; `mean` and `std` per channel."""

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, processor: LlavaOnevisionImageProcessorPil, side: int) -> "Preprocess":
        """The same preparation as `processor` makes, for a vision tower of `side` pixels.

        Raises:
            ModelError: the processor asks for a step that has no equivalent here, or for another size.
        """
        size: Any = processor.size
        expected = {
            "size": ((size.height, size.width), (side, side)),
            "resample": (int(processor.resample), _BICUBIC),
            "do_resize": (bool(processor.do_resize), True),
            "do_center_crop": (bool(processor.do_center_crop), False),
            "do_rescale": (bool(processor.do_rescale), True),
            "rescale_factor": (round(255 * processor.rescale_factor, 6), 1.0),
            "do_normalize": (bool(processor.do_normalize), True),
        }
        for name, (found, wanted) in expected.items():
            if found != wanted:
                raise ModelError(
                    f"the judge's image processor has {name} {found}, but {wanted} is needed; "
                    "use the checkpoint's own preprocessor_config.json"
                )
        red, green, blue = processor.image_mean
        red_std, green_std, blue_std = processor.image_std
        return cls(side, (red, green, blue), (red_std, green_std, blue_std))

    def __call__(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 side side"]:
        """Normalised input of the vision tower, in fp32.

        Equal to the processor on 8-bit images up to the processor's own rounding to 8 bits (at most 1.2/255 before
        normalisation). Values outside [0, 1] are clamped first, as they would be in a file.
        """
        square = self._pad_to_square(pixels.float().clamp(0, 1))
        mean, std = (square.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (self._resize(square) - mean) / std

    def _pad_to_square(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 long long"]:
        height, width = pixels.shape[-2:]
        if height == width:
            return pixels
        long = max(height, width)
        # The processor pads 8-bit images, so the mean colour is truncated to 8 bits.
        colour = pixels.new_tensor([int(255 * mean) / 255 for mean in self.mean])
        square = colour.view(1, 3, 1, 1).repeat(len(pixels), 1, long, long)
        top, left = (long - height) // 2, (long - width) // 2
        square[:, :, top : top + height, left : left + width] = pixels
        return square

    def _resize(self, square: Float[Tensor, "batch 3 long long"]) -> Float[Tensor, "batch 3 side side"]:
        """Pillow's bicubic: columns first, then rows, each pass clipped to the 8-bit range."""
        long = square.shape[-1]
        if long == self.side:
            return square
        for size in ((long, self.side), (self.side, self.side)):
            square = interpolate(square, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return square
