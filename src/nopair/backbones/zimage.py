"""Z-Image (arXiv 2511.22699) as diffusers has it: Qwen3 text encoder, AutoencoderKL, ZImageTransformer2DModel.

How the library differs from nopair, and what is done about it here:

* it calls 1 - t what we call t, and returns -v;
* prompts go through the tokenizer's chat template with thinking on, and hidden_states[-2] is the embedding;
* a reference goes in through its "omni" mode: a sample's images are [reference, target], with noise mask [0, 1].
  Reference tokens are then modulated with the clean time, target tokens with t, and only the target comes back. A
  reference patch and the target patch at its place share (row, column) rotary positions. They differ in the frame
  position: the reference stands at 1, the n prompt tokens at 3 to n + 2, the target at n + 3;
* omni mode wants as many prompt pieces as images, and gives each piece the noise mask of its image. We pass
  [empty, instruction]: as in the family's own omni pipeline, the instruction goes with the target, and is modulated
  with t as prompts are in text-to-image. An empty first piece adds no token. A first piece that needs padding would do
  harm: the library makes `length + 2 * padding` position ids for a piece that it pads to `length + padding` tokens, so
  the ids of the piece after it would be shifted (`ZImageTransformer2DModel._pad_with_ids`, diffusers 0.42).

That is this family's own way. `ZImageBackbone.dialect` names another for the students which the authors of NP-Edit
publish; see `nopair.backbones.zimage_reference`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen3Model

from nopair.backbones.folder import (
    drop_weights,
    load_model,
    load_shift,
    load_tokenizer,
    read_pipeline,
    save_pipeline,
)
from nopair.backbones.zimage_reference import OWN, Dialect, read_dialect, write_dialect
from nopair.errors import ConfigError
from nopair.precision import Bits
from nopair.types import Text

FAMILY = "ZImagePipeline"
MAX_TOKENS = 512
"""Longest prompt the family was trained with; longer ones are cut, as the stock pipeline does."""
PROMPT_BLOCK = 32
"""The library pads prompts to a multiple of this."""


@dataclass(frozen=True, eq=False)
class ZImageBackbone:
    """Z-Image of any size; implements `nopair.backbones.base.Backbone`. Every number comes from the configs."""

    vae: AutoencoderKL
    text_encoder: Qwen3Model
    tokenizer: PreTrainedTokenizerBase
    transformer: ZImageTransformer2DModel
    shift: float
    dialect: Dialect = OWN

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32, bits: Bits | None = None) -> "ZImageBackbone":
        """Read an ordinary diffusers folder of a `ZImagePipeline` (safetensors only); nothing is downloaded.

        The codecs come frozen; everything is in eval mode and in `dtype`;
        with `bits`, transformer and text encoders are quantised.

        Raises:
            ModelError: no such folder, not a Z-Image pipeline, or parts or weights of it are missing or unreadable.
        """
        read_pipeline(folder, family=FAMILY)
        transformer = load_model(ZImageTransformer2DModel, folder / "transformer", dtype, bits)
        return cls.load_around(transformer, folder, dtype, bits)

    @classmethod
    def load_around(
        cls,
        transformer: ZImageTransformer2DModel,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        bits: Bits | None = None,
    ) -> "ZImageBackbone":
        """Read all of a folder but its transformer, which may be missing, and put another one in its place.

        Raises:
            ModelError: as `load`.
        """
        read_pipeline(folder, family=FAMILY)
        vae = load_model(AutoencoderKL, folder / "vae", dtype)
        text_encoder = load_model(Qwen3Model, folder / "text_encoder", dtype, bits)
        return cls(
            vae=vae.requires_grad_(False),
            text_encoder=text_encoder.requires_grad_(False),
            tokenizer=load_tokenizer(folder / "tokenizer"),
            transformer=transformer,
            shift=load_shift(folder / "scheduler"),
            dialect=read_dialect(folder),
        )

    def save(self, folder: Path) -> None:
        """Write a folder that stock `ZImagePipeline.from_pretrained` and `load` read, in the modules' own dtypes.

        Raises:
            OutputError: the folder cannot be written.
        """
        pipeline = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=self.shift),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,  # pyright: ignore[reportArgumentType] (AutoTokenizer is a factory, not a type)
            transformer=self.transformer,
        )
        save_pipeline(pipeline, folder)
        write_dialect(self.dialect, folder)

    def with_transformer(self, transformer: nn.Module) -> "ZImageBackbone":
        """The same codecs around another transformer of the same configuration."""
        if not isinstance(transformer, ZImageTransformer2DModel):
            raise TypeError(f"expected a ZImageTransformer2DModel, got {type(transformer).__name__}")
        return dataclasses.replace(self, transformer=transformer)

    def to(self, device: torch.device | str) -> "ZImageBackbone":
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
        """The scheduler's constant: this family shifts all sizes alike."""
        return self.shift

    @property
    def patch_size(self) -> int:
        """Latent rows and columns per transformer token."""
        return self.transformer.config["all_patch_size"][0]

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
            ConfigError: a side is not a positive multiple of `pixel_multiple`, or beyond the rotary table.
        """
        multiple = self.pixel_multiple
        _, most_rows, most_columns = (length * multiple for length in self.transformer.config["axes_lens"])
        if min(height, width) < multiple or height % multiple or width % multiple:
            raise ConfigError(f"image size {height}x{width}: this base needs both sides to be multiples of {multiple}")
        if height > most_rows or width > most_columns:
            raise ConfigError(f"image size {height}x{width}: this base takes at most {most_rows}x{most_columns}")
        return self.vae.config["latent_channels"], height // self._vae_factor, width // self._vae_factor

    @property
    def max_tokens(self) -> int:
        """Longest prompt, chat template included: 512, or less where the rotary table of frame positions ends earlier.

        The padded prompt, then the reference, then the target (see the module docstring) must find their places in it.
        """
        frames = self.transformer.config["axes_lens"][0]
        return min(MAX_TOKENS, (frames - 4) // PROMPT_BLOCK * PROMPT_BLOCK)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Embed prompts as `ZImagePipeline` does, padded to the batch's longest and cut at `max_tokens`."""
        chats = [self._chat(prompt) for prompt in prompts]
        tokens = self.tokenizer(
            chats, padding="longest", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )
        device = self.text_encoder.device
        valid = tokens["attention_mask"].to(device).bool()
        hidden = self.text_encoder(
            input_ids=tokens["input_ids"].to(device), attention_mask=valid, output_hidden_states=True, use_cache=False
        ).hidden_states[-2]
        # Valid tokens first, in order, whichever side the tokenizer pads on.
        order = valid.int().argsort(dim=1, descending=True, stable=True)
        lengths = valid.sum(dim=1)
        kept = torch.arange(valid.shape[1], device=device) < lengths[:, None]
        features = hidden.gather(1, order[..., None].expand_as(hidden)).masked_fill(~kept[..., None], 0)
        return Text(features, tuple(lengths.tolist()))

    def prompt_tokens(self, prompt: str) -> tuple[int, int]:
        """See `StoredBackbone`."""
        return len(self.tokenizer(self._chat(prompt))["input_ids"]), self.max_tokens

    def _chat(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        chat = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=self.dialect.thinking
        )
        return str(chat)

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
        """
        dtype = self.transformer.x_pad_token.dtype  # a parameter that no adapter wraps
        features = text.features.to(noisy.device, dtype)
        prompts = [row[:length] for row, length in zip(features, text.lengths, strict=True)]
        targets = noisy.to(dtype).unsqueeze(2).unbind(0)
        if reference is None:
            patches = {"patch_size": self.patch_size, "f_patch_size": self.transformer.config["all_f_patch_size"][0]}
            outputs = self.transformer(list(targets), 1 - t, prompts, return_dict=False, **patches)[0]
        else:
            references = reference.to(dtype).unsqueeze(2).unbind(0)
            outputs = self.dialect.attach(self.transformer, references, targets, 1 - t, prompts)
        return -torch.stack(outputs).squeeze(2).to(noisy.dtype)
