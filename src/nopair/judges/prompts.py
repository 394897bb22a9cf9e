"""From a question's words to rows of token ids, for any family.

A family's template puts one image token where an image goes. Its processor then spreads that token over as many as the
image is worth, with marks of its own around them; here it is spread after tokenising, once it is known how large the
images are.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
from jaxtyping import Bool, Int
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nopair.errors import JudgeError, ModelError

_PLACES: Final = re.compile(r"(\{reference\}|\{edited\})")
_NAMES: Final = ("the first image", "the second image", "the third image", "the fourth image")
_THOUGHT: Final = "<think>"
_CACHED_PROMPTS: Final = 16384
"""Prompts kept tokenised; about 1 kB each."""


@dataclass(frozen=True, slots=True)
class ImageMarks:
    """The token that stands for an image, and the tokens a family's processor writes before and after its run."""

    image: int
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt with one image token per image; `shows_edited[i]` says which image the i-th of them is."""

    ids: tuple[int, ...]
    shows_edited: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Token ids padded on the left, and which of them are no padding."""

    ids: Int[Tensor, "row token"]
    mask: Bool[Tensor, "row token"]

    @property
    def positions(self) -> Int[Tensor, "row token"]:
        """Each token's place in its row; padding is at 0."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)


def named(prompt: str) -> str:
    """A prompt's words where all images stand before them: a place says which image it is, or of one image nothing.

    Raises:
        JudgeError: it shows more images than there are names for.
    """
    count = len(_PLACES.findall(prompt))
    if count > len(_NAMES):
        raise JudgeError(f"the question {prompt!r} shows {count} images; show at most {len(_NAMES)}")
    if count == 1:
        return " ".join(_PLACES.sub("", prompt).split())
    names = iter(_NAMES)
    return _PLACES.sub(lambda _: f"({next(names)})", prompt)


class Prompts:
    """Writes prompts with one tokenizer and its chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, marks: ImageMarks) -> None:
        """Takes the tokenizer as it is.

        Raises:
            ModelError: the tokenizer has no template, a broken one, no padding token, or does not know the marks.
            JudgeError: the template leaves out images, or makes the model think aloud before it answers.
        """
        if tokenizer.chat_template is None:
            raise ModelError("the judge's tokenizer has no chat template; add chat_template.jinja to its folder")
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == marks.image:
            raise ModelError(
                "the judge's tokenizer has no padding token of its own; add pad_token to tokenizer_config.json"
            )
        for mark in (*marks.before, *marks.after):
            if len(tokenizer.encode(mark, add_special_tokens=False)) != 1:
                raise ModelError(f"the judge's tokenizer has no token {mark}; copy the checkpoint's own tokenizer")
        if not 0 <= marks.image < len(tokenizer):
            raise ModelError(
                f"the judge's tokenizer has no token {marks.image}, which config.json says stands for an image; "
                "copy the checkpoint's own tokenizer"
            )
        self.tokenizer = tokenizer
        self.marks = marks
        image: Any = tokenizer.convert_ids_to_tokens(marks.image)
        self._image_word: str = image
        self._spread: str = "".join((*marks.before, image, *marks.after))
        self._in_order: bool = self._keeps_order()
        self.prompt = lru_cache(maxsize=_CACHED_PROMPTS)(self._tokenise)
        self.prompt("{reference}{edited}")  # a broken template should fail here, not at the first question
        if self._rendered(["{edited}"]).rstrip().endswith(_THOUGHT):
            raise JudgeError(
                f"the judge's chat template opens a thought ({_THOUGHT}), so its next word is no answer; take the "
                "checkpoint that answers at once, mostly named Instruct"
            )

    def _tokenise(self, prompt: str) -> Prompt:
        """The prompt in the chat template, with one image token for each image place.

        Raises:
            JudgeError: the prompt shows no image, or its words hold the image token.
        """
        parts = [part for part in _PLACES.split(prompt) if part]
        images = [part for part in parts if _PLACES.fullmatch(part)]
        if not images:
            raise JudgeError(
                f"the question {prompt!r} shows no image; write {{reference}} or {{edited}} where one goes"
            )
        text = self._rendered(parts if self._in_order else [*images, named(prompt)])
        ids = self._spread_ids(text)
        found = ids.count(self.marks.image)
        if found != len(images):
            raise JudgeError(
                f"the question {prompt!r} shows {len(images)} images, but {found} are in its tokens; "
                "take image tokens out of its words, or correct chat_template.jinja"
            )
        return Prompt(tuple(ids), tuple(image == "{edited}" for image in images))

    def _rendered(self, parts: Sequence[str]) -> str:
        """The chat template with these words and image places in it."""
        return self._written(
            [{"type": "image"} if _PLACES.fullmatch(part) else {"type": "text", "text": part} for part in parts]
        )

    def ids_of(self, content: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of one message of a user, given as the library's chat templates take it, before the reply.

        Raises:
            ModelError: the template cannot be filled in.
        """
        return self._spread_ids(self._written(content))

    def _spread_ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text.replace(self._image_word, self._spread), add_special_tokens=False)

    def _written(self, content: Sequence[Mapping[str, str]]) -> str:
        message: Any = {"role": "user", "content": list(content)}
        try:
            text: Any = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError) as error:  # the second where a template for words alone meets an image
            raise ModelError(
                f"the judge's chat template fails ({str(error).strip().splitlines()[0]}); put the one for images, of "
                "the model's own checkpoint, into chat_template.jinja"
            ) from error
        return text

    def _keeps_order(self) -> bool:
        """Whether words and images stay as they are given. LLaVA-OneVision's published template puts images first."""
        text = self._rendered(["BEFORE", "{reference}", "AFTER"])
        return text.find("BEFORE") < text.find(self._image_word) < text.find("AFTER")

    def expand(self, prompt: Prompt, edited: int, reference: int) -> list[int]:
        """Ids of the prompt with each image spread over the number of tokens its kind of image is worth."""
        worth = iter([edited if shows_edited else reference for shows_edited in prompt.shows_edited])
        return [token for i in prompt.ids for token in ([i] * next(worth) if i == self.marks.image else [i])]

    def rows(self, rows: Sequence[Sequence[int]], device: torch.device) -> Rows:
        """Rows of any lengths as one tensor."""
        longest = max(map(len, rows))
        padding = self.tokenizer.pad_token_id
        ids = torch.tensor([[padding] * (longest - len(row)) + list(row) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return Rows(ids, torch.arange(longest, device=device) >= longest - lengths[:, None])
