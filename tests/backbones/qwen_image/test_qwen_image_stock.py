"""Editors of this family in stock diffusers: the code that docs/export.md gives to users."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from torch import Tensor

from nopair.backbones.qwen_image import QwenImageBackbone
from nopair.editor import Editor, Settings

SIDES = [(48, 48), (32, 64)]  # height and width in pixels
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "net.0.proj")


def _draw(height: int, width: int) -> Callable[[int], Tensor]:
    """The first noise is drawn as latents, later ones as tokens."""
    rows, columns = height // 4, width // 4

    def draw(step: int) -> Tensor:
        if step == 0:
            return torch.randn(1, 1, 4, rows, columns)[:, 0]
        tokens = torch.randn(1, rows * columns // 4, 16)
        return QwenImagePipeline._unpack_latents(tokens, height, width, 4).squeeze(2)

    return draw


def _editor(backbone: QwenImageBackbone, height: int, width: int) -> Editor:
    shift = backbone.shift_for(height, width, 4)
    return Editor(backbone, Settings(steps=4, shift=shift, height=height, width=width, questions="v1"))


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented code changes a function of the library's: it is put back after each test."""
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", None)


@pytest.mark.parametrize(("zero_cond_t", "sides"), [(False, SIDES[0]), (True, SIDES[0]), (False, SIDES[1])], ids=str)
def test_the_documented_code_edits_as_nopair_does(
    make: Callable[..., QwenImageBackbone],
    check_documented: Callable[..., None],
    zero_cond_t: bool,
    sides: tuple[int, int],
) -> None:
    """The base's scheduler has a terminal shift; that of the export must not."""
    backbone = make(zero_cond_t=zero_cond_t)
    assert backbone.scheduler.config["shift_terminal"] == 0.02
    check_documented(_editor(backbone, *sides), "Qwen-Image", _draw(*sides))


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_the_documented_code_edits_with_an_adapter_as_nopair_does(
    make: Callable[..., QwenImageBackbone], check_adapter_documented: Callable[..., None], sides: tuple[int, int]
) -> None:
    check_adapter_documented(_editor(make(), *sides), TARGETS, "Qwen-Image", _draw(*sides))


def test_stock_diffusers_loads_an_adapter_as_the_merged_export(
    make: Callable[..., QwenImageBackbone], check_adapter: Callable[..., Any]
) -> None:
    check_adapter(make(), QwenImagePipeline, TARGETS, 4)
