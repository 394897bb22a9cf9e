"""What published data sets call their kinds of edit, and which of them are surely kinds of ours.

A kind is here only if every edit of it belongs to one category. "Change an object's attribute (e.g., color/material)"
is colour or material, and "Zoom in" neither: such kinds have no category; an import tells how many records that are.
"""

import re
from collections.abc import Mapping
from typing import Final, get_args

from nopair.data.records import Category

_OURS: Final[Mapping[str, Category]] = {name: name for name in get_args(Category) if name != "nothing"}
_COMMON: Final[Mapping[str, Category]] = {
    "addition": "add",
    "insertion": "add",
    "removal": "remove",
    "deletion": "remove",
    "replacement": "replace",
    "shape": "adjust",
    "shape change": "adjust",
    "color": "colour",
    "color change": "colour",
    "colour change": "colour",
    "local color change": "colour",
    "material change": "material",
    "style transfer": "style",
    "style change": "style",
    "background change": "background",
    "background swap": "background",
    "background replacement": "background",
    "text change": "text",
    "text editing": "text",
    "action change": "action",
}
"""Names that several data sets share. Not here: texture (material, or a pattern), geometric, global colour or tone."""
_PICO: Final[Mapping[str, Category]] = {
    "Add a new object to the scene": "add",
    "Remove an existing object": "remove",
    "Replace one object category with another": "replace",
    "Change the size/shape/orientation of an object": "adjust",
    "Add new scene context/background": "background",
    "Strong artistic style transfer (e.g., Van Gogh/anime/etc.)": "style",
    "Photo to cartoon/sketch/comic": "style",
    "Modern ↔ historical style/look": "style",
    "Convert person to 2D anime/manga style (identity-preserving)": "style",
    "Convert person to Pixar/Disney-like 3D cartoon look": "style",
    "Convert person to Western comic cel-shaded style": "style",
    "Line-art ink sketch of the person": "style",
    "Simpsonize the person (yellow-skin cartoon style)": "style",
    "Replace text in signs/posters/billboards": "text",
    "Add new (handwritten/printed/etc) text": "text",
    "Change font style or color of visible text if there is text": "text",
    "Change font style or color of visible text (if present)": "text",
    "Translate written text into other languages": "text",
    "Pose tweak (minor plausible change)": "action",
    "Modify expressions (smile, frown, neutral)": "action",
}
"""Of the 35 of pico-banana-400k (arXiv 2510.19808, table 1), in the words of its files and, where they differ, of the
paper. Not here, as none of our kinds or more than one: color tone, film grain, lighting, weather, season, attribute
(color or material), relocation, zoom, outpainting; of people clothing (color or outfit), accessories (add, remove or
replace), age and gender, and what makes another thing of them (toy figure, minifigure, sticker, caricature)."""


def category_of(kind: str) -> Category | None:
    """Our name of a data set's kind of edit; None if it is not surely one of ours. Case and signs do not matter."""
    return _CATEGORIES.get(_plain(kind))


def _plain(kind: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", kind.replace("→", " to ").casefold()))


_CATEGORIES: Final = {_plain(kind): category for kind, category in {**_OURS, **_COMMON, **_PICO}.items()}
