"""What Pillow tells and refuses of an image file before it decodes it. No torch: cheap to import."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

from PIL import ExifTags, Image, UnidentifiedImageError

from nopair.data.files import IMAGE_FORMATS
from nopair.errors import ImageError

MAX_PIXELS: Final = 64_000_000
"""Larger images are refused before they are decoded: a file of a few kilobytes can claim to be gigabytes of pixels."""

DAMAGE: Final = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
"""What Pillow's decoders and metadata readers raise on broken files."""


@contextmanager
def opened_image(file: BinaryIO | io.BytesIO, name: str) -> Iterator[Image.Image]:
    """A PNG, JPEG or WebP file whose header was read; what fails within is an error of the image. `name` is for those.

    Raises:
        ImageError: not such an image, over `MAX_PIXELS`, without pixels, cut short or damaged.
    """
    with _quiet_pillow():
        try:
            with Image.open(file, formats=tuple(dict.fromkeys(IMAGE_FORMATS.values()))) as image:
                _check_size(name, *image.size)
                yield image
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise ImageError(
                f"{name}: too large, over {MAX_PIXELS // 10**6} million pixels; scale it down first"
            ) from None
        except UnidentifiedImageError:
            raise ImageError(f"{name}: not a readable PNG, JPEG or WebP image; convert it or export it again") from None
        except DAMAGE as error:
            raise ImageError(f"{name}: damaged or cut short ({error}); copy or export it again") from error


def orientation_of(image: Image.Image) -> int:
    """EXIF's number of how the picture lies, 1 for upright; metadata that cannot be read counts as absent."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow warns about odd metadata and large images; here those are handled or are errors, so one line is said.

    Python's filters belong to the process. Should two threads undo these in the wrong order, what stays is only this.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _check_size(name: str, width: int, height: int) -> None:
    if min(width, height) < 1:
        raise ImageError(f"{name}: has no pixels ({width}x{height}); export it again")
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise ImageError(f"{name}: too large ({width}x{height}, over {limit} million pixels); scale it down first")
