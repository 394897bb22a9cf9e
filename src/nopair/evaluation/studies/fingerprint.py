"""Short names of all that a run depends on, but for the machine and the program."""

import functools
import hashlib
import json
from collections.abc import Iterable, Set
from pathlib import Path

from nopair.config import Recipe
from nopair.digests import model_digest
from nopair.weights import resolve


def said(recipe: Recipe, sections: Set[str]) -> str:
    """What a recipe says in these sections, defaults included: a default that changes makes another run."""
    return json.dumps(recipe.model_dump(mode="json", include=set(sections)), sort_keys=True)


def base_contents(recipe: Recipe) -> str:
    """Contents of the folders that the student starts from. Raises ModelError."""
    base = recipe.base
    return contents([base.path] if base.student is None else [base.path, base.student])


def judge_contents(recipe: Recipe) -> str:
    """Contents of the folders of the judges that it is trained under. Raises ModelError."""
    return contents(judge.path for judge in recipe.judges)


def contents(models: Iterable[str]) -> str:
    """Digests of models' folders, since a name such as `tiny:judge` stays when its weights are made again.

    Each folder is read once in a process. Raises ModelError.
    """
    return " ".join(_content(resolve(model)) for model in models)


@functools.cache
def _content(folder: Path) -> str:
    return model_digest(folder)


def digest(text: str) -> str:
    """A short name for a long text, the same everywhere."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
