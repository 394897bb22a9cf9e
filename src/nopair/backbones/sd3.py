"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206) as diffusers has them: CLIP-L, CLIP-G and T5 encoders, AutoencoderKL,
SD3Transformer2DModel.

How the library differs from nopair, and what is done about it here:

* it calls 1000 t the timestep; the sign of the velocity is ours;
* prompts are padded to a fixed length (CLIP's 77 tokens, then T5's 256), and the base was trained to attend to the
  padding. So every token of a `Text` is valid, and its lengths all are the same. There is no mask;
* it has no way to take a reference. Ours is InstructPix2Pix's (arXiv 2211.09800): the clean latents of the reference
  are further input channels of the patch embedding, after those of the noisy latents, with weights that start at zero.

Why channels, not tokens as in other families: tokens that nobody has learned to read still take part in every softmax
and so change the prediction, whatever embedding is added to them; a gate that undoes this costs a second attention in
each block, and code of our own in place of the library's. Channels with zero weights change nothing at all at the
start, yet get a gradient at once. They lose nothing either, as a patch of the reference (2 x 2 x 16 numbers) is far
smaller than the token it is added to, they cost no attention, and the result is a stock `SD3Transformer2DModel` with
`in_channels` twice its `out_channels`. The price: that each place is handed only its own piece of the reference, and
that no reference is the same as a reference whose latents all are zero (nearly a plain grey).

All that is new are these weights of `REFERENCE_MODULE`. Adapters must have it among their targets, or the reference is
never seen, and an adapter of a rank below `reference_rank` lets through only so many numbers per patch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    T5Tokenizer,
)

from nopair.backbones.folder import drop_weights, load_model, load_shift, read_pipeline, save_pipeline
from nopair.backbones.sd3_reference import REFERENCE_MODULE, accept_reference
from nopair.backbones.sd3_texts import T5_TOKENS, encode_clip, load_tokenizer, prompt_tokens, token_ids
from nopair.errors import ConfigError, ModelError
from nopair.precision import Bits
from nopair.types import Text

TIME_SCALE = 1000


