"""Kinds of edit of other data sets: what is ours has its name, what is not surely ours has none."""

from collections import Counter

import pytest

from nopair.data.kinds import category_of
from nopair.data.records import CATEGORIES

PICO = """Change overall color tone (warm ↔ cool)
Add film grain or vintage filter
Add a new object to the scene
Remove an existing object
Replace one object category with another
Change an object's attribute (e.g., color/material)
Relocate an object (change its position/spatial relation)
Change the size/shape/orientation of an object
Add new scene context/background
Apply seasonal transformation (summer ↔ winter)
Change weather conditions (sunny/rainy/snowy)
Adjust global lighting (golden hour/fluorescent)
Strong artistic style transfer (e.g., Van Gogh/anime/etc.)
Photo to cartoon/sketch/comic
Modern ↔ historical style/look
Replace text in signs/posters/billboards
Add new (handwritten/printed/etc) text
Change font style or color of visible text if there is text
Translate written text into other languages
Add/Remove/Replace accessories (glasses, hats, jewelry, masks)
Clothing edit (change color/outfit)
Pose tweak (minor plausible change)
Modify expressions (smile, frown, neutral)
Change age / gender
Convert person to 2D anime/manga style (identity-preserving)
Convert person to Pixar/Disney-like 3D cartoon look
Convert person to Western comic cel-shaded style
Line-art ink sketch of the person
Sticker-ify the person with bold outline and white border
Caricature with mild feature exaggeration (keep identity)
Funko-Pop–style toy figure of the person
LEGO-minifigure rendition of the person
Simpsonize the person (yellow-skin cartoon style)
Zoom in
Outpainting (extend canvas beyond boundaries)""".splitlines()
"""All 35 of pico-banana-400k, as its files have them."""


def test_kinds_of_pico_banana() -> None:
    assert len(set(PICO)) == 35
    counts = Counter(map(category_of, PICO))
    assert counts == {
        "add": 1, "remove": 1, "replace": 1, "adjust": 1, "background": 1, "style": 8, "text": 4, "action": 2, None: 16,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "category"),
    [
        ("Photo → cartoon/sketch/comic", "style"),
        ("“Simpsonize” the person (yellow-skin cartoon style)", "style"),
        ("Add new (handwritten/printed/etc.) text", "text"),
        ("Change font style or color of visible text (if present)", "text"),
        ("  REMOVE an existing object ", "remove"),
        ("color", "colour"),
        ("Insertion", "add"),
        ("removal", "remove"),
        ("background_swap", "background"),
        ("local color change", "colour"),
        ("Free-form", "free-form"),
    ],
)
def test_wording_of_the_paper_case_and_signs(kind: str, category: str) -> None:
    assert category_of(kind) == category


@pytest.mark.parametrize(
    "kind", ["", "(", "_", "nothing", "odd", "texture", "geometric", "remove add", "Remove an existing object or text"]
)
def test_what_is_not_ours(kind: str) -> None:
    assert category_of(kind) is None


def test_our_own_names() -> None:
    assert [category_of(name) for name in CATEGORIES] == [None if name == "nothing" else name for name in CATEGORIES]
