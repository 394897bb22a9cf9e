"""What a judge is asked, as versioned data: the texts in `rubrics/`, or the official ones where a user has them."""

import ast
import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from nopair.errors import ConfigError

Words = Annotated[str, Field(min_length=1)]
Shown = Literal["source", "edited"]


class Template(BaseModel):
    """One question. `prompt` holds the places `{instruction}` and, where the rubric has criteria, `{criteria}`.

    Attributes:
        name: of the question, such as SC.
        shows: the images that follow the text, in order.
        scores: how many numbers the answer holds.
        reply: how they are written: in a JSON object under "score", or at the ends of lines, `label: number`.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Words
    shows: tuple[Shown, ...]
    scores: Annotated[int, Field(ge=1)]
    prompt: Words
    reply: Literal["json", "lines"] = "json"


class Rubric(BaseModel):
    """All questions about one edit. Numbers in answers lie in [low, high].

    `criteria` are further words by category of edit; with them, a category that has none cannot be asked about.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    name: Words
    version: Words
    low: int
    high: int
    questions: tuple[Template, ...]
    criteria: Mapping[str, Words] = {}

    def prompt(self, template: Template, category: str, instruction: str) -> str | None:
        """The question in words; None if there are no criteria for this category of edit."""
        words = template.prompt
        if self.criteria:
            if category not in self.criteria:
                return None
            words = words.replace("{criteria}", self.criteria[category])
        return words.replace("{instruction}", instruction)  # last: an instruction may hold braces


def ours(name: Literal["viescore", "imgedit"]) -> Rubric:
    """The rubric that comes with nopair."""
    text = (importlib.resources.files("nopair.evaluation.scorers") / "rubrics" / f"{name}.yaml").read_text(
        encoding="utf-8"
    )
    return Rubric.model_validate_json(json.dumps(yaml.safe_load(text)))


# Official texts, which are not ours to ship ---------------------------------------------------------------------------

_VIESCORE_PARTS: Final = {
    "SC": ("_context_no_delimit", "_prompts_0shot_two_image_edit_rule", "_prompts_0shot_tie_rule_SC"),
    "PQ": ("_context_no_delimit", "_prompts_0shot_rule_PQ"),
}
"""Names of the texts in vie_prompts.py that make up each question."""


def official_viescore(path: Path) -> Rubric:
    """The texts of VIEScore from its `vie_prompts.py`, which is read and not run.

    Raises:
        ConfigError: the file cannot be read or lacks a text.
    """
    content = _read(path)
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path}: is not Python ({error}); give the vie_prompts.py of VIEScore") from error
    texts: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    for name in (name for parts in _VIESCORE_PARTS.values() for name in parts):
        if name not in texts:
            raise ConfigError(f"{path}: holds no text {name}; give the vie_prompts.py of VIEScore")
    prompts = {question: "\n".join(texts[name] for name in parts) for question, parts in _VIESCORE_PARTS.items()}
    questions = (
        Template(name="SC", shows=("source", "edited"), scores=2, prompt=_own_place(prompts["SC"], "<instruction>")),
        Template(name="PQ", shows=("edited",), scores=2, prompt=prompts["PQ"]),
    )
    return Rubric(name="viescore-official", version=_version(content), low=0, high=10, questions=questions)


def official_imgedit(path: Path) -> Rubric:
    """The texts of ImgEdit-Bench from its JSON file of prompts by type of edit.

    Raises:
        ConfigError: the file cannot be read or is of another form.
    """
    content = _read(path)
    try:
        texts: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({error}); give the prompts file of ImgEdit-Bench") from error
    if not isinstance(texts, dict) or not texts or not all(isinstance(text, str) and text for text in texts.values()):
        raise ConfigError(f"{path}: expected an object of a text for each type of edit; give ImgEdit's prompts file")
    criteria = {kind.lower(): _own_place(text, "<edit_prompt>") for kind, text in texts.items()}
    question = Template(name="edit", shows=("source", "edited"), scores=3, prompt="{criteria}", reply="lines")
    version = _version(content)
    return Rubric(name="imgedit-official", version=version, low=1, high=5, questions=(question,), criteria=criteria)


def _own_place(text: str, place: str) -> str:
    return text.replace(place, "{instruction}")


def _version(content: str) -> str:
    """Nobody numbers these files: their content tells them apart."""
    return hashlib.sha256(content.encode("utf-8")).hexdigest()[:12]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); check the path") from error
