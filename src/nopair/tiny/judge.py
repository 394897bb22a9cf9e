"""Pretraining of the tiny judge: a LLaVA-OneVision model on labelled cases.

Answers alone leave such a model on a plateau for thousands of steps. So at every patch of the attempt a linear
head, dropped
afterwards, must tell what the reference shows there, what the right result would show there, and whether this patch
speaks
for the answer. Comparing is then learnt from 64 labels per question, and answering only has to gather them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nopair.backbones.base import Backbone
from nopair.device import choose_device
from nopair.judges.llava_onevision import LlavaOnevisionJudge
from nopair.judges.preprocess import Preprocess
from nopair.tiny.cases import PATCH, Case, draw_edit, draw_kind, is_presence, make_case, view
from nopair.tiny.drawn import drawn_cases
from nopair.tiny.optim import PretrainingAverage, PretrainingOptimizer, cosine
from nopair.tiny.sights import Sight, labels
from nopair.tiny.words import IMAGE, VIDEO
from nopair.world.attempts import KINDS
from nopair.world.edits import Edit, random_scene
from nopair.world.render import render_batch
from nopair.world.scenes import SIZE

WIDTH: Final = 128
"""Of vision tower and language model of the usual judge."""
WIDTHS: Final = (32, 64, WIDTH)
_KINDS_OF_EVIDENCE: Final = ("edit", "identity", "presence")
_COARSE: Final = 2
"""A patch's colours are told on a grid of this side."""
_COLOURS: Final = 3 * _COARSE**2


def new_model(tokenizer: PreTrainedTokenizerFast, width: int) -> LlavaOnevisionForConditionalGeneration:
    """A SigLIP tower of 2 layers on 8x8 patches and a Qwen2 language model of 4 layers, random weights."""
    vision = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportArgumentType]
        eos_token_id=tokenizer.eos_token_id,  # pyright: ignore[reportArgumentType]
        bos_token_id=None,
    )
    model = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),  # pyright: ignore[reportCallIssue]
            video_token_id=tokenizer.convert_tokens_to_ids(VIDEO),  # pyright: ignore[reportCallIssue]
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_9",
            image_grid_pinpoints=[[SIZE, SIZE]],
            tie_word_embeddings=False,
        )
    )
    # Words start at the scale of image tokens, so that neither drowns in the residual stream what layers add to it.
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    nn.init.normal_(embedding.weight, std=width**-0.5)
    # Queries start equal to keys, so that like finds like from the first step: a word the patches it is true of, a
    # patch the same patch of the other image. Found by gradient descent alone, this takes thousands of steps.
    for layer in model.model.language_model.layers:
        nn.init.normal_(layer.self_attn.q_proj.weight, std=width**-0.5)
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)
    return model


def new_processor() -> LlavaOnevisionImageProcessorPil:
    """The family's image processor at the tiny size."""
    return LlavaOnevisionImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        image_grid_pinpoints=[[SIZE, SIZE]],
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """`batch` attempts a step (one or two questions each); peak learning rates; weights of the aids.

    drawn: share of attempts at a change that a base draws (`nopair.tiny.drawn`).
    look: first steps, which teach the vision tower alone; settle: steps after these, which teach the aids alone.
    curriculum: steps over which attempts that have nothing to do with the reference become rare.
    """

    steps: int = 3000
    batch: int = 24
    lr: float = 2e-3
    other_lr: float = 1e-3
    evidence: float = 1.0
    recall: float = 4.0
    sight: float = 1.0
    look: int = 400
    look_batch: int = 64
    settle: int = 0
    curriculum: int = 400
    ema: float = 0.998
    seed: int = 2
    drawn: float = 0.0


CONTINUED: Final = JudgeSettings(
    steps=1200, lr=8e-4, other_lr=4e-4, look=0, settle=120, curriculum=1, seed=3, drawn=0.45
)
"""For a judge that can answer already. Its aids were dropped, and new ones would first pull it about."""


