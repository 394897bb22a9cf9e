"""Editors of this family in stock diffusers: the code that docs/export.md gives to users."""

from collections.abc import Callable

import torch

from nopair.backbones.sd3 import StableDiffusion3Backbone
from nopair.editor import Editor, Settings


def test_the_documented_code_edits_as_nopair_does(
    awake: StableDiffusion3Backbone, check_documented: Callable[..., None]
) -> None:
    editor = Editor(awake, Settings(steps=4, shift=5.0, height=32, width=32, questions="v1"))
    check_documented(editor, "Stable Diffusion 3", lambda step: torch.randn(1, 4, 8, 8))
