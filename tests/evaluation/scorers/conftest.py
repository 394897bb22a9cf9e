"""Edits with outputs to score: small images on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nopair.data.images import save_image
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.scorers.asking import Task

SIDE = 16


def plain(*colour: float) -> Tensor:
    return torch.tensor(colour).view(3, 1, 1).expand(3, SIDE, SIDE).clone()


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., Task]:
    """A task with an image before (red) and one after, of any size."""

    def make(place: str, after: Tensor, category: str = "add", instruction: str = "make it blue") -> Task:
        source, output = tmp_path / "in" / f"{place}.png", tmp_path / "out" / f"{place}.png"
        for path, pixels in ((source, plain(1.0, 0.0, 0.0)), (output, after)):
            path.parent.mkdir(parents=True, exist_ok=True)
            save_image(pixels, path)
        return Task("toy", Item(place, place, category, "", instruction, source), output)

    return make
