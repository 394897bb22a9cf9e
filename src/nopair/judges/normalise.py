"""What the image processors of all families end with, and the check that they do nothing that is not done here."""

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
            "resample": (int(processor.resample), int(kernel)),
            "do_resize": (bool(processor.do_resize), True),
            "do_rescale": (bool(processor.do_rescale), True),
            "rescale_factor": (round(255 * processor.rescale_factor, 6), 1.0),
            "do_normalize": (bool(processor.do_normalize), True),
        }
        for name, (found, needed) in {**facts, **expected}.items():
            if found != needed:
                raise ModelError(
                    f"the judge's image processor has {name} {found}, but {needed} is needed; "
                    "use the checkpoint's own preprocessor_config.json"
                )
        red, green, blue = processor.image_mean
        red_std, green_std, blue_std = processor.image_std
        return cls((red, green, blue), (red_std, green_std, blue_std))

    def __call__(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Normalised pixels."""
        mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std
