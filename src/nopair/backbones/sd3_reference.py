"""How Stable Diffusion 3 is given a reference: as further channels of its input (see `nopair.backbones.sd3`)."""

from typing import Final

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import nn

REFERENCE_MODULE: Final = "pos_embed.proj"
"""The one module of the transformer that sees the reference: a target that no adapter of an editor can do without."""


def accept_reference(transformer: SD3Transformer2DModel) -> SD3Transformer2DModel:
    """Give a text-to-image transformer input channels for a reference, in place, and return it.

    Their weights are zero, so that its predictions stay what they are. One that has such channels stays as it is.

    Raises:
        ValueError: it has neither as many input channels as output channels nor twice as many.
    """
    patches, channels = transformer.pos_embed.proj, transformer.out_channels
    if patches.in_channels == 2 * channels:
        return transformer
    if patches.in_channels != channels:
        raise ValueError(f"{patches.in_channels} input channels, but {channels} or {2 * channels} were expected")
    old = patches.weight
    patches.weight = nn.Parameter(torch.cat([old.detach(), torch.zeros_like(old)], dim=1), old.requires_grad)
    patches.in_channels = 2 * channels
    transformer.register_to_config(in_channels=2 * channels, out_channels=channels)
    return transformer
