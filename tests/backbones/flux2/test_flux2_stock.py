"""Editors of this family in stock diffusers: the code that docs/export.md gives to users."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline
from torch import Tensor

from nopair.backbones.flux2 import Flux2KleinBackbone
from nopair.editor import Editor, Settings
from nopair.errors import ModelError
from nopair.exchange import export_editor

SIDE = 64
SIDES = [(64, 64), (64, 96)]  # height and width in pixels; the pipeline takes no reference below 64
TARGETS = ("to_q", "to_out.0", "add_q_proj", "to_qkv_mlp_proj", "linear_in", "x_embedder", "proj_out")


def _draw(height: int, width: int) -> Callable[[int], Tensor]:
    """The first noise is drawn as latents, later ones as tokens."""
    rows, columns = height // 8, width // 8

    def draw(step: int) -> Tensor:
        if step == 0:
            return torch.randn(1, 16, rows, columns)
        return torch.randn(1, rows * columns, 16).transpose(1, 2).reshape(1, 16, rows, columns)

    return draw


def _editor(backbone: Flux2KleinBackbone, height: int, width: int) -> Editor:
    shift = backbone.shift_for(height, width, 4)
    return Editor(backbone, Settings(steps=4, shift=shift, height=height, width=width, questions="v1"))


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_the_documented_code_edits_as_nopair_does(
    klein: Flux2KleinBackbone, check_documented: Callable[..., None], sides: tuple[int, int]
) -> None:
    check_documented(_editor(klein, *sides), "FLUX.2 klein", _draw(*sides))


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_the_documented_code_edits_with_an_adapter_as_nopair_does(
    fresh: Flux2KleinBackbone, check_adapter_documented: Callable[..., None], sides: tuple[int, int]
) -> None:
    check_adapter_documented(_editor(fresh, *sides), TARGETS, "FLUX.2 klein", _draw(*sides))


def test_a_schedule_that_the_stock_pipeline_cannot_do_is_refused(klein: Flux2KleinBackbone, tmp_path: Path) -> None:
    shift = 1.1 * klein.shift_for(SIDE, SIDE, 4)
    Editor(klein, Settings(steps=4, shift=shift, height=SIDE, width=SIDE, questions="v1")).save(tmp_path / "editor")
    with pytest.raises(ModelError, match=f"shifted by {shift:.4g}; stock pipelines of this family") as error:
        export_editor(tmp_path / "editor", tmp_path / "copy", "fp32")
    assert str(tmp_path / "editor") in str(error.value)
    assert not (tmp_path / "copy").exists()


def test_stock_diffusers_loads_an_adapter_as_the_merged_export(
    fresh: Flux2KleinBackbone, check_adapter: Callable[..., Any]
) -> None:
    """Also of the layers that carry three or four matrices in one."""
    check_adapter(fresh, Flux2KleinPipeline, TARGETS, 16)
