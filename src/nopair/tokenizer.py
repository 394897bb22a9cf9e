"""Reads a tokenizer's folder, turning every way it can be broken into one `ModelError` line. Only local files."""

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
