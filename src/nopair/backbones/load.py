"""Open a base of whatever family a pipeline folder holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from nopair.backbones.base import StoredBackbone
from nopair.backbones.folder import pipeline_class
from nopair.errors import ModelError
from nopair.precision import Bits

FAMILIES: Final = ("Flux2KleinPipeline", "QwenImagePipeline", "StableDiffusion3Pipeline", "ZImagePipeline")
"""Known families by the `_class_name` of their model_index.json."""


def load_backbone(folder: Path, dtype: torch.dtype = torch.float32, bits: Bits | None = None) -> StoredBackbone:
    """Read an ordinary diffusers pipeline folder, safetensors only; nothing is downloaded, no code in it is run.

    With `bits`, the matrices of transformer and text encoders are quantised on the current GPU while they are read.

    Raises:
        ModelError: the folder is missing, incomplete, or of a family not in `FAMILIES`; or `bits` without a GPU.
        MissingExtraError: `bits` without bitsandbytes.
    """
    return _loader(folder)(folder, dtype, bits)


def _loader(folder: Path) -> Callable[[Path, torch.dtype, Bits | None], StoredBackbone]:
    """What reads the family that `folder` holds; a family's library code is imported only where it is needed."""
    match family := pipeline_class(folder):
        case "Flux2KleinPipeline":
            from nopair.backbones.flux2 import Flux2KleinBackbone

            return Flux2KleinBackbone.load
        case "QwenImagePipeline":
            from nopair.backbones.qwen_image import QwenImageBackbone

            return QwenImageBackbone.load
        case "StableDiffusion3Pipeline":
            from nopair.backbones.sd3 import StableDiffusion3Backbone

            return StableDiffusion3Backbone.load
        case "ZImagePipeline":
            from nopair.backbones.zimage import ZImageBackbone

            return ZImageBackbone.load
        case _:
            raise ModelError(f"{folder}: holds a {family}; nopair knows {', '.join(FAMILIES)}")


def require_same_dialect(base: Path, other: Path) -> None:
    """Check that the transformer of one folder may take the place of another's: that it reads references alike.

    Only Z-Image has more than one way (see `nopair.backbones.zimage_reference`), and weights do not tell them apart.

    Raises:
        ModelError: it does not, or a folder's dialect cannot be read.
    """
    from nopair.backbones.zimage_reference import read_dialect

    wanted, found = read_dialect(base), read_dialect(other)
    if wanted != found:
        raise ModelError(
            f"{other}: was trained with the reference as {found.reference} and thinking {found.thinking}, {base} has "
            f"{wanted.reference} and {wanted.thinking}; take a base and a student of the same kind"
        )
