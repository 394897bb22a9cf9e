"""The LLaVA-OneVision family as a judge (transformers `LlavaOnevisionForConditionalGeneration`).

Every image goes the way the family gives to prompts with several images: one square view, no tiles, so one image costs
(side / patch)² + 1 tokens also in a question about a single image. The library's own methods do all of the model's
work; here prompts are built, features are shared between questions, and answers are read.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from nopair.errors import JudgeError, ModelError
from nopair.judges.preprocess import Preprocess
from nopair.judges.tokens import Answers, answers_of
from nopair.types import Question

FAMILY: Final = "llava_onevision"
_PLACES: Final = re.compile(r"(\{reference\}|\{edited\})")
_CACHED_PROMPTS: Final = 16384
"""Prompts kept tokenised; about 1 kB each."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A tokenised prompt with one image token per image; `shows_edited[i]` says which image the i-th of them is."""

    ids: tuple[int, ...]
    shows_edited: tuple[bool, ...]


class LlavaOnevisionJudge:
    """A LLaVA-OneVision model that answers Yes/No questions; a `nopair.judges.base.Judge`.

    Attributes:
        model: as given. `load` freezes it; a model that is still being trained may be given to the constructor.
        tokenizer, preprocess: of the same checkpoint.
        answers: the tokens that mean Yes and No.
        image_tokens: language-model tokens per image.
    """

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        preprocess: Preprocess,
    ) -> None:
        """Puts the parts together.

        Raises:
            JudgeError: Yes and No cannot be told apart by one token.
            ModelError: the vision tower is no square SigLIP, or the tokenizer has no padding token or no template.
        """
        if tokenizer.chat_template is None:
            raise ModelError("the judge's tokenizer has no chat template; add chat_template.jinja to its folder")
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == model.config.image_token_id:
            raise ModelError(
                "the judge's tokenizer has no padding token of its own; add pad_token to tokenizer_config.json"
            )
        side, patch = _vision_sizes(model)
        self.model = model
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.answers: Answers = answers_of(tokenizer)
        # One more for the newline token; the "default" strategy drops the vision tower's first token.
        dropped = model.config.vision_feature_select_strategy == "default"
        self.image_tokens: int = (side // patch) ** 2 + 1 - dropped
        self._prompt = lru_cache(maxsize=_CACHED_PROMPTS)(self._tokenise)
        self._prompt("{reference}{edited}")  # a broken template should fail here, not at the first question

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "LlavaOnevisionJudge":
        """A frozen judge from an ordinary checkpoint folder: safetensors weights, tokenizer, image processor, template.

        Nothing is downloaded and no code from the folder is run.

        Raises:
            ModelError: the folder is missing, incomplete, or of another family.
            JudgeError: see the constructor.
        """
        _require_family(folder)
        try:
            loaded: Any = LlavaOnevisionForConditionalGeneration.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, in one line
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            processor = LlavaOnevisionImageProcessorPil.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
            raise ModelError(
                f"cannot load the judge in {folder}: {_first_line(error)}; copy the folder again"
            ) from error
        model, loading = loaded
        _require_weights(folder, loading)
        if tokenizer.chat_template is None:
            tokenizer.chat_template = _legacy_template(folder)
        model.requires_grad_(False).eval()
        return cls(model, tokenizer, Preprocess.of(processor, _vision_sizes(model)[0]))

    def yes_minus_no(
        self,
        reference: Float[Tensor, "batch 3 height width"],
        edited: Float[Tensor, "batch 3 edited_height edited_width"],
        questions: Sequence[Sequence[Question]],
    ) -> Float[Tensor, "batch question"]:
        """See `nopair.judges.base.Judge.yes_minus_no`. Two vision calls at most and one language-model call."""
        batch = len(questions)
        if not batch == len(reference) == len(edited):
            raise ValueError(f"{len(reference)} references, {len(edited)} edited images, {batch} rows of questions")
        prompts = [self._prompt(question.prompt) for row in questions for question in row]
        table = edited.new_zeros(batch, max(map(len, questions), default=0), dtype=torch.float32)
        if not prompts:
            return table
        samples = [sample for sample, row in enumerate(questions) for _ in row]
        columns = [column for row in questions for column in range(len(row))]
        features = [self.image_features(edited)]
        if any(not shows_edited for prompt in prompts for shows_edited in prompt.shows_edited):
            with torch.no_grad():
                features.append(self.image_features(reference))
        # Image i of the batch is row i as edited, row batch + i as reference.
        order = [
            sample if shows_edited else batch + sample
            for sample, prompt in zip(samples, prompts, strict=True)
            for shows_edited in prompt.shows_edited
        ]
        shown = torch.cat(features)[torch.tensor(order, device=edited.device)]
        odds = self.odds(self.answer_logits([self._expand(prompt) for prompt in prompts], shown))
        return table.index_put((torch.tensor(samples), torch.tensor(columns)), odds)

    def image_features(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch token d"]:
        """Images as language-model tokens, `image_tokens` each, with gradient; RGB in [0, 1]."""
        inputs = self.preprocess(pixels).to(self.model.dtype)
        # Any number but 1 tells the library that an image is one of several: no tiles, and its size does not matter.
        several: Any = [max(2, len(inputs))]
        sizes = torch.full((len(inputs), 2), self.preprocess.side)
        packed: Any = self.model.get_image_features(inputs, sizes, batch_num_images=several)
        return torch.stack(packed.pooler_output)

    def answer_logits(
        self, rows: Sequence[Sequence[int]], shown: Float[Tensor, "image token d"]
    ) -> Float[Tensor, "row vocabulary"]:
        """Logits of the token after each row, in one language-model call.

        Args:
            rows: token ids as `encode_prompt` gives them, of any lengths; they are padded on the left.
            shown: features of the images in the order in which all rows, one after another, show them.
        """
        longest = max(map(len, rows))
        device = shown.device
        padding = self.tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        per_prompt: Any = [shown.flatten(0, 1)]  # a list, as the library's own `get_image_features` has it
        mask = torch.arange(longest, device=device) >= longest - lengths[:, None]
        output = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=per_prompt)},
            logits_to_keep=1,
            use_cache=False,
        )
        return output.logits[:, -1]

    def odds(self, logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, "row"]:
        """log p(Yes) - log p(No), in fp32, each summed over the spellings of the answer."""
        yes, no = (logits[:, list(ids)].float().logsumexp(dim=1) for ids in (self.answers.yes, self.answers.no))
        return yes - no

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a question's prompt in the chat template, each image spread over `image_tokens` image tokens.

        Raises:
            JudgeError: the prompt shows no image, or its words hold the image token.
        """
        return self._expand(self._prompt(prompt))

    def _expand(self, prompt: _Prompt) -> list[int]:
        image = self.model.config.image_token_id
        return [token for i in prompt.ids for token in ([i] * self.image_tokens if i == image else [i])]

    def _tokenise(self, prompt: str) -> _Prompt:
        parts = [part for part in _PLACES.split(prompt) if part]
        images = [part for part in parts if _PLACES.fullmatch(part)]
        if not images:
            raise JudgeError(
                f"the question {prompt!r} shows no image; write {{reference}} or {{edited}} where one goes"
            )
        content: Any = [{"type": "image"} if part in images else {"type": "text", "text": part} for part in parts]
        try:
            text: Any = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise ModelError(
                f"the judge's chat template fails ({_first_line(error)}); correct chat_template.jinja"
            ) from error
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        found = ids.count(self.model.config.image_token_id)
        if found != len(images):
            raise JudgeError(
                f"the question {prompt!r} shows {len(images)} images, but {found} are in its tokens; "
                "take image tokens out of its words, or correct chat_template.jinja"
            )
        return _Prompt(tuple(ids), tuple(image == "{edited}" for image in images))


def _require_family(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(
            f"there is no judge in {folder}: {path.name} is missing; give a Hugging Face checkpoint folder"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({_first_line(error)}); copy it again") from error
    family = config.get("model_type") if isinstance(config, dict) else None
    if family != FAMILY:
        raise ModelError(f"the judge in {folder} is of the family {family!r}, but {FAMILY!r} is needed")


def _vision_sizes(model: LlavaOnevisionForConditionalGeneration) -> tuple[int, int]:
    """Side of the vision tower's input and of a patch, in pixels."""
    vision = model.config.vision_config
    if isinstance(vision, SiglipVisionConfig):
        side, patch = vision.image_size, vision.patch_size
        if isinstance(side, int) and isinstance(patch, int):
            return side, patch
    raise ModelError(f"the judge's vision tower is no square SigLIP but {type(vision).__name__}; use another judge")


def _require_weights(folder: Path, loading: dict) -> None:
    """The library fills missing weights with random numbers; a judge must not guess."""
    missing = set(loading["missing_keys"])
    other_shape = {name for name, *_shapes in loading["mismatched_keys"]}
    if missing or other_shape:
        problem = "lacks weights" if missing else "has weights of other shapes than its config.json says"
        name = min(missing or other_shape)
        raise ModelError(f"the judge in {folder} {problem}, e.g. {name}; copy the folder again")


def _legacy_template(folder: Path) -> str:
    """The chat template of older checkpoints, which the tokenizer does not load by itself."""
    path = folder / "chat_template.json"
    if not path.is_file():
        raise ModelError(f"the judge in {folder} has no chat template; add chat_template.jinja")
    try:
        return json.loads(path.read_text(encoding="utf-8"))["chat_template"]
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path} holds no chat_template; add chat_template.jinja instead") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
