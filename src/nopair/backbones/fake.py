"""A backbone for tests: the `Backbone` protocol in a few thousand weights that learn; no files, no model libraries."""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nopair.types import Text

TEXT_WIDTH = 16


class ToyTransformer(nn.Module):
    """Two residual convolutions, modulated by time and the mean of the words. Any image size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.noisy = nn.Conv2d(3, width, 3, padding=1)
        self.reference = nn.Conv2d(3, width, 3, padding=1)
        self.condition = nn.Linear(TEXT_WIDTH + 2, 2 * width)
        self.hidden = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 3, 1)

    def forward(
        self,
        noisy: Float[Tensor, "b 3 h w"],
        t: Float[Tensor, " b"],
        words: Float[Tensor, "b d"],
        reference: Float[Tensor, "b 3 h w"] | None,
    ) -> Float[Tensor, "b 3 h w"]:
        """Velocity; `words` is the mean word embedding of each prompt."""
        time = torch.stack([torch.cos(math.pi * t), torch.sin(math.pi * t)], dim=1)
        scale, offset = self.condition(torch.cat([words, time], dim=1))[..., None, None].chunk(2, dim=1)
        x = self.noisy(noisy) if reference is None else self.noisy(noisy) + self.reference(reference)
        x = functional.silu(x * (1 + scale) + offset)
        return self.out(x + functional.silu(self.hidden(x)))


@dataclass(frozen=True, eq=False)
class ToyBackbone:
    """Fake `Backbone` for tests. Latents are the pixels, scaled to [-1, 1]; a prompt is a bag of hashed words.

    The same prompt has the same features in every process; word order, case and punctuation do not count.
    """

    transformer: nn.Module
    shift: float = 3.0

    @classmethod
    def build(cls, seed: int, width: int = 16) -> "ToyBackbone":
        """A random one; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(ToyTransformer(width))

    @property
    def adapter_ranks(self) -> Mapping[str, int]:
        """None."""
        return {}

    def shift_for(self, height: int, width: int, steps: int) -> float:
        """The constant it was built with."""
        return self.shift

    def to(self, device: torch.device | str) -> "ToyBackbone":
        """Move the transformer to `device`, in place, and return self."""
        self.transformer.to(device)
        return self

    def drop_text_encoder(self) -> None:
        """Nothing to do: there is none."""

    def checkpoint(self) -> None:
        """Nothing to do: there are no activations worth recomputing."""

    def prompt_tokens(self, prompt: str) -> tuple[int, int]:
        """A token a word, and any number of them is read."""
        words = len(prompt.split())
        return words, words

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """One token a word, none for the empty prompt."""
        words = [sorted(re.findall(r"\w+", prompt.lower())) for prompt in prompts]
        features = torch.zeros(len(prompts), max([1, *map(len, words)]), TEXT_WIDTH)
        for row, prompt_words in zip(features, words, strict=True):
            for column, word in enumerate(prompt_words):
                row[column] = _embed(word)
        return Text(features, tuple(map(len, words)))

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 3 height width"]:
        """Pixels in [0, 1] to latents in [-1, 1]."""
        return pixels * 2 - 1

    def decode_latents(self, latents: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Latents to pixels, not clamped."""
        return latents / 2 + 0.5

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(3, height, width): any size will do."""
        return 3, height, width

    def velocity(
        self,
        noisy: Float[Tensor, "b 3 h w"],
        t: Float[Tensor, " b"],
        text: Text,
        reference: Float[Tensor, "b 3 h w"] | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """See `Backbone.velocity`."""
        lengths = torch.tensor(text.lengths, device=noisy.device)[:, None]
        features = text.features.to(noisy.device)
        valid = torch.arange(features.shape[1], device=noisy.device) < lengths
        words = features.masked_fill(~valid[..., None], 0).sum(dim=1) / lengths.clamp(min=1)
        return self.transformer(noisy, t, words.to(noisy.dtype), reference)

    def with_transformer(self, transformer: nn.Module) -> "ToyBackbone":
        """The same fake around another transformer."""
        return dataclasses.replace(self, transformer=transformer)


def _embed(word: str) -> Float[Tensor, " d"]:
    """A fixed random vector of the word (crc32, because `hash` differs between processes)."""
    return torch.randn(TEXT_WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))
