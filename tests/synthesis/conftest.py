"""Modules of this folder, as fixtures: `--import-mode=importlib` knows no sibling modules."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module `toy.py`."""
    spec = importlib.util.spec_from_file_location("nopair_test_synthesis_toy", Path(__file__).with_name("toy.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def photos(toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated photos; copy them before changing them."""
    return toy.photos(tmp_path_factory.mktemp("photos") / "all")
