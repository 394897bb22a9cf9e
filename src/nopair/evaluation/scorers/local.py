"""A vision-language model of transformers, run here, that writes its answers as an endpoint would.

The families that nopair judges with (`nopair.judges.load.FAMILIES`) go by its own image processing, one view of each
image, which needs no torchvision; any other goes by the library's processor. A result's version says which.
"""

import functools
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from nopair.data.files import is_folder
from nopair.device import choose_device, enough_memory
from nopair.digests import folder_digest
from nopair.endpoints.messages import Ask, Reply
from nopair.endpoints.server import Server, Usage
from nopair.errors import ConfigError, ModelError, RefusedError
from nopair.evaluation.scorers.judge import Asked
from nopair.judges.folder import family_of
from nopair.judges.load import FAMILIES, load_judge
from nopair.judges.writer import Writer
from nopair.precision import DTYPES


@final
class LocalAsked:
    """A `nopair.evaluation.scorers.judge.Asked` of any family: one answer at a time, the likeliest token each time."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.usage = Usage()
        self._model = model
        self._processor = processor

    async def chat(self, ask: Ask) -> Reply:
        """See `Asked.chat`.

        Raises:
            RefusedError: the model's processor cannot take these words and images.
            MemoryShortError: the device has too little memory for them.
        """
        messages = [{"role": "user", "content": [_content(part) for part in (ask.system, *ask.parts) if part]}]
        try:
            inputs = self._processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self._model.device, self._model.dtype)
        except (ValueError, TypeError) as error:
            raise RefusedError(f"cannot be shown to this model ({str(error).strip().splitlines()[0]})") from error
        length = inputs["input_ids"].shape[1]
        with torch.no_grad(), enough_memory("show the judge smaller images, or take a smaller judge"):
            output = self._model.generate(**inputs, do_sample=False, max_new_tokens=ask.max_tokens)[0, length:]
        usage = Usage(requests=1, input_tokens=int(length), output_tokens=len(output))
        self.usage += usage
        text = self._processor.decode(output, skip_special_tokens=True)
        return Reply(text, usage, finished=len(output) < ask.max_tokens)


@final
@dataclass(frozen=True, eq=False)
class LocalJudge:
    """A `nopair.evaluation.scorers.judge.ScoringJudge` in memory."""

    name: str
    version: str
    model: str
    most_tokens: int
    opened: Callable[[], Asked]

    @property
    def server(self) -> Server | None:
        """It runs here."""
        return None

    @property
    def longest_side(self) -> int | None:
        """Nothing is sent, and its family's own image processing chooses the size."""
        return None

    @property
    def temperature(self) -> float | None:
        """The likeliest token each time."""
        return 0.0

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Asked]:
        """See `ScoringJudge.session`. It is loaded now.

        Raises:
            ModelError, JudgeError: it cannot be used.
            MemoryShortError: it does not fit its device.
        """
        with enough_memory(f"take a smaller judge than {self.name}, or another device (--device cpu)"):
            asked = self.opened()
        yield asked

    @classmethod
    def load(cls, folder: Path, name: str | None, dtype: str, device: str, most_tokens: int) -> "LocalJudge":
        """Any family that transformers can open; its weights are not read yet.

        Nothing is downloaded, no code from the folder is run.

        Raises:
            ModelError: the folder is missing, or holds no such model.
            ConfigError: the precision or the device is unknown.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"dtype {dtype!r} is unknown; choose {', '.join(DTYPES)}")
        place = choose_device(device)
        if not is_folder(folder):
            raise ModelError(f"{folder}: no such model folder; check the path")
        model, family = folder.resolve().name, family_of(folder)
        name = name or model
        if family not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise ModelError(f"{folder}: cannot be loaded as a judge ({family} does not answer about images)")
        if family in FAMILIES:
            opened, seen = functools.partial(_of_ours, name), "one view"
        else:
            opened, seen = _any_family, "the library's views"
        version = f"{family} {folder_digest(folder)} {dtype}, {seen}"
        return cls(name, version, model, most_tokens, functools.partial(opened, folder, DTYPES[dtype], place))


def _of_ours(name: str, folder: Path, dtype: torch.dtype, place: torch.device) -> Writer:
    return Writer(name, load_judge(folder, dtype).to(place))


def _any_family(folder: Path, dtype: torch.dtype, place: torch.device) -> LocalAsked:
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, SafetensorError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{folder}: cannot be loaded as a judge ({reason}); if a package is missing, install it, or serve the "
            "model with vLLM and name its endpoint"
        ) from error
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):  # the library makes them up
        raise ModelError(f"{folder}: {len(missing)} weights are missing, {missing[0]} first; copy the folder again")
    model.requires_grad_(False).eval().to(place)
    # Settings for sampling in the folder mean nothing to greedy answers, and would be warned of each time.
    model.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    return LocalAsked(model, processor)


def _content(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "image": Image.open(io.BytesIO(part.content)).convert("RGB")}