class JudgePhase:
    """Cross-entropy of the answers and of the evidence, from a new model or, if one is given, from that."""

    name = "judge"

    def __init__(
        self,
        vae: AutoencoderKL,
        tokenizer: PreTrainedTokenizerFast,
        settings: JudgeSettings,
        start: LlavaOnevisionForConditionalGeneration | None = None,
        width: int = WIDTH,
        base: Backbone | None = None,
    ) -> None:
        """`width` is that of a new model, or of `start`; `base` draws attempts, if the settings have a share."""
        if settings.drawn and base is None:
            raise ValueError("attempts can only be drawn by a base")
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.steps = settings.steps
        self.device = choose_device("auto")
        self.base = base
        self.vae = vae.requires_grad_(False).eval().to(self.device)  # pyright: ignore[reportArgumentType]
        model = new_model(tokenizer, width) if start is None else start.float()
        self.model = model.to(self.device)  # pyright: ignore[reportArgumentType]
        told = len(_KINDS_OF_EVIDENCE) + 2 * _COLOURS
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, told)).to(self.device)
        self.sight = Sight(tokenizer, width).to(self.device)
        self.models = nn.ModuleDict({"model": self.model, "evidence_head": self.head, "sight": self.sight})
        self.judge = LlavaOnevisionJudge(self.model, tokenizer, Preprocess.of(new_processor(), SIZE))
        self.yes_id, self.no_id = (tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
        self.optimizer = PretrainingOptimizer(self.models, settings.lr, settings.other_lr)
        self.average = PretrainingAverage(self.models, settings.ema)

    def begin(self) -> None:
        """Nothing to take over: the constructor makes everything."""

    def end(self) -> None:
        """Nothing to let go of: no phase follows."""

    def step(self, index: int) -> dict[str, float]:
        """One optimizer step on fresh cases; all randomness comes from (seed, index)."""
        rng = random.Random(f"{self.settings.seed}/judge/{index}")
        self.model.requires_grad_(not 0 <= index - self.settings.look < self.settings.settle)
        return self._look(rng, index) if index < self.settings.look else self._answer(rng, index)

    def _look(self, rng: random.Random, index: int) -> dict[str, float]:
        """Only the vision tower: what does each patch show."""
        scenes = [random_scene(rng, least=0) for _ in range(self.settings.look_batch)]
        pixels = render_batch(scenes)
        painted = self._painter(rng)(pixels[::2])
        tokens = self.judge.image_features(torch.cat([painted, pixels[1::2]]).to(self.device))
        truth = labels(scenes[::2] + scenes[1::2]).to(self.device)
        loss = self.sight(tokens[:, :-1], self.model.get_input_embeddings().weight, truth)
        return {"sight": loss.item(), "grad_norm": self._update(loss, index)}

    def _update(self, loss: Tensor, index: int) -> float:
        norm = self.optimizer.step(loss, cosine(index, self.steps, 100))
        self.average.update(index)
        return norm

    def _answer(self, rng: random.Random, index: int) -> dict[str, float]:
        """All losses."""
        # At first most attempts have nothing to do with the reference, so that it can only be told by looking at it.
        unrelated = max(KINDS["unrelated"], 1.0 - (index - self.settings.look) / self.settings.curriculum)
        kinds = [draw_kind(rng, unrelated) for _ in range(self.settings.batch)]
        drawn = [(kind, draw_edit(rng, kind)) for kind in kinds]
        by_base = [self._is_drawn(rng, edit) for _, edit in drawn]
        rest = [one for one, is_drawn in zip(drawn, by_base, strict=True) if not is_drawn]
        groups = [group for kind, edit in rest if (group := make_case(rng, _generator(rng), kind, edit))]
        if self.base is not None:
            groups += drawn_cases(rng, self.base, [edit for (_, edit), is_ in zip(drawn, by_base, strict=True) if is_])
        logits, evidence, recalled, sight_loss = self.read(groups, rng)
        cases = [case for group in groups for case in group]
        answers = torch.tensor([self.yes_id if case.answer_yes else self.no_id for case in cases]).to(self.device)
        answer_loss = F.cross_entropy(logits, answers)
        marks = torch.stack([case.evidence for case in cases]).flatten(1).float().to(self.device)
        evidence_loss = F.binary_cross_entropy_with_logits(evidence, marks, pos_weight=marks.new_tensor(2.0))
        compared = torch.tensor(["{reference}" in case.question.prompt for case in cases])
        shown = torch.cat([_coarse(cases, "reference"), _coarse(cases, "target")], dim=2)
        recall_loss = (recalled - shown.to(self.device))[compared].square().mean()
        loss = answer_loss + self.settings.evidence * evidence_loss + self.settings.recall * recall_loss
        loss = loss + self.settings.sight * sight_loss
        norm = self._update(loss, index)
        right = ((logits[:, self.yes_id] > logits[:, self.no_id]) == (answers == self.yes_id)).float().mean()
        return {
            "loss": answer_loss.item(),
            "evidence": evidence_loss.item(),
            "recall": recall_loss.item(),
            "sight": sight_loss.item(),
            "accuracy": right.item(),
            "grad_norm": norm,
        }

    def _is_drawn(self, rng: random.Random, edit: Edit) -> bool:
        return self.settings.drawn > 0 and edit.category != "nothing" and rng.random() < self.settings.drawn

    def read(
        self, groups: Sequence[tuple[Case, ...]], rng: random.Random
    ) -> tuple[
        Float[Tensor, "row vocabulary"],
        Float[Tensor, "row patch"],
        Float[Tensor, "row patch colour"],
        Float[Tensor, ""],
    ]:
        """Answer logits, evidence logits and recalled colours for every case of every group; a group shares its
        images."""
        batch = len(groups)
        before = torch.stack([group[0].reference for group in groups])
        attempts = torch.stack([group[0].attempt for group in groups])
        attempts = view(rng, _generator(rng), attempts, self._painter(rng))
        features = self.judge.image_features(torch.cat([attempts, before]).to(self.device))
        truth = labels([group[0].scene for group in groups]).to(self.device)
        embeddings = self.model.get_input_embeddings().weight
        sight_loss = self.sight(features[batch:, :-1], embeddings, truth)
        rows, order, heads = [], [], []
        for i, group in enumerate(groups):
            for case in group:
                rows.append(self.judge.encode_prompt(case.question.prompt))
                alone = is_presence(case.question)
                order.extend([i] if alone else [batch + i, i])
                heads.append(2 if alone else _KINDS_OF_EVIDENCE.index(case.question.kind))
        inner, states = _hidden(self.judge, rows, features[torch.tensor(order)])
        # The attempt is the last image of every prompt; words after it are the same in all.
        after_image = len(rows[0]) - 1 - max(i for i, token in enumerate(rows[0]) if token == self._image_id)
        patches = (SIZE // PATCH) ** 2
        end = states.shape[1] - after_image - 1
        marks = self.head(inner[:, end - patches : end])
        chosen = marks[torch.arange(len(rows)), :, torch.tensor(heads)]
        recalled = marks[:, :, len(_KINDS_OF_EVIDENCE) :]
        return self.model.lm_head(states[:, -1]).float(), chosen.float(), recalled.float(), sight_loss

    @property
    def _image_id(self) -> int:
        return self.model.config.image_token_id

    def _painter(self, rng: random.Random) -> Callable[[Tensor], Tensor]:
        """The autoencoder's round trip with latents slightly off, as an editor's are."""
        source = _generator(rng)
        return lambda pixels: paint(self.vae, pixels, source, rng.choice((0.0, 0.0, 0.05, 0.15)))

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

    def finish(self) -> LlavaOnevisionForConditionalGeneration:
        """The model with its averaged weights."""
        self.models.load_state_dict(self.average.state())
        return self.model.cpu().eval()


def paint(
    vae: AutoencoderKL, pixels: Float[Tensor, "batch 3 height width"], source: torch.Generator, noise: float
) -> Float[Tensor, "batch 3 height width"]:
    """Encode, disturb the latents by `noise` of their own spread, decode; RGB in [0, 1]."""
    with torch.no_grad():
        latents = vae.encode(pixels.to(vae.device) * 2 - 1).latent_dist.mode()  # pyright: ignore[reportAttributeAccessIssue]
        latents = latents + noise * latents.std() * torch.randn(latents.shape, generator=source).to(vae.device)
        return (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).to(pixels)  # pyright: ignore[reportAttributeAccessIssue]


def _coarse(cases: Sequence[Case], name: str) -> Float[Tensor, "row patch colour"]:
    """Colours of every patch of the reference or the target, averaged on a coarse grid within the patch."""
    pixels = torch.stack([getattr(case, name) for case in cases])
    pooled = F.avg_pool2d(pixels, PATCH // _COARSE)
    return F.unfold(pooled, _COARSE, stride=_COARSE).transpose(1, 2)


def _generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(60))


def _hidden(
    judge: LlavaOnevisionJudge, rows: Sequence[Sequence[int]], shown: Float[Tensor, "image patch d"]
) -> tuple[Float[Tensor, "row token d"], Float[Tensor, "row token d"]]:
    """States before the last layer of the language model, and after it; rows padded on the left.

    The last layer gathers the answer from the patches, so what they have to tell must be there one layer earlier.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[judge.tokenizer.pad_token_id] * (longest - len(row)) + list(row) for row in rows]).to(
        shown.device
    )
    lengths = torch.tensor([len(row) for row in rows], device=shown.device)
    mask = torch.arange(longest, device=shown.device) >= longest - lengths[:, None]
    output = judge.model.model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=[shown.flatten(0, 1)])},  # pyright: ignore[reportArgumentType]
        use_cache=False,
        output_hidden_states=True,
    )
    return output.hidden_states[-2], output.last_hidden_state
