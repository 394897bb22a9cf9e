"""The picture of the results: a row per example, its images side by side and their scores beneath."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from nopair.data.images import to_pillow
from nopair.evaluation.results import Example

TILE: Final = 192
"""Side in pixels that every image is shown at: three times a scene of the shapes world."""
GAP: Final = 14
HEADER: Final = 34
CAPTION: Final = 44
MOST_LINES: Final = 6
"""Of an instruction; the rest is cut."""
PAPER: Final = (255, 255, 255)
INK: Final = (24, 26, 31)
FAINT: Final = (110, 115, 125)
COLUMNS: Final = ("reference", "instruction", "after warm-up", "trained without pairs", "right answer")


def draw_grid(examples: Sequence[Example]) -> Float[Tensor, "3 rows columns"]:
    """The picture, RGB in [0, 1]; columns as in `COLUMNS`."""
    canvas, draw = sheet(COLUMNS, len(examples) * (TILE + CAPTION))
    for row, example in enumerate(examples):
        _draw_row(canvas, draw, HEADER + row * (TILE + CAPTION), example)
    return pixels_of(canvas)


def sheet(titles: Sequence[str], height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture with a column of tiles under each title, `height` pixels below the header, and its pen."""
    canvas = Image.new("RGB", (GAP + len(titles) * (TILE + GAP), HEADER + height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        draw.text((left(column), 11), title, INK, font(14))
    return canvas, draw


def pixels_of(canvas: Image.Image) -> Float[Tensor, "3 rows columns"]:
    """An RGB picture as values in [0, 1]."""
    values = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
    return values.view(canvas.height, canvas.width, 3).permute(2, 0, 1) / 255


def _draw_row(canvas: Image.Image, draw: ImageDraw.ImageDraw, top: int, example: Example) -> None:
    images = {0: example.reference, 2: example.before, 3: example.after, 4: example.target}
    for column, pixels in images.items():
        canvas.paste(tile(pixels), (left(column), top))
    draw.text((left(1), top), example.category, FAINT, font(13))
    for line, text in enumerate(wrap(draw, example.instruction, font(16))):
        draw.text((left(1), top + 24 + 21 * line), text, INK, font(16))
    for column, marks in ((2, example.before_marks), (3, example.after_marks)):
        first = f"success {marks.success:.2f}   realism {marks.realism:.2f}"
        second = f"preservation {marks.preservation:.2f}   overall {marks.overall:.2f}"
        draw.text((left(column), top + TILE + 4), first, FAINT, font(12))
        draw.text((left(column), top + TILE + 19), second, FAINT, font(12))


def left(column: int) -> int:
    """Where a column of tiles begins, in pixels."""
    return GAP + column * (TILE + GAP)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, of so many pixels."""
    return ImageFont.load_default(size)


def tile(pixels: Float[Tensor, "3 height width"]) -> Image.Image:
    """A square preview: small images enlarged by whole pixels as they are, others scaled, margins left white."""
    height, width = pixels.shape[1:]
    longest = max(height, width)
    scale = TILE / longest
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    clean = pixels.detach().cpu().float().nan_to_num(0.5).clamp(0, 1)[None]
    enlarged = F.interpolate(clean, scale_factor=max(1, round(scale)), mode="nearest") if scale > 1 else clean
    resized = F.interpolate(enlarged, size, mode="bilinear", antialias=True)[0]
    tile = Image.new("RGB", (TILE, TILE), PAPER)
    tile.paste(to_pillow(resized), ((TILE - size[1]) // 2, (TILE - size[0]) // 2))
    return tile


def wrap(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines that fit a tile's width, at most `MOST_LINES`; a word longer than a line is broken."""
    lines = [""]
    for word in text.split():
        gap = " " if lines[-1] else ""
        if draw.textlength(lines[-1] + gap + word, font) <= TILE:
            lines[-1] += gap + word
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if draw.textlength(lines[-1] + letter, font) > TILE:
                lines.append("")
            lines[-1] += letter
    if len(lines) > MOST_LINES:
        last = lines[MOST_LINES - 1]
        while draw.textlength(f"{last} …", font) > TILE:
            last = last[:-1]
        lines = [*lines[: MOST_LINES - 1], f"{last} …"]
    return lines
