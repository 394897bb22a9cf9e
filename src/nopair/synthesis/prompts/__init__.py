"""What models are told to do: one text file per prompt and version, `name-version.txt`, shipped with the package.

A file that was shipped never changes; a new wording is a new file with a higher number. The text is the system message
and holds our words only. What it is about follows as data (see `nopair.synthesis.texts`).
"""

import importlib.resources
from dataclasses import dataclass
from functools import cache

__all__ = ["PromptText", "prompt_text"]


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt; `version` is the file's name without its suffix, such as caption-1."""

    version: str
    text: str


@cache
def prompt_text(version: str) -> PromptText:
    """The shipped prompt of that version."""
    file = importlib.resources.files("nopair.synthesis.prompts") / f"{version}.txt"
    return PromptText(version, file.read_text(encoding="utf-8").strip())
