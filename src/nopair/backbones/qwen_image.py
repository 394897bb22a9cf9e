"""Qwen-Image (arXiv 2508.02324) as diffusers has it: Qwen2.5-VL text encoder, AutoencoderKLQwenImage,
QwenImageTransformer2DModel.

Time and velocity are nopair's own: the transformer takes t itself and returns v. What differs, and what is done about
it here:

* prompts stand in a fixed chat, whose beginning is dropped again from the last hidden states. This is the stock
  pipeline's own code, called. The encoder sees no image: as in text-to-image, it reads the words alone. (The family's
  edit pipelines show it the reference too. Our interface keeps text and reference apart, so that one encoded prompt
  serves any reference; what the student knows of the reference, it knows from the reference's tokens.);
* latents have a frame axis (of length one), and a mean and a deviation for each channel. 2 x 2 of them are one token;
* the library clamps decoded pixels, and a clamped pixel has no gradient. So the decoder is called below the clamp;
* the scheduler shifts by image size, see `QwenImageBackbone.shift_for`;
* a reference goes in as in the edit pipelines: its tokens follow the target's in the image sequence, with a second
  entry in `img_shapes`, and only the first tokens of the output are kept. A reference token and the target token at
  its place share (row, column) rotary positions, which count from the middle of the image. The target is frame 0, the
  reference frame 1. Prompt positions begin where half the longer side ends, so a reference of the same size moves
  neither the target nor the prompt, and padding of the prompt moves nothing;
* what time the reference tokens are modulated with is a switch in the transformer's config. With `zero_cond_t` (later
  models of the family) it is 0, as the reference is clean. Without it (the first ones) it is t, as the target's: the
  transformer then has only the frame to tell the two apart.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    AutoencoderKLQwenImage,
    QwenImageMidBlock,
    QwenImageUpBlock,
)
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline, calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

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

FAMILY = "QwenImagePipeline"
MAX_TOKENS = 512
"""Longest prompt, the dropped beginning of the chat not counted; longer ones are cut, as the stock pipeline does."""
PATCH = 2
"""Latent rows and columns per transformer token, fixed in the library's pipelines."""
UNSUPPORTED = ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope")
"""Switches of transformers that want to be told more than prompt, time and images."""


