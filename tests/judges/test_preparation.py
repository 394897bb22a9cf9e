"""Every family's differentiable preparation against its own image processor, on the same 8-bit pixels.

The processors resize 8-bit images, so they round to half a level after the columns and again after the rows; what was
rounded first is then resized, so its error may grow by the sum of the kernel's absolute weights.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from nopair.judges.resample import Kernel, weights
from nopair.judges.vision_language import VisionLanguageJudge

SUMS = {Kernel.BICUBIC: 1.3, Kernel.LANCZOS: 1.65}
"""Upper bounds of the sum of the absolute weights of a target pixel."""
KINDS = ("black", "white", "grey", "noise", "edges", "smooth")
SMOL = ("idefics3", "smolvlm")
RESIZES = {"llava_onevision": 1, "internvl": 1, "qwen2_5_vl": 1, "qwen3_vl": 1, "smolvlm": 2, "idefics3": 2}
TYPICAL = 2.0
"""Largest error in levels that the shapes below have in truth (1.1 after one resize, 1.8 after SmolVLM's two)."""
MEAN = 0.42
"""The same for the mean: the last rounding alone makes 1/4."""


def bound(name: str) -> float:
    """Largest possible error of a processor's rounding, in levels of 1/255; a tenth is for fp32."""
    sums = SUMS[Kernel.LANCZOS if name in SMOL else Kernel.BICUBIC]
    error = 0.0
    for _ in range(2 * RESIZES[name]):  # columns and rows
        error = error * sums + 0.5
    return error + 0.1


def picture(kind: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind in ("black", "white", "grey"):
        return np.full((height, width, 3), {"black": 0, "grey": 128, "white": 255}[kind], dtype=np.uint8)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "edges":
        return 255 * rng.integers(0, 2, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + c) + y / (11 - c) + rng.uniform(0, 6)) for c in range(3)]
    return np.round(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


def errors(judge: VisionLanguageJudge, case: Any, image: np.ndarray) -> Tensor:
    """Ours less the processor's, in levels; two images, so that LLaVA-OneVision makes no tiles."""
    theirs = case.image_processor([[Image.fromarray(image)] * 2], return_tensors="pt", **case.call)["pixel_values"]
    ours = judge.family.prepare(torch.from_numpy(image).permute(2, 0, 1)[None].float().repeat(2, 1, 1, 1) / 255)
    assert ours.numel() == theirs.numel()
    difference = (ours.view_as(theirs) - theirs).abs()
    by_channel = difference.view(len(difference), 3, -1) if difference.dim() == 2 else difference.flatten(-2)
    return 255 * by_channel * torch.tensor(case.image_processor.image_std)[:, None]


@pytest.mark.parametrize("kernel", list(Kernel))
def test_the_bounds_on_weights_hold(kernel: Kernel) -> None:
    sizes = [(source, target) for source in range(1, 130, 3) for target in (1, 2, 5, 24, 32, 48, 64, 96)]
    largest = max(weights(source, target, kernel).abs().sum(dim=1).max().item() for source, target in sizes)
    assert largest <= SUMS[kernel]


@settings(max_examples=12)
@given(kind=st.sampled_from(KINDS), height=st.integers(1, 140), width=st.integers(1, 140), seed=st.integers(0, 99))
def test_equals_the_familys_processor_up_to_its_rounding(
    family: str, case: Any, judges: dict[str, VisionLanguageJudge], kind: str, height: int, width: int, seed: int
) -> None:
    error = errors(judges[family], case, picture(kind, height, width, seed))
    assert error.max() <= bound(family)


@pytest.mark.parametrize("kind", ["noise", "edges", "smooth", "black"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (101, 67), (4, 300), (300, 4), (33, 31)])
def test_odd_and_extreme_shapes(
    family: str, case: Any, family_judge: VisionLanguageJudge, kind: str, height: int, width: int
) -> None:
    error = errors(family_judge, case, picture(kind, height, width))
    assert error.max() <= min(bound(family), TYPICAL)
    assert error.mean() <= MEAN
    if kind == "black" and family != "llava_onevision":  # which pads with another colour
        assert error.max() <= 1e-3


def test_a_size_that_needs_no_resize_is_only_normalised(family: str, case: Any, judges: Any) -> None:
    """Exact where the processor does not round. SmolVLM always resizes: one way and back, so uniform colours are."""
    side = {"llava_onevision": 64, "internvl": 32, "qwen2_5_vl": 40, "qwen3_vl": 40}.get(family, 48)
    kind = "grey" if family in SMOL else "noise"
    assert errors(judges[family], case, picture(kind, side, side)).max() <= 1e-3


def test_values_outside_the_range_are_seen_as_a_file_would_hold_them(family_judge: VisionLanguageJudge) -> None:
    pixels = 3 * torch.randn(1, 3, 40, 70)
    prepare = family_judge.family.prepare
    torch.testing.assert_close(prepare(pixels), prepare(pixels.clamp(0, 1)))


def test_images_of_a_batch_do_not_mix(family_judge: VisionLanguageJudge) -> None:
    pixels = torch.rand(3, 3, 30, 70)
    prepare = family_judge.family.prepare
    together = prepare(pixels)
    torch.testing.assert_close(together[len(together) // 3 : 2 * len(together) // 3], prepare(pixels[1:2]))