@dataclass(frozen=True, eq=False)
class StableDiffusion3Backbone:
    """Stable Diffusion 3 or 3.5 of any size; implements `nopair.backbones.base.Backbone`.

    Numbers come from the configs. Without a T5 encoder its share of a prompt is zeros, as in the stock pipeline.
    `transformer` has been through `accept_reference`.
    """

    vae: AutoencoderKL
    text_encoder: CLIPTextModelWithProjection
    text_encoder_2: CLIPTextModelWithProjection
    text_encoder_3: T5EncoderModel | None
    tokenizer: PreTrainedTokenizerBase
    tokenizer_2: PreTrainedTokenizerBase
    tokenizer_3: PreTrainedTokenizerBase | None
    transformer: SD3Transformer2DModel
    shift: float

    def __post_init__(self) -> None:
        if self.transformer.config["in_channels"] != 2 * self.transformer.out_channels:
            raise ValueError("the transformer has no input channels for a reference; see accept_reference")
        if (self.text_encoder_3 is None) != (self.tokenizer_3 is None):
            raise ValueError("text_encoder_3 and tokenizer_3 are either both None or neither")

    @classmethod
    def load(
        cls, folder: Path, dtype: torch.dtype = torch.float32, bits: Bits | None = None
    ) -> "StableDiffusion3Backbone":
        """Read an ordinary diffusers folder of a `StableDiffusion3Pipeline` (safetensors only), nothing is downloaded.

        The transformer may be text-to-image, as published, or one that takes a reference, as `save` writes it. Where
        model_index.json says `"text_encoder_3": [null, null]`, there is no T5. The codecs come frozen; everything is
        in eval mode and in `dtype`; with `bits`, transformer and text encoders are quantised.

        Raises:
            ModelError: no such folder, another pipeline, or its parts are missing, unreadable or do not fit together.
        """
        index = read_pipeline(folder, family="StableDiffusion3Pipeline")
        has_t5 = index.get("text_encoder_3") != [None, None]
        t5 = load_model(T5EncoderModel, folder / "text_encoder_3", dtype, bits) if has_t5 else None
        loaded = (
            load_model(AutoencoderKL, folder / "vae", dtype),
            load_model(CLIPTextModelWithProjection, folder / "text_encoder", dtype, bits),
            load_model(CLIPTextModelWithProjection, folder / "text_encoder_2", dtype, bits),
            t5,
        )
        transformer = load_model(SD3Transformer2DModel, folder / "transformer", dtype, bits)
        _check_fit(folder, *loaded, transformer)
        vae, clip, clip_2, _ = loaded
        return cls(
            vae=vae.requires_grad_(False),
            text_encoder=clip.requires_grad_(False),
            text_encoder_2=clip_2.requires_grad_(False),
            text_encoder_3=t5.requires_grad_(False) if t5 is not None else None,
            tokenizer=load_tokenizer(CLIPTokenizer, folder / "tokenizer"),
            tokenizer_2=load_tokenizer(CLIPTokenizer, folder / "tokenizer_2"),
            tokenizer_3=load_tokenizer(T5Tokenizer, folder / "tokenizer_3") if has_t5 else None,
            transformer=accept_reference(transformer),
            shift=load_shift(folder / "scheduler"),
        )

    def save(self, folder: Path) -> None:
        """Write a folder that stock `StableDiffusion3Pipeline.from_pretrained` and `load` read, in the modules' dtypes.

        Its transformer takes the reference too: the stock pipeline reads it, but has no reference to give to it.
        Without T5, `from_pretrained` wants to be told so: `text_encoder_3=None, tokenizer_3=None`.

        Raises:
            OutputError: the folder cannot be written.
        """
        pipeline = StableDiffusion3Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=self.shift),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,  # pyright: ignore[reportArgumentType]
            text_encoder_2=self.text_encoder_2,
            tokenizer_2=self.tokenizer_2,  # pyright: ignore[reportArgumentType]
            text_encoder_3=self.text_encoder_3,  # pyright: ignore[reportArgumentType] (may be None, whatever it says)
            tokenizer_3=self.tokenizer_3,  # pyright: ignore[reportArgumentType]
            transformer=self.transformer,
        )
        save_pipeline(pipeline, folder)

    def with_transformer(self, transformer: nn.Module) -> "StableDiffusion3Backbone":
        """The same codecs around another transformer of the same configuration."""
        if not isinstance(transformer, SD3Transformer2DModel):
            raise TypeError(f"expected an SD3Transformer2DModel, got {type(transformer).__name__}")
        return dataclasses.replace(self, transformer=transformer)

    def to(self, device: torch.device | str) -> "StableDiffusion3Backbone":
        """Move all modules to `device`, in place, and return self."""
        modules = [self.vae, self.text_encoder, self.text_encoder_2, self.text_encoder_3, self.transformer]
        nn.ModuleList([module for module in modules if module is not None]).to(device)
        return self

    def drop_text_encoder(self) -> None:
        """All three; see `nopair.backbones.folder.drop_weights`."""
        for encoder in (self.text_encoder, self.text_encoder_2, self.text_encoder_3):
            if encoder is not None:
                drop_weights(encoder)

    def checkpoint(self) -> None:
        """Both are the library's own gradient checkpointing."""
        self.transformer.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()

    @property
    def adapter_ranks(self) -> Mapping[str, int]:
        """The new channels of the patch embedding."""
        return {REFERENCE_MODULE: self.reference_rank}

    def shift_for(self, height: int, width: int, steps: int) -> float:
        """The scheduler's constant: this family shifts all sizes alike."""
        return self.shift

    @property
    def patch_size(self) -> int:
        """Latent rows and columns per transformer token."""
        return self.transformer.config["patch_size"]

    @property
    def reference_rank(self) -> int:
        """Numbers in a patch of the reference: the rank at which an adapter of `REFERENCE_MODULE` can pass on all."""
        return self.transformer.out_channels * self.patch_size**2

    @property
    def pixel_multiple(self) -> int:
        """Image sides must be multiples of this: VAE factor times patch size."""
        return self._vae_factor * self.patch_size

    @property
    def _vae_factor(self) -> int:
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, rows, columns) of a height x width image.

        Raises:
            ConfigError: a side is not a positive multiple of `pixel_multiple`, or beyond the table of positions.
        """
        multiple = self.pixel_multiple
        most = self.transformer.config["pos_embed_max_size"] * multiple
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise ConfigError(f"image size {height}x{width}: this base needs both sides to be multiples of {multiple}")
        if max(height, width) > most:
            raise ConfigError(f"image size {height}x{width}: this base takes at most {most}x{most}")
        return self.vae.config["latent_channels"], height // self._vae_factor, width // self._vae_factor

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Embed prompts as `StableDiffusion3Pipeline` does: CLIP's tokens, then T5's, each padded or cut to its length.

        `pooled` are both CLIPs' projections. The padding counts as text: `lengths` are those of `features`.
        """
        tokens = self.tokenizer.model_max_length  # the pipeline cuts for both CLIPs where the first one does
        first, pooled = encode_clip(self.text_encoder, self.tokenizer, prompts, tokens)
        second, pooled_2 = encode_clip(self.text_encoder_2, self.tokenizer_2, prompts, tokens)
        clip, t5 = torch.cat([first, second], dim=-1), self._encode_t5(prompts)
        clip = nn.functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
        features = torch.cat([clip, t5], dim=1)
        return Text(features, (features.shape[1],) * len(prompts), torch.cat([pooled, pooled_2], dim=-1))

    def _encode_t5(self, prompts: Sequence[str]) -> Float[Tensor, "b token d"]:
        if self.text_encoder_3 is None or self.tokenizer_3 is None:
            width = self.transformer.config["joint_attention_dim"]
            clip = self.text_encoder
            return torch.zeros(len(prompts), T5_TOKENS, width, device=clip.device, dtype=clip.dtype)
        ids = token_ids(self.tokenizer_3, prompts, T5_TOKENS).to(self.text_encoder_3.device)
        return self.text_encoder_3(ids).last_hidden_state

    def prompt_tokens(self, prompt: str) -> tuple[int, int]:
        return prompt_tokens(prompt, self.tokenizer, self.tokenizer_3)

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """(mode - shift_factor) * scaling_factor of the VAE, in the pixels' dtype."""
        scale, offset = self._vae_scaling
        mode = self.vae.encode((pixels * 2 - 1).to(self.vae.dtype)).latent_dist.mode()  # pyright: ignore
        return ((mode - offset) * scale).to(pixels.dtype)

    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Pixels around [0, 1], not clamped, in the latents' dtype; differentiable."""
        scale, offset = self._vae_scaling
        decoded = self.vae.decode((latents / scale + offset).to(self.vae.dtype)).sample  # pyright: ignore
        return (decoded / 2 + 0.5).to(latents.dtype)

    @property
    def _vae_scaling(self) -> tuple[float, float]:
        """(scaling_factor, shift_factor); a VAE without a shift (None) is not shifted."""
        return self.vae.config["scaling_factor"], self.vae.config["shift_factor"] or 0.0

    def velocity(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        text: Text,
        reference: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Velocity at (x_t, t), in the dtype of `noisy`; the transformer computes in its own dtype.

        `reference` are clean latents of the same shape as `noisy` (see the module docstring for how they are attached).

        Raises:
            ValueError: `text` is not as `encode_text` makes it: without `pooled`, or with tokens that do not count.
        """
        if text.pooled is None or set(text.lengths) - {text.features.shape[1]}:
            raise ValueError("this family needs pooled prompts, and cannot mask text tokens")
        dtype = self.transformer.proj_out.weight.dtype  # of the base's weight, also where an adapter wraps it
        clean = torch.zeros_like(noisy) if reference is None else reference
        velocity = self.transformer(
            hidden_states=torch.cat([noisy, clean], dim=1).to(dtype),
            encoder_hidden_states=text.features.to(noisy.device, dtype),
            pooled_projections=text.pooled.to(noisy.device, dtype),
            timestep=TIME_SCALE * t,  # pyright: ignore[reportArgumentType] (the pipeline's are no integers either)
            return_dict=False,
        )[0]
        return velocity.to(noisy.dtype)


def _check_fit(
    folder: Path,
    vae: AutoencoderKL,
    clip: CLIPTextModelWithProjection,
    clip_2: CLIPTextModelWithProjection,
    t5: T5EncoderModel | None,
    transformer: SD3Transformer2DModel,
) -> None:
    """Refuse parts that are fine each, but of different models."""
    config, channels = transformer.config, transformer.out_channels
    width, pooled = config["joint_attention_dim"], config["pooled_projection_dim"]
    clip_width, clip_pooled = (
        getattr(clip.config, name) + getattr(clip_2.config, name) for name in ("hidden_size", "projection_dim")
    )
    problem = None
    if config["in_channels"] not in (channels, 2 * channels):
        problem = f"takes {config['in_channels']} channels, neither text-to-image ({channels}) nor with a reference"
    elif vae.config["latent_channels"] != channels:
        problem = f"makes latents of {channels} channels, the vae of {vae.config['latent_channels']}"
    elif clip_width > width or clip_pooled != pooled:
        problem = f"takes {width} and {pooled} numbers of text, text_encoder and text_encoder_2 give other"
    elif t5 is not None and t5.config.d_model != width:
        problem = f"takes text of {width} numbers, text_encoder_3 gives {t5.config.d_model}"
    if problem:
        raise ModelError(f"{folder / 'transformer'}: the transformer {problem}; copy all parts from one model")
