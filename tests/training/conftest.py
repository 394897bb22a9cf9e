"""Modules of this folder, as fixtures, which `--import-mode=importlib` wants; and a dataset to train on."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from nopair.data.importers import import_dataset


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module `toy.py`."""
    return _load("toy")


@pytest.fixture(scope="session")
def far() -> ModuleType:
    """The module `far.py`."""
    return _load("far")


@pytest.fixture(scope="session")
def phases(sibling: Callable[[str], ModuleType]) -> ModuleType:
    """The module `test_phases.py`, for how it puts recipes, parts and phases together."""
    return sibling("training/test_phases.py")


@pytest.fixture(scope="session")
def crew() -> Iterator[ModuleType]:
    """The module `crew.py`, under the name that its processes import it by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        yield importlib.import_module("crew")


@pytest.fixture(scope="session")
def photos_of_two_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of twelve photos, half of them tall: 64 x 64 and 96 x 64 pixels. To be read only."""
    folder = tmp_path_factory.mktemp("two-sizes") / "photos"
    folder.mkdir()
    for number in range(12):
        pixels = torch.randint(0, 256, (64 + 32 * (number % 2), 64, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    words = {"instruction": "add a hat", "caption": "a cat", "edited_caption": "a cat with a hat", "category": "add"}
    lines = [json.dumps(words | {"file_name": f"{number}.png"}) + "\n" for number in range(12)]
    (folder / "metadata.jsonl").write_text("".join(lines))
    import_dataset("photos", folder, folder.parent / "dataset")
    return folder.parent / "dataset"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"nopair_test_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
