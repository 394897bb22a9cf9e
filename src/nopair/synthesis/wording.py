"""Reads the shipped prompts; what they are and how they change is in `nopair.synthesis.prompts`."""

import importlib.resources
from dataclasses import dataclass
from functools import cache


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
