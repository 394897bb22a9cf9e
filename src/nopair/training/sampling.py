"""Sample grids: what the student makes of a few fixed references, beside the references."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from nopair.backbones.base import Backbone
from nopair.data.images import to_pillow
from nopair.method.rollout import rollout, sampler_levels
from nopair.training.phase import generator
from nopair.types import EditBatch


@dataclass(frozen=True, eq=False)
class Sampler:
    """Edits `batch` with `backbone` as an editor would; noise of sample k depends on (seed, k) only."""

    backbone: Backbone
    batch: EditBatch
    levels: Float[Tensor, " step"]
    seed: int

    @torch.no_grad()
    def pixels(self) -> Float[Tensor, "batch 3 height width"]:
        """The edited images, clamped to [0, 1]."""
        reference = self.backbone.encode_image(self.batch.reference)
        text = self.backbone.encode_text(self.batch.instructions)
        count = len(self.batch)
        sources = [generator(self.seed, "grid", k) for k in range(count)]
        noises = torch.stack(
            [torch.stack([torch.randn(reference.shape[1:], generator=s) for s in sources]) for _ in self.levels]
        ).to(reference)
        levels = sampler_levels(self.levels.to(reference.device), count)
        latents = rollout(lambda x, t: self.backbone.velocity(x, t, text, reference), noises, levels)
        return self.backbone.decode_latents(latents).clamp(0, 1)

    def grid(self) -> Image.Image:
        """References above, edits below."""
        columns = [torch.cat(pair, dim=1) for pair in zip(self.batch.reference.cpu(), self.pixels().cpu(), strict=True)]
        return to_pillow(torch.cat(columns, dim=2))
