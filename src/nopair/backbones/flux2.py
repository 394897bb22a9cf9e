"""FLUX.2 [klein] as diffusers has it: Qwen3 text encoder, AutoencoderKLFlux2, Flux2Transformer2DModel.

How the library differs from nopair, and what is done about it here:

* time and velocity are ours: the transformer takes t itself and returns v;
* a latent is the VAE's, with each 2 x 2 block folded into channels and every channel normalised with the running mean
  and variance of the VAE's `bn`. One such column is one token. The library keeps tokens in a flat sequence and finds
  them by positions (time, row, column, place in the text), which are rotary: there is no table that could end;
* a reference's tokens follow those to be denoised, at time position 10 instead of 0, and at the same rows and columns.
  All tokens are modulated with the one t of the sample: the family knows no clean time. Only the first ones come back;
* prompts go through the chat template with thinking off, cut or PADDED to 512 tokens, and the hidden states 9, 18 and
  27 side by side are the embedding. The transformer has no mask and attends to the padding like to any word. It was
  trained so, and padding is kept: `Text.lengths` is 512 for every prompt, and no token is there "to ignore";
* the shift exp(mu) depends on the image size and on the number of steps, by the pipeline's own empirical rule;
* `is_distilled` in the pipeline's index makes the stock pipeline ignore its guidance scale. It is kept and written
  back, and has no other effect here.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline, compute_empirical_mu
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM

from nopair.backbones.folder import (
    drop_weights,
    load_model,
    load_scheduler,
    load_tokenizer,
    read_pipeline,
    require_exponential_shift,
    save_pipeline,
)
from nopair.errors import ConfigError, ModelError
from nopair.precision import Bits
from nopair.types import Text

FAMILY = "Flux2KleinPipeline"
TOKENS = 512
"""Every prompt has so many tokens: longer ones are cut, shorter ones padded."""
TEXT_STATES = (9, 18, 27)
"""The text encoder's hidden states that make an embedding (0 is the word embedding)."""
PATCH = 2
"""VAE rows and columns folded into the channels of a latent."""
REFERENCE_TIME = 10
"""Time position of a reference's tokens; those of the image to make stand at 0."""


