"""How long a prompt may be, in every family."""

from pathlib import Path

import pytest
import torch

from nopair.backbones.load import load_backbone

FAMILIES = ("zimage", "flux2", "qwen_image", "sd3")


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_read_to_the_end_exactly_where_they_are_not_too_long(family: str, tiny_bases: Path) -> None:
    backbone = load_backbone(tiny_bases / family)
    _, most = backbone.prompt_tokens("a")
    words = 1
    while backbone.prompt_tokens("a " * words)[0] <= most:
        words *= 2
    fits, cut = words // 2, words
    while cut - fits > 1:  # the longest that fits
        middle = (fits + cut) // 2
        fits, cut = (middle, cut) if backbone.prompt_tokens("a " * middle)[0] <= most else (fits, middle)
    for count, read in ((fits - 1, True), (2 * cut, False)):
        one, other = (backbone.encode_text(["a " * count + last]).features for last in ("a", "b"))
        assert (one.shape != other.shape or not torch.equal(one, other)) == read, (family, count)
