"""Editors of this family in stock diffusers: the code that docs/export.md gives to users."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nopair.backbones.flux2 import Flux2KleinBackbone
from nopair.editor import Editor, Settings

SIDE = 64


def _draw(step: int) -> Tensor:
    """The first noise is drawn as latents, later ones as tokens."""
    if step == 0:
        return torch.randn(1, 16, 8, 8)
    return torch.randn(1, 8 * 8, 16).transpose(1, 2).reshape(1, 16, 8, 8)


@pytest.mark.parametrize("steps", [4])
def test_the_documented_code_edits_as_nopair_does(
    klein: Flux2KleinBackbone, check_documented: Callable[..., None], steps: int
) -> None:
    shift = klein.shift_for(SIDE, SIDE, steps)
    editor = Editor(klein, Settings(steps=steps, shift=shift, height=SIDE, width=SIDE, questions="v1"))
    check_documented(editor, "FLUX.2 klein", _draw)
