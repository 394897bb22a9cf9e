"""Image files to pixels, pixels to a model's size, and both ways back.

Pixels are sRGB floats in [0, 1], upright, with no alpha. Decoding and encoding are Pillow's.
"""

import io
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageCms
from torch import Tensor
from torch.nn import functional as F

from nopair.data.files import check_image, image_format, write_atomic
from nopair.data.headers import DAMAGE, MAX_PIXELS, opened_image, orientation_of
from nopair.errors import ImageError, PixelsError

_ENCODING: Final[dict[str, dict[str, int | bool]]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
}
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright; 1 is upright."""


def load_image(path: str | Path) -> Float[Tensor, "3 height width"]:
    """Read a PNG, JPEG or WebP file of any mode: sRGB in [0, 1], upright, transparency over white.

    EXIF orientation and an embedded colour profile are applied; where such metadata is itself unreadable it counts as
    absent, as in browsers. 16-bit greyscale keeps its depth. Of an animation, the first frame.

    Raises:
        ImageError: missing, a folder, unreadable, not an image, cut short, damaged, or over
            `nopair.data.headers.MAX_PIXELS`.
    """
    with _open(Path(path)) as file:
        return _decode(file, str(path))


def longer_side(path: Path) -> int:
    """Of an image file, in pixels; only its header is read.

    Raises:
        ImageError: see `load_image`.
    """
    with _open(path) as file, opened_image(file, str(path)) as image:
        return max(image.size)


def decode_image(content: bytes, name: str) -> Float[Tensor, "3 height width"]:
    """`load_image` of a file's bytes; `name` is for the message."""
    return _decode(io.BytesIO(content), name)


def _decode(file: BinaryIO | io.BytesIO, name: str) -> Float[Tensor, "3 height width"]:
    with opened_image(file, name) as image:
        return _pixels(image)


def _open(path: Path) -> BinaryIO:
    check_image(path)
    try:
        return path.open("rb")
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def _pixels(image: Image.Image) -> Float[Tensor, "3 height width"]:
    image.load()
    turn = _TURNS.get(orientation_of(image))
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    pixels = _to_tensor(_to_srgb(image))
    if not image.has_transparency_data:
        return pixels
    alpha = _to_tensor(image.convert("RGBA").getchannel("A"))
    return pixels * alpha + (1 - alpha)


def _from_16_bit(image: Image.Image) -> Float[Tensor, "3 height width"]:
    levels = np.asarray(image)
    grey = torch.from_numpy(levels.astype(np.float32) / 65535)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[torch.from_numpy(levels == transparent)] = 1
    return grey.repeat(3, 1, 1)


def _to_srgb(image: Image.Image) -> Image.Image:
    """RGB without alpha, in sRGB if a profile says that the numbers mean something else."""
    opaque = image.convert("L") if image.mode in ("1", "LA") else image
    opaque = opaque if opaque.mode in ("L", "RGB", "CMYK") else opaque.convert("RGB")
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return _managed(opaque, source)
        except (ImageCms.PyCMSError, *DAMAGE):
            pass  # an unusable profile counts as absent
    return opaque.convert("RGB")


