"""Pretraining of the tiny autoencoder: a stock AutoencoderKL with a factor of 4 and 4 latent channels, on random
scenes."""

import math
import random
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from nopair.device import choose_device
from nopair.tiny.optim import cosine
from nopair.training.optim import Ema
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
    """`batch` scenes a step; peak learning rate; weight of the KL term (per latent value).

    After `steps` steps of the whole, `decoder_steps` of the decoder alone at `decoder_lr`, on latents with noise of
    deviation `decoder_noise` (1 is the spread of latents), averaged with `decoder_ema`.
    """

    steps: int = 1300
    batch: int = 32
    lr: float = 2e-3
    kl: float = 1e-4
    decoder_steps: int = 1400
    decoder_lr: float = 1e-3
    decoder_noise: float = 0.05
    decoder_ema: float = 0.995
    seed: int = 0


class VaePhase:
    """Absolute and squared error of the reconstruction, and a slight pull of the latents towards a unit Gaussian."""

    name = "vae"

    def __init__(self, settings: VaeSettings) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.steps = settings.steps
        self.device = choose_device("auto")
        self.vae = new_vae().to(self.device)  # pyright: ignore[reportArgumentType]
        self.begin()

    def begin(self) -> None:
        """A fresh optimiser."""
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), lr=self.settings.lr, betas=(0.9, 0.99))

    def end(self) -> None:
        """Nothing: the models are small."""

    def step(self, index: int) -> dict[str, float]:
        """One optimizer step on fresh scenes; all randomness comes from (seed, index)."""
        pixels, source = _scenes(self.settings, self.name, index, self.device)
        posterior = self.vae.encode(pixels).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
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


class DecoderPhase:
    """Reconstruction by the decoder alone, from fixed latents: what is drawn gets better, what latents mean stays."""

    name = "decoder"

    def __init__(self, vae: AutoencoderKL, settings: VaeSettings) -> None:
        self.vae, self.settings = vae, settings
        self.steps = settings.decoder_steps
        self.device = vae.device
        self.begin()

    def begin(self) -> None:
        """A fresh optimiser, and an average that starts from what the phase before left."""
        self.decoder = dict(self.vae.decoder.named_parameters())
        self.optimizer = torch.optim.AdamW(self.decoder.values(), lr=self.settings.decoder_lr, betas=(0.9, 0.99))
        self.average = Ema(self.decoder, self.settings.decoder_ema)

    def end(self) -> None:
        """Nothing: the models are small."""

    def step(self, index: int) -> dict[str, float]:
        """One optimizer step on fresh scenes; all randomness comes from (seed, index)."""
        pixels, source = _scenes(self.settings, self.name, index, self.device)
        with torch.no_grad():
            latents = self.vae.encode(pixels).latent_dist.mode()  # pyright: ignore[reportAttributeAccessIssue]
        noise = torch.randn(latents.shape, generator=source, device=self.device)
        error = self.vae.decode(latents + self.settings.decoder_noise / SCALING * noise).sample - pixels  # pyright: ignore
        squared = error.square().mean()
        loss = error.abs().mean() + squared
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.values(), 1.0, error_if_nonfinite=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.decoder_lr * cosine(index, self.steps, 20)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()
        if index + 1 == self.steps:
            self.vae.decoder.load_state_dict(self.average.weights())
        return {"loss": loss.item(), "psnr": -10 * math.log10(squared.item() / 4), "grad_norm": norm.item()}

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        states = {"optimizer": self.optimizer.state_dict(), "average": self.average.state()}
        return states | {"vae": self.vae.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.vae.load_state_dict(state["vae"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state(state["average"])

    def samples(self, index: int) -> Image | None:
        """None: the model card has the figures."""
        return None


def _scenes(
    settings: VaeSettings, phase: str, index: int, device: torch.device
) -> tuple[Float[Tensor, "b 3 height width"], torch.Generator]:
    """Fresh scenes in [-1, 1], and a source of noise; both depend on (seed, phase, index) only."""
    rng = random.Random(f"{settings.seed}/{phase}/{index}")
    scenes = [random_scene(rng, least=0, most=4) for _ in range(settings.batch)]
    pixels = render_batch(scenes).to(device) * 2 - 1
    return pixels, torch.Generator(device).manual_seed(rng.getrandbits(60))
