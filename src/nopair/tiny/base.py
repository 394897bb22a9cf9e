"""Pretraining of the tiny text-to-image base: a Z-Image transformer and its Qwen3 text encoder, flow matching.

The text encoder is trained along, with a language-modelling loss over captions and instructions, because nothing
pretrained can be had at this size; afterwards it is frozen, as in any base. Prompts come in many wordings
(`tiny.phrases`), words are grounded in patches (`tiny.grounding`), and most batches are in the family's omni form:
some without a reference, most with a whole or damaged one (`tiny.restoration`). A scene before an edit and the scene
after it are never shown together.
"""

import random
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from nopair.backbones.zimage import PROMPT_BLOCK, ZImageBackbone
from nopair.device import choose_device
from nopair.method.flow import interpolate, levels, velocity_target
from nopair.tiny.grounding import Grounding
from nopair.tiny.optim import PretrainingAverage, PretrainingOptimizer, cosine
from nopair.tiny.phrases import describe, described_edit
from nopair.tiny.restoration import restoration
from nopair.tiny.vae import LATENT_CHANNELS
from nopair.types import Text
from nopair.world.edits import any_edit, random_scene
from nopair.world.render import render_batch
from nopair.world.scenes import Scene, caption

TEXT_WIDTH: Final = 128
SHIFT: Final = 3.0
"""Timestep shift written into the base's scheduler."""
_RESTORING: Final = 0.6
"""Share of batches with a reference."""
_OMNI: Final = 0.5
"""Share of the other batches in omni form."""
_TOLD_AS_EDIT: Final = 0.35
"""Share of the other prompts that tell a scene by an edit."""
_SAMPLER_STEPS: Final = 4
"""Half of the restorations are at the levels of a sampler of so many steps, as the editor's calls will be."""


def new_transformer() -> ZImageTransformer2DModel:
    """64 image tokens of 8x8 pixels, 2.1M parameters, random weights."""
    return ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=LATENT_CHANNELS,
        dim=128,
        n_layers=5,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[8, 12, 12],
        axes_lens=[256, 64, 64],
    )


def new_text_encoder(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Three Qwen3 layers; the base reads the states before the last one, as Z-Image does."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
            eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
            bos_token_id=None,
        )
    )


def new_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler stock pipelines read the shift from."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT, use_dynamic_shifting=False)


@dataclass(frozen=True, slots=True)
class BaseSettings:
    """`batch` scenes a step; peak learning rates of the matrices (Muon) and of all else (AdamW); share of empty
    prompts; weight of the grounding loss."""

    steps: int = 7000
    batch: int = 32
    lr: float = 2e-3
    other_lr: float = 1.5e-3
    caption_dropout: float = 0.1
    grounding: float = 0.2
    ema: float = 0.998
    seed: int = 1


@dataclass(frozen=True, slots=True)
class _Batch:
    """What to draw, the scenes it shows and prompts; with references, to be restored from what those show."""

    scenes: list[Scene]
    prompts: list[str]
    images: Float[Tensor, "b 3 height width"]
    references: Float[Tensor, "b 3 height width"] | None