@dataclass(frozen=True, eq=False)
class QwenImageBackbone:
    """Qwen-Image of any size; implements `nopair.backbones.base.Backbone`. Every number comes from the configs."""

    vae: AutoencoderKLQwenImage
    text_encoder: Qwen2_5_VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    transformer: QwenImageTransformer2DModel
    scheduler: FlowMatchEulerDiscreteScheduler

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, bits: Bits | None = None) -> "QwenImageBackbone":
        """Read an ordinary diffusers folder of a `QwenImagePipeline` (safetensors only); nothing is downloaded.

        The codecs come frozen; everything is in eval mode and in `dtype`;
        with `bits`, transformer and text encoders are quantised.

        Raises:
            ModelError: no such folder, not a Qwen-Image pipeline, parts or weights of it are missing or unreadable,
                the parts do not fit each other, the transformer is of an unsupported variant, or the scheduler does
                not shift times by exp(mu).
        """
        read_pipeline(folder, family=FAMILY)
        scheduler = load_scheduler(folder / "scheduler")
        unstretched: Any = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, shift_terminal=None)
        require_exponential_shift(unstretched, folder / "scheduler")
        backbone = cls(
            scheduler=scheduler,
            tokenizer=load_tokenizer(folder / "tokenizer"),
            vae=load_model(AutoencoderKLQwenImage, folder / "vae", dtype).requires_grad_(False),
            transformer=load_model(QwenImageTransformer2DModel, folder / "transformer", dtype, bits),
            text_encoder=load_model(
                Qwen2_5_VLForConditionalGeneration, folder / "text_encoder", dtype, bits).requires_grad_(False),
        )  # fmt: skip
        switches = [name for name in UNSUPPORTED if backbone.transformer.config[name]]
        if switches:
            raise ModelError(f"{folder}/transformer: {switches[0]} is not supported; take a plain Qwen-Image")
        misfit = _misfit(backbone)
        if misfit is not None:
            raise ModelError(f"{folder}: {misfit}; the parts are of different models, copy the folder again")
        return backbone

    def save(self, folder: Path) -> None:
        """Write a folder that stock `QwenImagePipeline.from_pretrained` and `load` read, in the modules' own dtypes.

        Raises:
            OutputError: the folder cannot be written.
        """
        save_pipeline(self._pipeline, folder)

    @property
    def _pipeline(self) -> QwenImagePipeline:
        """The parts as the library's pipeline, which only holds them: nothing is copied."""
        return QwenImagePipeline(
            scheduler=self.scheduler,
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,  # pyright: ignore[reportArgumentType] (any tokenizer with its methods will do)
            transformer=self.transformer,
        )

    def with_transformer(self, transformer: nn.Module) -> "QwenImageBackbone":
        """The same codecs around another transformer of the same configuration."""
        if not isinstance(transformer, QwenImageTransformer2DModel):
            raise TypeError(f"expected a QwenImageTransformer2DModel, got {type(transformer).__name__}")
        return dataclasses.replace(self, transformer=transformer)

    def to(self, device: torch.device | str) -> "QwenImageBackbone":
        """Move all modules to `device`, in place, and return self."""
        nn.ModuleList([self.vae, self.text_encoder, self.transformer]).to(device)
        return self

    def drop_text_encoder(self) -> None:
        """See `nopair.backbones.folder.drop_weights`."""
        drop_weights(self.text_encoder)

    def checkpoint(self) -> None:
        """The transformer's is the library's own. This family's decoder has none, so its blocks are wrapped for it."""
        self.transformer.enable_gradient_checkpointing()
        apply_activation_checkpointing(
            self.vae.decoder, check_fn=lambda part: isinstance(part, QwenImageMidBlock | QwenImageUpBlock)
        )

    @property
    def adapter_ranks(self) -> Mapping[str, int]:
        """None: a reference goes in as tokens, through weights that are there."""
        return {}

    def shift_for(self, height: int, width: int, steps: int) -> float:
        """exp(mu) of the pipeline's rule for images of height x width pixels; the number of steps does not count.

        Levels shifted by this constant are the scheduler's dynamically shifted sigmas, if its config has no
        `shift_terminal`. The published one has (0.02): after shifting, the stock scheduler stretches the schedule so
        that the last level is s = 0.02 for any number of steps. Its levels then are
        1 - (1 - level) * (1 - s) / (1 - last level), which no constant shift can express, and which are NOT ours: of a
        few steps, one would be spent on the last 0.02 (and a single step gives 0 / 0). To run a student in a stock
        pipeline, set `shift_terminal` to None there.

        Raises:
            ConfigError: the base cannot take images of this size.
        """
        _, rows, columns = self.latent_shape(height, width)
        return math.exp(_mu(self.scheduler, (rows // PATCH) * (columns // PATCH)))

    @property
    def pixel_multiple(self) -> int:
        """Image sides must be multiples of this: VAE factor times patch size."""
        return self.vae.spatial_compression_ratio * PATCH

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, rows, columns) of a height x width image.

        Raises:
            ConfigError: a side is not a positive multiple of `pixel_multiple`, or so long that the rotary table ends
                before a prompt of `MAX_TOKENS` behind half of it.
        """
        multiple = self.pixel_multiple
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise ConfigError(f"image size {height}x{width}: this base needs both sides to be multiples of {multiple}")
        rope: Any = self.transformer.pos_embed
        most = 2 * (len(rope.pos_freqs) - MAX_TOKENS) * multiple
        if max(height, width) > most:
            raise ConfigError(f"image size {height}x{width}: this base takes at most {most}x{most}")
        return self.vae.config["z_dim"], height // multiple * PATCH, width // multiple * PATCH

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Embed prompts as `QwenImagePipeline` does; padded to the batch's longest, cut at `MAX_TOKENS`."""
        features, valid = self._pipeline.encode_prompt(
            list(prompts), device=self.text_encoder.device, max_sequence_length=MAX_TOKENS
        )
        if valid is None:  # the library's word for "no padding"
            return Text(features, (features.shape[1],) * len(prompts))
        return Text(features, tuple(valid.sum(dim=1).tolist()))

    def prompt_tokens(self, prompt: str) -> tuple[int, int]:
        """See `StoredBackbone`; of the template, what stands before the prompt is no part of what is read."""
        pipeline = self._pipeline
        chat = pipeline.prompt_template_encode.format(prompt)
        return len(self.tokenizer(chat)["input_ids"]) - pipeline.prompt_template_encode_start_idx, MAX_TOKENS

    def encode_image(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        """The VAE's mode, every channel normalised by the config's mean and deviation, in the pixels' dtype."""
        frames = (pixels * 2 - 1).to(self.vae.dtype).unsqueeze(2)
        mode = self.vae.encode(frames).latent_dist.mode().squeeze(2)  # pyright: ignore
        mean, deviation = self._statistics(pixels)
        return (mode.to(pixels.dtype) - mean) / deviation

    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 height width"]:
        """Pixels around [0, 1], not clamped, in the latents' dtype; differentiable.

        Slicing and tiling, if switched on in the VAE, have no effect: they are above the clamp.
        """
        mean, deviation = self._statistics(latents)
        frames = (latents * deviation + mean).to(self.vae.dtype).unsqueeze(2)
        decoded = self.vae.decoder(self.vae.post_quant_conv(frames)).squeeze(2)
        return decoded.to(latents.dtype) / 2 + 0.5

    def _statistics(self, like: Tensor) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        """Mean and deviation of each latent channel, with device and dtype of `like`."""
        mean, deviation = (like.new_tensor(self.vae.config[name]) for name in ("latents_mean", "latents_std"))
        return mean[:, None, None], deviation[:, None, None]

    def velocity(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        text: Text,
        reference: Float[Tensor, "b c h w"] | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Velocity at (x_t, t), in the dtype of `noisy`; the transformer computes in its own dtype, t included.

        `reference` are clean latents of the same shape as `noisy` (see the module docstring for how they are attached).
        """
        # A parameter that no adapter wraps and no quantisation packs.
        dtype = self.transformer.get_parameter("txt_norm.weight").dtype
        rows, columns = (side // PATCH for side in noisy.shape[2:])
        images = [noisy] if reference is None else [noisy, reference]
        longest = max(text.lengths)
        valid = torch.arange(longest) < torch.tensor(text.lengths)[:, None]
        output = self.transformer(
            hidden_states=torch.cat([_to_tokens(image) for image in images], dim=1).to(dtype),
            timestep=t,
            encoder_hidden_states=text.features[:, :longest].to(noisy.device, dtype),
            encoder_hidden_states_mask=None if min(text.lengths) == longest else valid.to(noisy.device),
            img_shapes=[[(1, rows, columns)] * len(images)] * len(noisy),
            return_dict=False,
        )[0]
        return _to_latents(output[:, : rows * columns], rows, columns).to(noisy.dtype)


def _to_tokens(latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b token d"]:
    """Row by row one token for each 2 x 2 latents, whose values are ordered by channel, row, column."""
    return functional.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def _to_latents(tokens: Float[Tensor, "b token d"], rows: int, columns: int) -> Float[Tensor, "b c h w"]:
    """The inverse of `_to_tokens`, for so many rows and columns of tokens."""
    return functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (rows, columns)), PATCH)


def _mu(scheduler: FlowMatchEulerDiscreteScheduler, tokens: int) -> float:
    """The pipeline's rule for how far to shift an image of so many tokens."""
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(tokens, *(scheduler.config[name] for name in names))


def _misfit(backbone: QwenImageBackbone) -> str | None:
    """What does not fit together, or None."""
    image, wanted = backbone.vae.config, backbone.transformer.config
    channels = image["z_dim"] * PATCH**2
    if not channels == wanted["in_channels"] == wanted["out_channels"] * wanted["patch_size"] ** 2:
        return f"the VAE makes tokens of {channels} numbers, the transformer takes {wanted['in_channels']}"
    text: Any = backbone.text_encoder.config.text_config
    size, taken = text.hidden_size, wanted["joint_attention_dim"]
    if size != taken:
        return f"the text encoder makes embeddings of {size} numbers, the transformer takes {taken}"
    return None