@dataclass(frozen=True, eq=False)
class Flux2KleinBackbone:
    """FLUX.2 [klein] of any size; implements `nopair.backbones.base.Backbone`."""

    vae: AutoencoderKLFlux2
    text_encoder: Qwen3ForCausalLM
    tokenizer: PreTrainedTokenizerBase
    transformer: Flux2Transformer2DModel
    scheduler: FlowMatchEulerDiscreteScheduler
    is_distilled: bool = False

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, bits: Bits | None = None) -> "Flux2KleinBackbone":
        """Read an ordinary diffusers folder of a `Flux2KleinPipeline` (safetensors only); nothing is downloaded.

        The codecs come frozen; everything is in eval mode and in `dtype`;
        with `bits`, transformer and text encoders are quantised.

        Raises:
            ModelError: no such folder, not a klein pipeline, parts or weights of it are missing or unreadable, the
                parts do not fit each other, or the scheduler does not shift times by exp(mu).
        """
        index = read_pipeline(folder, family=FAMILY)
        scheduler = load_scheduler(folder / "scheduler")
        require_exponential_shift(scheduler, folder / "scheduler")
        backbone = cls(
            vae=load_model(AutoencoderKLFlux2, folder / "vae", dtype).requires_grad_(False),
            text_encoder=load_model(Qwen3ForCausalLM, folder / "text_encoder", dtype, bits).requires_grad_(False),
            tokenizer=load_tokenizer(folder / "tokenizer"),
            transformer=load_model(Flux2Transformer2DModel, folder / "transformer", dtype, bits),
            scheduler=scheduler,
            is_distilled=index.get("is_distilled", False) is True,
        )
        misfit = _misfit(backbone)
        if misfit is not None:
            raise ModelError(f"{folder}: {misfit}; the parts are of different models, copy the folder again")
        return backbone

    def save(self, folder: Path) -> None:
        """Write a folder that stock `Flux2KleinPipeline.from_pretrained` and `load` read, in the modules' own dtypes.

        Raises:
            OutputError: the folder cannot be written.
        """
        pipeline = Flux2KleinPipeline(
            scheduler=self.scheduler,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,  # pyright: ignore[reportArgumentType] (AutoTokenizer is a factory, not a type)
            transformer=self.transformer,
            is_distilled=self.is_distilled,
        )
        save_pipeline(pipeline, folder)

    def with_transformer(self, transformer: nn.Module) -> "Flux2KleinBackbone":
        """The same codecs around another transformer of the same configuration."""
        if not isinstance(transformer, Flux2Transformer2DModel):
            raise TypeError(f"expected a Flux2Transformer2DModel, got {type(transformer).__name__}")
        return dataclasses.replace(self, transformer=transformer)

    def to(self, device: torch.device | str) -> "Flux2KleinBackbone":
        """Move all modules to `device`, in place, and return self."""
        nn.ModuleList([self.vae, self.text_encoder, self.transformer]).to(device)
        return self

    def drop_text_encoder(self) -> None:
        """See `nopair.backbones.folder.drop_weights`."""
        drop_weights(self.text_encoder)

    def checkpoint(self) -> None:
        """Both are the library's own gradient checkpointing."""
        self.transformer.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()

    @property
    def adapter_ranks(self) -> Mapping[str, int]:
        """None: a reference goes in as tokens, through weights that are there."""
        return {}

    def shift_for(self, height: int, width: int, steps: int) -> float:
        """exp(mu) of the pipeline's rule for images of height x width pixels and so many steps.

        Levels shifted by this constant are the scheduler's dynamically shifted sigmas.

        Raises:
            ConfigError: the base cannot take images of this size.
        """
        _, rows, columns = self.latent_shape(height, width)
        return math.exp(compute_empirical_mu(rows * columns, steps))

    @property
    def pixel_multiple(self) -> int:
        """Image sides must be multiples of this: VAE factor times 2."""
        return PATCH * 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, rows, columns) of a height x width image.

        Raises:
            ConfigError: a side is not a positive multiple of `pixel_multiple`.
        """
        multiple = self.pixel_multiple
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise ConfigError(f"image size {height}x{width}: this base needs both sides to be multiples of {multiple}")
        return self.vae.config["latent_channels"] * PATCH**2, height // multiple, width // multiple

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Embed prompts as `Flux2KleinPipeline` does: 512 tokens each, padding included (see the module docstring)."""
        chats = [self._chat(prompt) for prompt in prompts]
        tokens = self.tokenizer(chats, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
        device = self.text_encoder.device
        states = self.text_encoder.model(  # without the head, whose logits nobody needs
            input_ids=tokens["input_ids"].to(device),
            attention_mask=tokens["attention_mask"].to(device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        features = torch.cat([states[index] for index in TEXT_STATES], dim=-1)
        return Text(features, (TOKENS,) * len(chats))

    def prompt_tokens(self, prompt: str) -> tuple[int, int]:
        """See `StoredBackbone`."""
        return len(self.tokenizer(self._chat(prompt))["input_ids"]), TOKENS

    def _chat(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        chat = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return str(chat)

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """The VAE's mode, folded and normalised, in the pixels' dtype."""
        mode = self.vae.encode((pixels * 2 - 1).to(self.vae.dtype)).latent_dist.mode()  # pyright: ignore
        folded = functional.pixel_unshuffle(mode.to(pixels.dtype), PATCH)
        mean, deviation = self._statistics(folded)
        return (folded - mean) / deviation

    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Pixels around [0, 1], not clamped, in the latents' dtype; differentiable."""
        mean, deviation = self._statistics(latents)
        unfolded = functional.pixel_shuffle(latents * deviation + mean, PATCH)
        decoded = self.vae.decode(unfolded.to(self.vae.dtype)).sample  # pyright: ignore
        return (decoded / 2 + 0.5).to(latents.dtype)

    def _statistics(self, like: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        """Mean and standard deviation of each latent channel, with device and dtype of `like`."""
        mean = self.vae.get_buffer("bn.running_mean").to(like)
        variance = self.vae.get_buffer("bn.running_var").to(like)
        return mean[:, None, None], (variance + self.vae.config["batch_norm_eps"]).sqrt()[:, None, None]

    def velocity(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        text: Text,
        reference: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Velocity at (x_t, t), in the dtype of `noisy`; the transformer computes in its own dtype, t included.

        `reference` are clean latents of the same shape as `noisy` (see the module docstring for how they are attached).

        Raises:
            ValueError: `text` has padding to ignore, which this family cannot; `encode_text` never makes any.
        """
        if set(text.lengths) != {text.features.shape[1]}:
            raise ValueError(f"every prompt must have all of {text.features.shape[1]} tokens, not {text.lengths}")
        # A parameter that no adapter wraps and no quantisation packs.
        dtype = self.transformer.get_parameter("transformer_blocks.0.attn.norm_q.weight").dtype
        rows, columns = noisy.shape[2:]
        images = [(0, noisy)] if reference is None else [(0, noisy), (REFERENCE_TIME, reference)]
        output = self.transformer(
            hidden_states=torch.cat([image.flatten(2).transpose(1, 2) for _, image in images], dim=1).to(dtype),
            encoder_hidden_states=text.features.to(noisy.device, dtype),
            timestep=t,
            img_ids=torch.cat([_positions(time, rows, columns, 1) for time, _ in images]).to(noisy.device),
            txt_ids=_positions(0, 1, 1, text.features.shape[1]).to(noisy.device),
            return_dict=False,
        )[0]
        return output[:, : rows * columns].transpose(1, 2).unflatten(2, (rows, columns)).to(noisy.dtype)


def _positions(time: int, rows: int, columns: int, places: int) -> Int[Tensor, "token 4"]:
    """(time, row, column, place in the text) of tokens in the order of the transformer's sequence."""
    axes = torch.tensor([time]), torch.arange(rows), torch.arange(columns), torch.arange(places)
    return torch.cartesian_prod(*axes)


def _misfit(backbone: Flux2KleinBackbone) -> str | None:
    """What does not fit together, or None."""
    text, image = backbone.text_encoder.config, backbone.vae.config
    channels, wanted = image["latent_channels"] * PATCH**2, backbone.transformer.config["in_channels"]
    if channels != wanted:
        return f"the VAE makes latents of {channels} channels, the transformer takes {wanted}"
    if text.num_hidden_layers < max(TEXT_STATES):
        return f"the text encoder has {text.num_hidden_layers} layers, at least {max(TEXT_STATES)} are needed"
    size, wanted = len(TEXT_STATES) * text.hidden_size, backbone.transformer.config["joint_attention_dim"]
    if size != wanted:
        return f"the text encoder makes embeddings of {size} numbers, the transformer takes {wanted}"
    return None