class BasePhase:
    """Flow matching of the transformer and next-token prediction of the text encoder, on the whole world."""

    name = "base"

    def __init__(self, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, settings: BaseSettings) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.steps = settings.steps
        self.device = choose_device("auto")
        self.vae = vae.requires_grad_(False).eval().to(self.device)  # pyright: ignore[reportArgumentType]
        self.tokenizer = tokenizer
        self.transformer = new_transformer().to(self.device)  # pyright: ignore[reportArgumentType]
        self.text_encoder = new_text_encoder(tokenizer).to(self.device)  # pyright: ignore[reportArgumentType]
        self.models = nn.ModuleDict({"transformer": self.transformer, "text_encoder": self.text_encoder})
        self.backbone = ZImageBackbone(self.vae, self.text_encoder.model, tokenizer, self.transformer, SHIFT)
        self.grounding = Grounding(self.transformer, tokenizer)
        self.optimizer = PretrainingOptimizer(self.models, settings.lr, settings.other_lr)
        self.average = PretrainingAverage(self.models, settings.ema)

    def begin(self) -> None:
        """Nothing to take over: the constructor makes everything."""

    def end(self) -> None:
        """Nothing to let go of: no phase follows."""

    def step(self, index: int) -> dict[str, float]:
        """One optimizer step on fresh scenes; all randomness comes from (seed, index)."""
        settings = self.settings
        rng = random.Random(f"{settings.seed}/base/{index}")
        noise_source = torch.Generator().manual_seed(rng.getrandbits(60))
        batch = self._restorations(rng) if rng.random() < _RESTORING else self._drawings(rng)
        restoring = batch.references is not None
        instructions = [any_edit(rng).instruction for _ in range(settings.batch // 2)]
        ids, text, text_loss = self._read(batch.prompts, instructions)
        latents = self._encode(batch.images)
        references = None if batch.references is None else self._encode(batch.references)
        t = _times(settings.batch, noise_source)
        t = (_half_at_levels(t, noise_source) if restoring else t).to(self.device)
        noise = torch.randn(latents.shape, generator=noise_source).to(self.device)
        omni = restoring or rng.random() < _OMNI
        velocity = self._velocity(interpolate(latents, noise, t), t, text, references, omni)
        loss = (velocity - velocity_target(latents, noise)).square().mean()
        targets = self.grounding.targets(batch.scenes, ids)
        if restoring:
            ground_loss = self.grounding.loss_with_reference(targets, text.lengths, t)
        else:
            ground_loss = self.grounding.loss(targets, text.lengths, t, text_first=omni)
        total = loss + 0.1 * text_loss + settings.grounding * ground_loss
        norm = self.optimizer.step(total, cosine(index, settings.steps, 100))
        self.average.update(index)
        task = "restoring" if restoring else "drawing"
        losses = {task: loss.item(), "text_loss": text_loss.item(), f"{task}_ground": ground_loss.item()}
        return losses | {"grad_norm": norm}

    def _restorations(self, rng: random.Random) -> _Batch:
        """Every prompt fits one block."""
        tasks = [restoration(rng, self._fits) for _ in range(self.settings.batch)]
        images = torch.stack([task.target for task in tasks])
        references = torch.stack([task.reference for task in tasks])
        return _Batch([task.scene for task in tasks], [task.prompt for task in tasks], images, references)

    def _drawings(self, rng: random.Random) -> _Batch:
        """Some prompts are empty, for guidance."""
        draws = [self._drawing(rng) for _ in range(self.settings.batch)]
        dropout = self.settings.caption_dropout
        prompts = ["" if rng.random() < dropout else prompt for prompt, _ in draws]
        scenes = [scene for _, scene in draws]
        return _Batch(scenes, prompts, render_batch(scenes), None)

    def _drawing(self, rng: random.Random) -> tuple[str, Scene]:
        """A prompt of one block and its scene; an edit that would need two is drawn again."""
        if rng.random() < _TOLD_AS_EDIT:
            while not self._fits((told := described_edit(rng))[0]):
                pass
            return told
        # Removals leave empty scenes, so the base must know them too.
        scene = random_scene(rng, least=0 if rng.random() < 0.25 else 1)
        prompt = describe(rng, scene)
        return (prompt if self._fits(prompt) else caption(scene)), scene

    def _fits(self, prompt: str) -> bool:
        tokens, _ = self._tokens([prompt])
        return tokens.shape[1] <= PROMPT_BLOCK

    def _velocity(
        self,
        noisy: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        text: Text,
        references: Float[Tensor, "b c h w"] | None,
        omni: bool,
    ) -> Float[Tensor, "b c h w"]:
        if references is not None or not omni:
            return self.backbone.velocity(noisy, t, text, references)
        # The omni form of an image alone, which no adapter needs: references come with other modulations and positions.
        prompts = [[row[:length]] for row, length in zip(text.features, text.lengths, strict=True)]
        out = self.transformer(
            [[image] for image in noisy.unsqueeze(2).unbind()],
            1 - t,
            prompts,
            siglip_feats=[None] * len(prompts),
            image_noise_mask=[[1]] * len(prompts),
            return_dict=False,
        )
        return -torch.stack(out[0]).squeeze(2)

    @torch.no_grad()
    def _encode(self, pixels: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b c h w"]:
        return self.backbone.encode_image(pixels.to(self.device))

    def _read(
        self, prompts: list[str], instructions: list[str]
    ) -> tuple[Int[Tensor, "prompt padded"], Text, Float[Tensor, ""]]:
        """Tokens of the prompts, their features, and the language-modelling loss over prompts and instructions."""
        tokens, mask = self._tokens(prompts + instructions)
        output = self.text_encoder(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
        targets = tokens.masked_fill(mask == 0, -100)[:, 1:]
        text_loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
        count = len(prompts)
        lengths = mask[:count].sum(1)
        text = Text(output.hidden_states[-2][:count, : int(lengths.max())], tuple(lengths.tolist()))
        return tokens[:count], text, text_loss

    def _tokens(self, prompts: list[str]) -> tuple[Int[Tensor, "b token"], Int[Tensor, "b token"]]:
        texts = [
            self.tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
            for prompt in prompts
        ]
        encoded = self.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")  # pyright: ignore[reportArgumentType]
        return encoded["input_ids"].to(self.device), encoded["attention_mask"].to(self.device)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {
            "models": self.models.state_dict(),
            "ema": self.average.state(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.models.load_state_dict(state["models"])
        self.average.load_state(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def samples(self, index: int) -> Image | None:
        """None: the model card has the figures."""
        return None

    def finish(self) -> tuple[ZImageTransformer2DModel, Qwen3ForCausalLM]:
        """The models with their averaged weights."""
        self.models.load_state_dict(self.average.state())
        return self.transformer.cpu().eval(), self.text_encoder.cpu().eval()


def _times(count: int, source: torch.Generator) -> Float[Tensor, " b"]:
    """Logit-normal, with a tenth of the samples nearly clean and a tenth nearly noise: an editor works at both ends."""
    t = torch.sigmoid(1.2 * torch.randn(count, generator=source) + 0.6)
    end, share = 0.02 * torch.rand(count, generator=source), torch.rand(count, generator=source)
    return torch.where(share < 0.1, end, torch.where(share > 0.9, 1 - end, t))


def _half_at_levels(t: Float[Tensor, " b"], source: torch.Generator) -> Float[Tensor, " b"]:
    """About half of the times replaced by random levels of the sampler."""
    schedule = levels(_SAMPLER_STEPS, SHIFT)
    chosen = schedule[torch.randint(len(schedule), t.shape, generator=source)]
    return torch.where(torch.rand(t.shape, generator=source) < 0.5, chosen, t)
