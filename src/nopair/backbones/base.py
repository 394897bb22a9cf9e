"""What the rest of nopair may know of a base model: the `Backbone` protocol, and `StoredBackbone` for one on disk.

A backbone is a text encoder and an image autoencoder, both frozen, around ONE transformer that predicts velocities. It
owns how a reference image is attached to the generation; nobody else splits, joins or pads a token sequence.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nopair.types import Text


@runtime_checkable
class Backbone(Protocol):
    """A text-to-image diffusion transformer with its codecs, in nopair's conventions.

    Pixels are RGB in [0, 1]. Latents are normalised as the base expects them. Time runs from 0 (clean) to 1 (noise):
    x_t = (1 - t) x0 + t ε and v = ε - x0. An adapter converts to these whatever its family uses inside.
    Each sample's result depends on its own row only, whatever else is in the batch.
    """

    @property
    def transformer(self) -> nn.Module:
        """The one module that is trained, copied, given adapters and exported."""
        ...

    @property
    def adapter_ranks(self) -> Mapping[str, int]:
        """Modules that see the reference and nothing else does, by name, with the least rank an adapter of them may
        have: where the base learns to take a reference through new weights, an editor cannot do without. Else empty.
        """
        ...

    def shift_for(self, height: int, width: int, steps: int) -> float:
        """Timestep shift of the base's scheduler for images of height x width pixels and so many sampling steps, for
        `nopair.method.flow.shift_time`. Many families have one for all; some shift larger images further.
        """
        ...

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Encode prompts (the empty string is the unconditional prompt). Without gradient."""
        ...

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """Latents of pixels in [0, 1]: the mode of the encoder's distribution, so no randomness."""
        ...

    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Pixels of latents, around [0, 1] but NOT clamped, differentiable in `latents`."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, rows, columns) of the latents of a height x width image.

        Raises:
            ConfigError: the base cannot take images of this size.
        """
        ...

    def velocity(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        text: Text,
        reference: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Velocity v at (x_t, t) given the prompts and, if any, the clean latents of a reference image.

        Differentiable in `noisy`, `reference` and the transformer's parameters. Without `reference` it is exactly the
        base's own text-to-image prediction.
        """
        ...

    def with_transformer(self, transformer: nn.Module) -> "Backbone":
        """The same codecs around another transformer of the same family."""
        ...


@runtime_checkable
class StoredBackbone(Backbone, Protocol):
    """A backbone that was read from a folder and can be written to one: what every family's adapter is."""

    def save(self, folder: Path) -> None:
        """Write the folder that `nopair.backbones.load.load_backbone` reads, in the modules' own dtypes.

        Raises:
            OutputError: the folder cannot be written.
        """
        ...

    def to(self, device: torch.device | str) -> "StoredBackbone":
        """Move all modules to `device`, in place, and return self."""
        ...

    def prompt_tokens(self, prompt: str) -> tuple[int, int]:
        """How many tokens a prompt takes, its template included, and how many are read; `encode_text` cuts the rest."""
        ...

    def drop_text_encoder(self) -> None:
        """Free its memory. `encode_text` and `save` do not work any more, for any backbone that shares it."""
        ...

    def checkpoint(self) -> None:
        """From now on, recompute activations of the transformer (in train mode) and of the decoder in the backward
        pass, instead of keeping them. Changes no result.
        """
        ...

    def with_transformer(self, transformer: nn.Module) -> "StoredBackbone":
        """The same codecs around another transformer of the same family."""
        ...
