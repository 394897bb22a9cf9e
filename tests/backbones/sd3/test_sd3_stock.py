"""Editors of this family in stock diffusers: the code that docs/export.md gives to users."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from nopair.backbones.adapters import save_adapter
from nopair.backbones.roles import LoraRoles
from nopair.backbones.sd3 import StableDiffusion3Backbone
from nopair.backbones.sd3_reference import REFERENCE_MODULE
from nopair.editor import Editor, Settings

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "net.0.proj", REFERENCE_MODULE)
SIDES = [(32, 32), (24, 40)]  # height and width in pixels


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_the_documented_code_edits_as_nopair_does(
    awake: StableDiffusion3Backbone, check_documented: Callable[..., None], sides: tuple[int, int]
) -> None:
    check_documented(_editor(awake, *sides), "Stable Diffusion 3", _draw(*sides))


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_the_documented_code_edits_with_an_adapter_as_nopair_does(
    backbone: StableDiffusion3Backbone, check_adapter_documented: Callable[..., None], sides: tuple[int, int]
) -> None:
    """On a base that nopair has saved."""
    check_adapter_documented(_editor(backbone, *sides), TARGETS, "Stable Diffusion 3", _draw(*sides))


def _editor(backbone: StableDiffusion3Backbone, height: int, width: int) -> Editor:
    return Editor(backbone, Settings(steps=4, shift=5.0, height=height, width=width, questions="v1"))


def _draw(height: int, width: int) -> Callable[[int], Tensor]:
    return lambda _step: torch.randn(1, 4, height // 4, width // 4)


def test_stock_diffusers_loads_an_adapter_onto_a_widened_base_as_the_merged_export(
    backbone: StableDiffusion3Backbone, check_adapter: Callable[..., Any]
) -> None:
    stock = check_adapter(backbone, StableDiffusion3Pipeline, TARGETS, 4)
    assert stock.transformer.get_submodule(REFERENCE_MODULE).weight.shape[1] == 8


def test_it_refuses_it_on_the_published_base(
    backbone: StableDiffusion3Backbone, published: Path, tmp_path: Path
) -> None:
    roles = LoraRoles.of(backbone, rank=3, alpha=5.0, targets=TARGETS, seed=0, ranks=backbone.adapter_ranks)
    save_adapter(roles.trainable("student"), 5.0 / 3, tmp_path)
    stock = StableDiffusion3Pipeline.from_pretrained(published)
    with pytest.raises(RuntimeError, match=r"pos_embed\.proj"):
        stock.load_lora_weights(tmp_path)


def test_the_stock_pipeline_itself_cannot_run_an_editor(awake: StableDiffusion3Backbone, tmp_path: Path) -> None:
    """Or docs/export.md would say so."""
    awake.save(tmp_path)
    stock = StableDiffusion3Pipeline.from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="must match"):
        stock("a red circle", height=32, width=32, num_inference_steps=1, guidance_scale=1.0)
