"""A judge's model that writes: what can judge can also describe, verify and give marks. No gradient.

The library's own processors need torchvision where a family also takes videos. This goes by the judges' image
processing, needs none, and shows each image in the judge's one view, where LLaVA-OneVision's own processor cuts a
single image into several. One question at a time. There is no JSON constraint here: the schema is told in words, and an
answer that does not fit is asked for again, as any other.
"""

import asyncio
import io
import json
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from nopair.device import enough_memory
from nopair.endpoints.messages import Ask, Picture, Reply
from nopair.endpoints.server import Usage
from nopair.errors import RefusedError
from nopair.judges.vision_language import Shown, VisionLanguageJudge


@final
class Writer:
    """Answers the requests that an endpoint takes, by a judge that is loaded here."""

    def __init__(self, name: str, judge: VisionLanguageJudge) -> None:
        """`name` is what errors call the model."""
        self.usage = Usage()
        self._name = name
        self._judge = judge

    async def chat(self, ask: Ask) -> Reply:
        """The model's words; computes in a thread of its own. At temperature 0 the likeliest token each time.

        Raises:
            RefusedError: the model cannot take the question, such as an image that is too large for it.
            MemoryShortError: its device has too little memory for the question.
        """
        with enough_memory(f"show {self._name} smaller images, or take a smaller model"):
            return await asyncio.to_thread(self._answer, ask)

    @torch.no_grad()
    def _answer(self, ask: Ask) -> Reply:
        pixels = [_pixels(part) for part in ask.parts if isinstance(part, Picture)]
        rows, inputs = self._inputs(ask, pixels)
        model: Any = self._judge.model
        sampling: dict[str, Any] = {"do_sample": False}
        if ask.temperature:
            sampling = {"do_sample": True, "temperature": ask.temperature}
        with torch.random.fork_rng():
            torch.manual_seed(ask.seed or 0)
            made = model.generate(
                input_ids=rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=ask.max_tokens,
                pad_token_id=self._judge.tokenizer.pad_token_id,
                output_logits=ask.top > 0,
                return_dict_in_generate=True,
                **sampling,
                **inputs,
            )
        tokens = made.sequences[0, rows.shape[1] :].tolist()
        usage = Usage(requests=1, input_tokens=rows.shape[1], output_tokens=len(tokens))
        self.usage += usage
        text: Any = self._judge.tokenizer.decode(tokens, skip_special_tokens=True)
        cut = len(tokens) >= ask.max_tokens
        return Reply(text, usage, self._first(made.logits[0][0], ask.top) if ask.top else (), finished=not cut)

    def _first(self, logits: Float[Tensor, "vocabulary"], top: int) -> tuple[tuple[str, float], ...]:
        """The likeliest first tokens."""
        likeliest = logits.float().log_softmax(0).topk(min(top, len(logits)))
        words: Any = [self._judge.tokenizer.decode([token]) for token in likeliest.indices.tolist()]
        return tuple(zip(words, likeliest.values.tolist(), strict=True))

    def _inputs(self, ask: Ask, pixels: list[Float[Tensor, "1 3 height width"]]) -> tuple[Tensor, dict[str, Any]]:
        """Token ids of the question with images spread over their tokens, [1, token], and the images' features."""
        family, marks = self._judge.family, self._judge.family.marks
        device = self._judge.model.device
        ids = self._ids(ask)
        if ids.count(marks.image) != len(pixels):
            raise RefusedError(f"{self._name}: the question's words hold the image token, or the template drops images")
        shown = [Shown(family.features(one.to(device))[0], one.shape[-2], one.shape[-1]) for one in pixels]
        worth = iter(shown)
        spread = [t for i in ids for t in ([i] * next(worth).features.shape[1] if i == marks.image else [i])]
        rows = self._judge.prompts.rows([spread], device)
        inputs = family.inputs(rows, shown) if shown else {}
        # The library counts positions while it writes.
        return rows.ids, {name: value for name, value in inputs.items() if name != "position_ids"}

    def _ids(self, ask: Ask) -> list[int]:
        system = ask.system
        if ask.schema is not None:
            system = f"{system}\n\nThe answer is JSON of this schema, and nothing else: {json.dumps(ask.schema)}"
        # Some families' templates know no system message, so its words come first instead.
        content = [
            {"type": "text", "text": f"{system}\n\n"},
            *({"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in ask.parts),
        ]
        return self._judge.prompts.ids_of(content)


def _pixels(picture: Picture) -> Float[Tensor, "1 3 height width"]:
    """A photo as it was kept: upright sRGB without transparency."""
    with Image.open(io.BytesIO(picture.content)) as image:
        levels = np.array(image.convert("RGB"))
    return torch.from_numpy(levels).permute(2, 0, 1)[None].float() / 255
