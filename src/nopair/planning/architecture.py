"""What a model looks like, without its weights: from the configs of a local folder, or of a published model.

`architectures/` holds the configs of published models that recipes name, one JSON file each, in the layout of their
folders: a path within the folder, and what the JSON file there says. `parameters` are the published counts, which tests
compare with what the configs make.
"""

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nopair.errors import ModelError
from nopair.precision import refuse_quantised
from nopair.weights import PREFIX, how_to_download, may_be_published, resolve

_SEPARATOR: Final = "--"
"""Stands for the slash of a model's id in the name of its file."""
_CONFIGS: Final = " --include '*.json' '*.jinja' '*.txt'"
"""A model's configs and its tokenizer, without weights."""


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model folder less its weights.

    Attributes:
        name: as the recipe has it.
        folder: where it is, or None for a published model that is not here.
        configs: what its JSON files say, by path within the folder.
        parameters: published parameter counts by part, where known.
    """

    name: str
    folder: Path | None
    configs: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, float]

    def config(self, path: str) -> dict[str, Any]:
        """What the JSON file at `path` says.

        Raises:
            ModelError: there is no such file, or it is not JSON with keys; or it is of a model whose weights are
                quantised, which training refuses.
        """
        if path in self.configs:
            return dict(self.configs[path])
        if self.folder is None:
            raise ModelError(f"{self.name}: nopair knows no {path} of this model; plan with its folder")
        found = _read(self.folder / path)
        refuse_quantised(found, f"the model of {self.folder / path}")
        return found


def architecture(name: str) -> Architecture:
    """The architecture of a recipe's `path`: a local folder, `tiny:...`, or the id of a published model.

    Raises:
        ModelError: no such folder, and no published model whose architecture comes with nopair.
    """
    if name in published() and not Path(name).is_dir():
        known = json.loads((_files() / f"{name.replace('/', _SEPARATOR)}.json").read_text(encoding="utf-8"))
        return Architecture(name, None, known["configs"], known["parameters"])
    if not name.startswith(PREFIX) and not Path(name).is_dir():
        advice = (
            f"or download its config files: {how_to_download(name, _CONFIGS)}"
            if may_be_published(name)
            else "check the path"
        )
        raise ModelError(
            f"{name}: no such model folder, and none of the models known: {', '.join(published())}; {advice}"
        )
    return Architecture(name, resolve(name), {}, {})


def published() -> tuple[str, ...]:
    """Ids of the published models whose architecture comes with nopair, sorted."""
    names = (file.name for file in _files().iterdir())
    return tuple(
        sorted(name.removesuffix(".json").replace(_SEPARATOR, "/") for name in names if name.endswith(".json"))
    )


def _files() -> Any:
    return importlib.resources.files("nopair.planning") / "architectures"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({str(error)[:160]}); copy the model folder again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds no keys; copy the model folder again")
    return found
