"""Of which families a judge is, by its names, and which judge an editor was trained under."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from nopair.editor import read_settings
from nopair.judges.folder import named
from nopair.weights import resolve

NAMES: Final[Mapping[str, str]] = {
    "qwen": r"qwen|qwq",
    "internvl": r"intern[-_]?vl",
    "llava": r"llava",
    "smolvlm": r"smolvlm|idefics",
    "gemma": r"gemma",
    "gpt": r"gpt|\bo[134]\b|chatgpt",
    "gemini": r"gemini",
    "claude": r"claude",
    "llama": r"llama",
    "pixtral": r"pixtral|mistral",
    "glm": r"\bglm|cogvlm",
    "molmo": r"molmo",
    "phi": r"\bphi",
    "minicpm": r"minicpm",
    "ovis": r"\bovis",
    "kimi": r"kimi",
    "deepseek": r"deepseek",
    "step": r"\bstep-?\d",
    "grok": r"grok",
    "nova": r"\bnova\b",
}
"""What names of models of a family have in common, lower case. A model named for two, as LLaVAs of a Qwen are, is of
both."""


def families(*names: str) -> frozenset[str]:
    """The families that a model's names tell; none if they tell none."""
    return frozenset(family for family, pattern in NAMES.items() for name in names if re.search(pattern, name.lower()))


def training_judges(model: str | None, told: str | None) -> tuple[str, ...] | None:
    """Names of the judges that an editor was trained under, as far as is known.

    `told` is what the user says; else the editor itself tells, or the recipe that a run leaves beside it. `model` is
    None for an editor that is not ours. None if nobody knows.

    Raises:
        ModelError: `model` is no editor of ours.
    """
    if told is not None:
        return (told,)
    if model is None:
        return None
    folder = resolve(model)
    return read_settings(folder).judges or _by_recipe(folder.resolve().parent / "recipe.yaml")


def _by_recipe(recipe: Path) -> tuple[str, ...] | None:
    try:
        values: Any = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(values, dict):
        return None
    judges = [values.get("judge"), *(values.get("ensemble") or [])]
    paths = [judge["path"] for judge in judges if isinstance(judge, dict) and isinstance(judge.get("path"), str)]
    return tuple(map(named, paths)) or None
