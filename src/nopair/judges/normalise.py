"""What the image processors of all families end with, and the check that they do nothing that is not done here."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from nopair.errors import ModelError
from nopair.judges.resample import Kernel


@dataclass(frozen=True, slots=True)
class Normalisation:
    """(pixels - mean) / std per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, processor: Any, kernel: Kernel, facts: Mapping[str, tuple[object, object]]) -> "Normalisation":
        """The last step of a transformers image processor, after a check of all the others.

        Args:
            processor: an image processor.
            kernel: the resampling it must ask for.
            facts: further settings by name, each as (found, needed).

        Raises:
            ModelError: the processor asks for a step that has no equivalent here.
        """
        expected: dict[str, tuple[object, object]] = {
            "resample": (processor.resample, int(kernel)),
            "do_resize": (bool(processor.do_resize), True),
            "do_rescale": (bool(processor.do_rescale), True),
            "rescale_factor": (_per_byte(processor.rescale_factor), 1.0),
            "do_normalize": (bool(processor.do_normalize), True),
        }
        for name, (found, needed) in {**facts, **expected}.items():
            if found != needed:
                raise _other(name, found, needed)
        mean = _channels("image_mean", processor.image_mean)
        std = _channels("image_std", processor.image_std)
        if min(std) <= 0:
            raise _other("image_std", std, "more than 0")
        return cls(mean, std)

    def __call__(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Normalised pixels."""
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def _per_byte(factor: object) -> object:
    """A rescale factor in terms of 1/255, up to rounding; anything but a number as it is."""
    return round(255 * factor, 6) if isinstance(factor, int | float) else factor


def _channels(name: str, values: object) -> tuple[float, float, float]:
    """One finite number for each channel. Raises ModelError for anything else."""
    match values:
        case [int() | float() as red, int() | float() as green, int() | float() as blue]:
            channels = float(red), float(green), float(blue)
            if all(map(math.isfinite, channels)):
                return channels
    raise _other(name, values, "three finite numbers, one for each channel,")


def _other(name: str, found: object, needed: object) -> ModelError:
    return ModelError(
        f"the judge's image processor has {name} {found}, but {needed} is needed; "
        "use the checkpoint's own preprocessor_config.json"
    )
