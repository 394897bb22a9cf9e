"""Reads a tokenizer's folder, turning every way it can be broken into one `ModelError` line. Only local files."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nopair.errors import ModelError


def read_tokenizer(folder: Path, kind: Any = AutoTokenizer) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, of the class that its own files name, or of the class `kind`.

    Raises:
        ModelError: it is missing or unreadable.
    """
    try:
        tokenizer = kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # noqa: BLE001 - the tokenizers library has no class for what it finds in a bad file
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        raise ModelError(f"{folder}: cannot load the tokenizer ({line}); copy the folder again") from None
    # The library takes these two as they are, and fails when they are first used.
    template, longest = tokenizer.chat_template, tokenizer.model_max_length
    if not (isinstance(template, str | dict | None) and isinstance(longest, int | float)):
        raise ModelError(
            f"{folder}: the tokenizer has a chat_template or a model_max_length of a wrong type; copy the folder again"
        )
    return tokenizer


def read_chat_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a vision-language model's `folder`, with the chat template that the model's processor would use.

    The processor's own files come first, as in the library: older checkpoints have a template for images there, and in
    tokenizer_config.json that of the language model they began as, which knows words alone.

    Raises:
        ModelError: it is missing or unreadable, or there is no chat template.
    """
    tokenizer = read_tokenizer(folder)
    told = (_template(folder / name) for name in ("processor_config.json", "chat_template.json"))
    template = next((one for one in told if one is not None), tokenizer.chat_template)
    if template is None:
        raise ModelError(f"{folder}: the judge has no chat template; add chat_template.jinja")
    tokenizer.chat_template = template
    return tokenizer


def _template(path: Path) -> str | None:
    """What a JSON file says under `chat_template`; None if there is no such file, or nothing of that name in it."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); copy it again") from None
    template = told.get("chat_template") if isinstance(told, dict) else None
    if not isinstance(template, str | None):
        raise ModelError(f"{path}: its chat_template is no text; copy it again")
    return template
