"""Pretraining of the tiny autoencoder: a stock AutoencoderKL with a factor of 4 and 4 latent channels, on random
scenes."""

import math
import random
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from PIL.Image import Image

from nopair.tiny.optim import best_device, cosine
from nopair.world.edits import random_scene
from nopair.world.render import render_batch
from nopair.world.scenes import SIZE

LATENT_CHANNELS: Final = 4
SCALING: Final = 0.76
"""One over the spread of the latents after training, as the checkpoint's scaling factor."""


def new_vae() -> AutoencoderKL:
    """0.65M parameters, random weights."""
    channels = (16, 32, 64)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(channels),  # pyright: ignore[reportArgumentType]
        block_out_channels=channels,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=SCALING,
        shift_factor=0.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


@dataclass(frozen=True, slots=True)
class VaeSettings:
    """`batch` scenes a step; peak learning rate; weight of the KL term (per latent value)."""

    steps: int = 1300
    batch: int = 32
    lr: float = 2e-3
    kl: float = 1e-4
    seed: int = 0


class VaePhase:
    """Absolute and squared error of the reconstruction, and a slight pull of the latents towards a unit Gaussian."""

    name = "vae"

    def __init__(self, settings: VaeSettings) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.steps = settings.steps
        self.device = best_device()
        self.vae = new_vae().to(self.device)  # pyright: ignore[reportArgumentType]
        self.begin()

    def begin(self) -> None:
        """A fresh optimiser."""
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), lr=self.settings.lr, betas=(0.9, 0.99))

    def step(self, index: int) -> dict[str, float]:
        """One optimizer step on fresh scenes; all randomness comes from (seed, index)."""
        rng = random.Random(f"{self.settings.seed}/vae/{index}")
        scenes = [random_scene(rng, least=0, most=4) for _ in range(self.settings.batch)]
        pixels = render_batch(scenes).to(self.device) * 2 - 1
        posterior = self.vae.encode(pixels).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
        source = torch.Generator(self.device).manual_seed(rng.getrandbits(60))
        error = self.vae.decode(posterior.sample(source)).sample - pixels  # pyright: ignore[reportAttributeAccessIssue]
        squared = error.square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.abs().mean() + squared + self.settings.kl * kl
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0, error_if_nonfinite=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * cosine(index, self.steps, 50)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        psnr = -10 * math.log10(squared.item() / 4)
        return {"loss": loss.item(), "psnr": psnr, "kl": kl.item(), "grad_norm": norm.item()}

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {"vae": self.vae.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])

    def samples(self, index: int) -> Image | None:
        """None: the model card has the figures."""
        return None
