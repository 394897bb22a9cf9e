"""Modules of this folder, as fixtures: `--import-mode=importlib` knows no sibling modules."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy(sibling: Callable[[str], ModuleType]) -> ModuleType:
    """The module `toy.py`."""
    return sibling("synthesis/toy.py")


@pytest.fixture(scope="session")
def photos(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated photos; copy them before changing them."""
    return toy.photos(tmp_path_factory.mktemp("photos") / "all")
