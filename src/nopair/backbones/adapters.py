"""Writes a trained adapter alone, as the LoRA file that stock diffusers loads onto the base it was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from diffusers.loaders.lora_pipeline import ZImageLoraLoaderMixin
from safetensors import SafetensorError
from torch import Tensor

from nopair.errors import OutputError

FILE: Final = "pytorch_lora_weights.safetensors"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


def save_adapter(weights: Mapping[str, Tensor], scale: float, folder: Path) -> None:
    """Write `folder`/pytorch_lora_weights.safetensors, for `pipeline.load_lora_weights(folder)` of any known family.

    `weights` are an adapter as `nopair.backbones.roles.LoraRoles.trainable` names it: for each adapted module
    `<module>.lora_A.weight`, whose first axis is the rank, and `<module>.lora_B.weight`. `scale` is alpha / rank, which
    is one for all modules whatever their ranks. Weights are written in their own dtypes.

    What is loaded equals the merged export where the base's transformer is the one that was trained. Stable Diffusion 3
    is the exception to know: its reference enters by weights that the published base lacks, so its adapter loads only
    onto a base saved by nopair (`StableDiffusion3Backbone.save`).

    Raises:
        ValueError: an A without a B, a tensor that is neither, or ranks that differ.
        OutputError: the folder cannot be written.
    """
    modules = _modules(weights)
    ranks = {module: len(weights[module + DOWN]) for module in modules}
    alphas = {module: scale * rank for module, rank in ranks.items()}
    first = modules[0]
    check_adapter(folder)
    try:
        # All families agree on the file, so any family's writer will do.
        ZImageLoraLoaderMixin.save_lora_weights(
            folder,
            transformer_lora_layers={name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()},
            transformer_lora_adapter_metadata={
                "r": ranks[first],
                "lora_alpha": alphas[first],
                # peft finds the entry of a module by the end of its name, unless told where the name begins
                "rank_pattern": {f"^{module}": rank for module, rank in ranks.items() if rank != ranks[first]},
                "alpha_pattern": {f"^{module}": value for module, value in alphas.items() if value != alphas[first]},
                "target_modules": modules,
            },
        )
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder}: cannot write the adapter ({error}); check space and rights") from None


def check_adapter(folder: Path) -> None:
    """Find out before training that the adapter's folder is a file. Raises OutputError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, not a folder; choose another place for the adapter")


def _modules(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the adapted modules.

    Raises:
        ValueError: the weights are not pairs that fit each other.
    """
    modules = sorted({name.removesuffix(DOWN).removesuffix(UP) for name in weights})
    wanted = {module + end for module in modules for end in (DOWN, UP)}
    if wanted != weights.keys() or not modules:
        raise ValueError(f"not an adapter: {sorted(wanted ^ weights.keys())[:1]} of {len(weights)} tensors")
    for module in modules:
        down, up = weights[module + DOWN], weights[module + UP]
        if len(down) != up.shape[1]:
            raise ValueError(f"{module}: A has rank {len(down)}, B has rank {up.shape[1]}")
    return modules
