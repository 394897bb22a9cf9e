"""Editors of this family in stock diffusers: the sampler, and the code that docs/export.md gives to users."""

from collections.abc import Callable

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from torch import Tensor

from nopair.backbones.zimage import ZImageBackbone
from nopair.editor import Editor, Settings
from nopair.method.flow import levels
from nopair.method.rollout import rollout, sampler_levels

PROMPTS = ["a red circle", "two blue squares on a striped ground, seen from far"]


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (20, 12)], ids=str)
def test_the_stock_pipeline_with_a_stochastic_scheduler_is_the_rollout(
    shared_backbone: ZImageBackbone, size: tuple[int, int], steps: int
) -> None:
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shared_backbone.shift, stochastic_sampling=True),
        vae=shared_backbone.vae,
        text_encoder=shared_backbone.text_encoder,
        tokenizer=shared_backbone.tokenizer,
        transformer=shared_backbone.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    first = torch.randn(2, 4, *size)
    torch.manual_seed(7)
    expected = pipeline(
        list(PROMPTS), height=size[0] * 4, width=size[1] * 4, latents=first.clone(), num_inference_steps=steps,
        guidance_scale=0.0, output_type="pt",
    ).images  # fmt: skip

    torch.manual_seed(7)
    noises = torch.stack([first, *(torch.randn(first.shape) for _ in range(steps - 1))])
    text = shared_backbone.encode_text(PROMPTS)
    with torch.no_grad():
        x0 = rollout(
            lambda x, t: shared_backbone.velocity(x, t, text),
            noises,
            sampler_levels(levels(steps, shared_backbone.shift), 2),
        )
        images = shared_backbone.decode_latents(x0).clamp(0, 1)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)
    assert (images[0] - images[1]).abs().mean() > 0.01


SIDES = [(48, 48), (32, 64)]  # height and width in pixels


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_the_documented_code_edits_as_nopair_does(
    shared_backbone: ZImageBackbone, check_documented: Callable[..., None], sides: tuple[int, int]
) -> None:
    """The editor's shift is not the base's."""
    check_documented(_editor(shared_backbone, *sides), "Z-Image", _draw(*sides))


@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_the_documented_code_edits_with_an_adapter_as_nopair_does(
    backbone: ZImageBackbone, check_adapter_documented: Callable[..., None], sides: tuple[int, int]
) -> None:
    check_adapter_documented(_editor(backbone, *sides), ("to_q", "to_v", "w2"), "Z-Image", _draw(*sides))


def _editor(backbone: ZImageBackbone, height: int, width: int) -> Editor:
    return Editor(backbone, Settings(steps=4, shift=5.0, height=height, width=width, questions="v1"))


def _draw(height: int, width: int) -> Callable[[int], Tensor]:
    return lambda _step: torch.randn(1, 4, height // 4, width // 4)
