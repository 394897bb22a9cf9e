"""Where model folders are: paths, and the short names of the models that come with nopair."""

import importlib.resources
import re
from pathlib import Path
from typing import Final

from nopair.errors import ModelError

PREFIX: Final = "tiny:"
_HUB: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""What names on the hub look like; so do relative paths."""
PARTS: Final = ("base", "judge", "judge-2", "judge-64", "judge-32", "editor")


def packaged() -> Path:
    """The folder within the installed package that holds the tiny models, whether or not they are there."""
    return Path(str(importlib.resources.files("nopair"))) / "tiny" / "weights"


def resolve(name: str) -> Path:
    """`tiny:` and one of `PARTS` to its folder within the package; any other name is a path.

    Raises:
        ModelError: no tiny model of that name, or no such folder.
    """
    if not name.startswith(PREFIX):
        folder = Path(name)
        if not name or not _exists(folder):  # Path("") is the current folder
            if may_be_published(name):
                raise ModelError(
                    f"{name}: no such model folder, and nopair downloads nothing; if it is a name on the Hugging Face "
                    f"hub, {how_to_download(name)}"
                )
            raise ModelError(
                f"{name}: no such model folder; check the path ({', '.join(PREFIX + part for part in PARTS)} come with "
                "nopair)"
            )
        return folder
    part = name.removeprefix(PREFIX)
    if part not in PARTS:
        raise ModelError(f"{name}: no such tiny model; there are {', '.join(PREFIX + known for known in PARTS)}")
    folder = packaged() / part
    if not _exists(folder):
        raise ModelError(f"{name}: is not in this installation ({folder}); build it with: nopair tiny build {part}")
    return folder


def may_be_published(name: str) -> bool:
    """Whether models on the hub could have this name."""
    return _HUB.fullmatch(name) is not None


def how_to_download(name: str, only: str = "") -> str:
    """What to do for a model on the hub to be here: all its files, or `only` those, as the command takes them."""
    return (
        f"run: hf download {name}{only} --local-dir FOLDER, and give FOLDER instead (a gated model needs "
        "hf auth login first)"
    )


def _exists(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:  # forbidden or overlong
        return False
