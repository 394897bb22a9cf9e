"""Modules of this folder, as fixtures: `--import-mode=importlib` knows no sibling modules."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module `toy.py`."""
    return _load("toy")


@pytest.fixture(scope="session")
def far() -> ModuleType:
    """The module `far.py`."""
    return _load("far")


@pytest.fixture(scope="session")
def crew() -> Iterator[ModuleType]:
    """The module `crew.py`, under the name that its processes import it by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield importlib.import_module("crew")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"nopair_test_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
