"""The models that a run began with. Resumed, it goes on with the same files under the same names, or not at all."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nopair.config import Recipe
from nopair.data.files import make_folder, write_atomic
from nopair.digests import model_digest
from nopair.errors import CheckpointError
from nopair.weights import resolve

MODELS: Final = "models.json"
"""Within a run's folder: digests of model folders by the names that its recipe has for them."""

_LOG: Final = logging.getLogger(__name__)


def models_of(recipe: Recipe) -> Mapping[str, str]:
    """Digests of the folders of all models that a recipe names, by these names.

    Raises:
        ModelError: a folder is missing, or a file cannot be read.
    """
    judges = recipe.judges if recipe.bystander is None else (*recipe.judges, recipe.bystander)
    names = (recipe.base.path, recipe.base.student, *(judge.path for judge in judges))
    return {name: model_digest(resolve(name)) for name in dict.fromkeys(names) if name is not None}


def require_same_models(directory: Path, models: Mapping[str, str]) -> None:
    """Of a run that is to be resumed. One from before nopair kept `MODELS` passes with a warning.

    Raises:
        CheckpointError: the files of a model are not those that the run in `directory` began with, or `MODELS` cannot
            be read.
    """
    path = directory / MODELS
    if not path.exists():
        _LOG.warning("%s is missing, so nobody can tell whether the run goes on with the models it began with", path)
        return
    try:
        kept = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); remove it to resume without comparing models"
        ) from None
    for name, digest in models.items():
        if kept.get(name, digest) != digest:
            raise CheckpointError(
                f"the files of {name} are not those that the run in {directory} began with; bring those back, start "
                f"anew in another output, or remove {path} to go on with these"
            )


def keep_models(directory: Path, models: Mapping[str, str]) -> None:
    """Write `MODELS`. Raises OutputError."""
    make_folder(directory)
    write_atomic(directory / MODELS, (json.dumps(models, indent=2) + "\n").encode())
