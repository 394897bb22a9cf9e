"""Items to edit, and the tiny pipelines as a module (tests are no package)."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nopair.data.images import save_image
from nopair.evaluation.benchmarks.base import Item


@pytest.fixture(scope="session")
def pipelines(sibling: Callable[[str], ModuleType]) -> ModuleType:
    return sibling("evaluation/editors/pipelines.py")


@pytest.fixture
def make_items(tmp_path: Path) -> Callable[..., list[Item]]:
    """Some items with images of one size."""

    def make(count: int = 2, height: int = 32, width: int = 48) -> list[Item]:
        items = []
        for number in range(count):
            source = tmp_path / "sources" / f"{number}.png"
            source.parent.mkdir(exist_ok=True)
            save_image(torch.rand(3, height, width), source)
            place = f"fullset/add/en/{number}"
            items.append(Item(place, str(number), "add", "en", f"add {number} hats", source))
        return items

    return make
