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

SIDE = 48


def _draw(step: int) -> Tensor:
    """The first noise is drawn as latents, later ones as tokens."""
    if step == 0:
        return torch.randn(1, 1, 4, 12, 12)[:, 0]
    return QwenImagePipeline._unpack_latents(torch.randn(1, 6 * 6, 16), SIDE, SIDE, 4).squeeze(2)


@pytest.mark.parametrize("zero_cond_t", [False, True])
def test_the_documented_code_edits_as_nopair_does(
    make: Callable[..., QwenImageBackbone],
    check_documented: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    zero_cond_t: bool,
) -> None:
    """The base's scheduler has a terminal shift; that of the export must not."""
    backbone = make(zero_cond_t=zero_cond_t)
    assert backbone.scheduler.config["shift_terminal"] == 0.02
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", None)  # put back after the code changed it
    shift = backbone.shift_for(SIDE, SIDE, 4)
    editor = Editor(backbone, Settings(steps=4, shift=shift, height=SIDE, width=SIDE, questions="v1"))
    check_documented(editor, "Qwen-Image", _draw)


def test_stock_diffusers_loads_an_adapter_as_the_merged_export(
    make: Callable[..., QwenImageBackbone], check_adapter: Callable[..., Any]
) -> None:
    check_adapter(make(), QwenImagePipeline, ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "net.0.proj"), 4)
