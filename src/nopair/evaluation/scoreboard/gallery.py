"""Every edit side by side, a page for each category and language: before, each editor's output, marks, judges' words.

Pages hold no script and fetch nothing but their own small copies of the images, so the folder can be moved or served.
"""

import hashlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nopair.data.files import make_folder, write_atomic
from nopair.data.images import load_image, save_image, shrink
from nopair.errors import ImageError
from nopair.evaluation.benchmarks.base import Item
from nopair.evaluation.page import document

SIDE: Final = 360
"""Longer side of the copies, in pixels."""
FOLDER: Final = "gallery"
FIRST: Final = f"{FOLDER}/000.html"
"""The first page."""
_STYLE: Final = """
main{max-width:none}
nav{margin:0 0 20px;line-height:2}nav a{margin-right:14px;color:var(--accent)}nav b{margin-right:14px}
.row{display:flex;gap:14px;overflow-x:auto;padding:16px 0;border-bottom:1px solid var(--line);align-items:flex-start}
.row figure{flex:0 0 240px}.row img{width:240px;height:auto;border-radius:6px;display:block}
.row figcaption{overflow-wrap:anywhere}.words{white-space:pre-wrap;font-size:.85rem;overflow-wrap:anywhere}
.none{width:240px;height:160px;border:1px dashed var(--line);border-radius:6px;display:grid;place-items:center}
h3{font-size:1rem;margin:18px 0 0;font-weight:600}
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """One editor's output of an item. `said` are (judge, marks, problems and words) for each judge."""

    editor: str
    output: Path | None
    said: tuple[tuple[str, str, str], ...]


def write_gallery(folder: Path, title: str, rows: Sequence[tuple[Item, Sequence[Shown]]]) -> None:
    """Write the pages into `<folder>/gallery`, the first one as `FIRST`.

    Raises:
        OutputError: they cannot be written.
    """
    make_folder(folder / FOLDER / "images")
    groups: dict[str, list[tuple[Item, Sequence[Shown]]]] = {}
    for item, shown in rows:
        name = f"{item.category} ({item.language})" if item.language else item.category
        groups.setdefault(name, []).append((item, shown))
    pages = {name: f"{number:03}.html" for number, name in enumerate(groups)}
    for name, page in pages.items():
        body = f"<h1>{_text(title)}</h1>{_links(pages, name)}" + "".join(
            _row(folder / FOLDER, item, shown) for item, shown in groups[name]
        )
        text = document(f"{title}: {name}", body, style=_STYLE, images="'self' file: data:")
        write_atomic(folder / FOLDER / page, text.encode("utf-8"))


def _links(pages: Mapping[str, str], here: str) -> str:
    links = [
        f"<b>{_text(name)}</b>" if name == here else f'<a href="{page}">{_text(name)}</a>'
        for name, page in pages.items()
    ]
    return f'<nav><a href="../report.html">report</a>{"".join(links)}</nav>'


def _row(folder: Path, item: Item, shown: Sequence[Shown]) -> str:
    figures = [_figure(folder, "before", item.source, ())]
    figures += [_figure(folder, each.editor, each.output, each.said) for each in shown]
    return (
        f'<h3>{_text(item.instruction)} <span class="faint">{_text(item.key)}</span></h3><div class="row">'
        + "".join([*figures, "</div>"])
    )


def _figure(folder: Path, name: str, image: Path | None, said: Sequence[tuple[str, str, str]]) -> str:
    copy = None if image is None else _copy(folder, image)
    picture = (
        '<div class="none faint">no image</div>'
        if copy is None
        else f'<img loading="lazy" alt="{_text(name)}" src="{copy}">'
    )
    told = "".join(
        f"<p>{_text(judge)}: <b>{_text(marks)}</b></p>"
        + (f'<details><summary>words</summary><div class="words">{_text(words)}</div></details>' if words else "")
        for judge, marks, words in said
    )
    return f"<figure>{picture}<figcaption><b>{_text(name)}</b>{told}</figcaption></figure>"


def _copy(folder: Path, image: Path) -> str | None:
    """A small copy, named by what the image holds and so made once; None if it is no image."""
    try:
        digest = hashlib.sha256(image.read_bytes()).hexdigest()[:20]
    except OSError:
        return None
    name = f"images/{digest}.jpg"
    if not (folder / name).is_file():
        try:
            save_image(shrink(load_image(image), SIDE), folder / name)
        except ImageError:
            return None
    return name


def _text(words: str) -> str:
    return html.escape(words)
