"""Words of strangers: how they go into a request as data, and how they come out of an answer clean."""

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Final

_STRUCTURAL: Final = re.compile(r"[<>|\[\]{}`]")
"""Characters of which chat templates, image places and code fences are made."""


def as_data(values: Mapping[str, str]) -> str:
    """One line of JSON that holds the texts and nothing else, whatever they say; `json.loads` gives them back.

    The quotes, line ends and control characters in a text are escaped, as JSON has it, and so are the characters of
    special tokens (`<|im_end|>`, `[INST]`): a server would turn those into tokens wherever they stand.
    """
    pairs = (f"{json.dumps(name)}: {_quoted(text)}" for name, text in values.items())
    return "{" + ", ".join(pairs) + "}"


def _quoted(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    safe = _STRUCTURAL.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c for c in safe)


def tidy(text: str) -> str:
    """A text on one line: line ends and runs of spaces are one space, characters that print nothing are gone."""
    shown = (c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cn", "Cs"))
    return " ".join("".join(shown).split())


def printable(name: str) -> str:
    """A file's name as text, also if its bytes are none."""
    return tidy(name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