def _managed(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None, "only conversion in place returns nothing"
    return converted


def _to_tensor(image: Image.Image) -> Float[Tensor, "channel height width"]:
    values = torch.from_numpy(np.array(image))
    values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
    return values.contiguous().to(torch.float32).div_(255)  # in this order: a third faster


@dataclass(frozen=True, slots=True)
class Fitted:
    """An image brought to a model's size, and how to undo that. It does not hold on to the original's pixels.

    `box` is (top, left, height, width) of the picture within `pixels`; around it its edge pixels are repeated.
    `size` is (height, width) of the original.
    """

    pixels: Float[Tensor, "3 height width"]
    box: tuple[int, int, int, int]
    size: tuple[int, int]


def fit(pixels: Float[Tensor, "3 rows columns"], height: int, width: int) -> Fitted:
    """Scale an image into height x width without squashing it: centred, the rest filled by repeating its edge pixels.

    An image of just that size comes through bit for bit. `restore` is the way back.
    """
    rows, columns = pixels.shape[1:]
    scale = min(height / rows, width / columns)
    inner_height, inner_width = (max(1, round(side * scale)) for side in (rows, columns))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    margins = (left, width - inner_width - left, top, height - inner_height - top)
    padded = F.pad(_resize(pixels, inner_height, inner_width)[None], margins, mode="replicate")[0]
    return Fitted(padded, (top, left, inner_height, inner_width), (rows, columns))


def restore(edited: Float[Tensor, "3 height width"], fitted: Fitted) -> Float[Tensor, "3 rows columns"]:
    """Cut the picture out of the edited image and bring it to the original's size; in [0, 1]. Mirrors `fit`."""
    if edited.shape != fitted.pixels.shape:
        raise ValueError(f"expected an image of shape {tuple(fitted.pixels.shape)}, got {tuple(edited.shape)}")
    top, left, height, width = fitted.box
    return _resize(edited[:, top : top + height, left : left + width].clamp(0, 1), *fitted.size)


def cover(pixels: Float[Tensor, "3 rows columns"], height: int, width: int) -> Float[Tensor, "3 height width"]:
    """Scale an image to cover height x width without squashing it, and cut that out of its middle."""
    tall, wide = _covering(pixels, height, width)
    if tall * wide > MAX_PIXELS:  # a strip: nearly all that would be scaled up is cut off, so it is cut off before
        pixels = _middle(pixels, height, width)
        tall, wide = _covering(pixels, height, width)
    top, left = (tall - height) // 2, (wide - width) // 2
    return _resize(pixels, tall, wide)[:, top : top + height, left : left + width]


def _covering(pixels: Float[Tensor, "3 rows columns"], height: int, width: int) -> tuple[int, int]:
    """The height and width at which an image covers height x width."""
    rows, columns = pixels.shape[1:]
    scale = max(height / rows, width / columns)
    return max(height, round(rows * scale)), max(width, round(columns * scale))


def _middle(pixels: Float[Tensor, "3 rows columns"], height: int, width: int) -> Float[Tensor, "3 rows_ columns_"]:
    """What of an image is seen when it covers height x width, and a pixel or two more on each side."""
    rows, columns = pixels.shape[1:]
    scale = max(height / rows, width / columns)
    seen_rows, seen_columns = min(rows, ceil(height / scale) + 4), min(columns, ceil(width / scale) + 4)
    top, left = (rows - seen_rows) // 2, (columns - seen_columns) // 2
    return pixels[:, top : rows - top, left : columns - left]


def shrink(pixels: Float[Tensor, "3 rows columns"], side: int) -> Float[Tensor, "3 height width"]:
    """A copy whose longer side is at most `side`; an image that is small enough comes through as it is."""
    scale = side / max(pixels.shape[1:])
    if scale >= 1:
        return pixels
    rows, columns = (max(1, round(length * scale)) for length in pixels.shape[1:])
    return _resize(pixels, rows, columns)


def _resize(pixels: Float[Tensor, "3 rows columns"], height: int, width: int) -> Float[Tensor, "3 height width"]:
    if pixels.shape[1:] == (height, width):
        return pixels
    # Bicubic kernels overshoot at edges.
    return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def to_pillow(pixels: Float[Tensor, "3 height width"]) -> Image.Image:
    """Pixels as Pillow has them. Clamps to [0, 1] and rounds to 8 bits."""
    values = pixels.detach().cpu().float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(values.contiguous().numpy())


def encode(pixels: Float[Tensor, "3 height width"], kind: str) -> bytes:
    """A file's bytes. `kind` is PNG (lossless), JPEG or WEBP (quality 95). Clamps to [0, 1] and rounds to 8 bits.

    Raises:
        PixelsError: an image with values that are not numbers, or too large for the format.
    """
    if not bool(pixels.isfinite().all()):
        raise PixelsError("the image has values that are not numbers; the model is broken or needs another precision")
    buffer = io.BytesIO()
    try:
        to_pillow(pixels).save(buffer, format=kind, **_ENCODING[kind])
    except (OSError, ValueError) as error:
        size = f"{pixels.shape[2]}x{pixels.shape[1]}"
        raise PixelsError(f"a {size} image does not go into a {kind} file ({error}); write a PNG instead") from error
    return buffer.getvalue()


def save_image(pixels: Float[Tensor, "3 height width"], path: str | Path) -> None:
    """Write an image in the format of its suffix, replacing a file of that name at once or not at all.

    Raises:
        OutputError: unknown suffix or unwritable place; as PixelsError, values that are not numbers, or too large for
            the format.
    """
    path = Path(path)
    kind = image_format(path)
    try:
        content = encode(pixels, kind)
    except PixelsError as error:
        raise PixelsError(f"{path}: {error}") from error
    write_atomic(path, content)
