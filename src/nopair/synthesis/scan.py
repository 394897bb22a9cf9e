"""The first stage: which photos there are, which are taken, and how they are kept.

A photo that is taken is kept as an upright sRGB JPEG without metadata (a camera writes where and when it was used), at
most so many pixels long. That file is what models see and what the dataset holds.
"""

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from nopair.data.files import IMAGE_FORMATS, is_folder, make_folder, remove_parts, write_atomic
from nopair.data.images import load_image, to_pillow
from nopair.errors import ImageError
from nopair.synthesis.fingerprint import Fingerprint, Seen
from nopair.synthesis.items import Aside, Found
from nopair.synthesis.journal import Journal
from nopair.synthesis.recipe import ScanConfig
from nopair.synthesis.texts import printable

STAGE: Final = "scan"
_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Scanned:
    """Photos in order of their names, and files that are none or were left out."""

    photos: tuple[Found, ...]
    aside: tuple[Aside, ...]


def list_files(folder: Path, without: Path | None = None) -> list[Path]:
    """Everything below the folder but folders and what is hidden, in the order of the names' bytes. Links are followed
    to files; one to a folder is in the list itself.

    Args:
        without: a folder in it that is no part of it, such as the dataset that is being made.

    Raises:
        ImageError: there is no such folder, nothing in it, or a folder in it cannot be read.
    """
    if not is_folder(folder):
        raise ImageError(f"{folder}: no such folder of photos; check the path")
    other = None if without is None else without.resolve()
    found = []
    for root, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(root, name).resolve() != other]
        links = [name for name in folders if Path(root, name).is_symlink()]
        found += [Path(root, name) for name in (*names, *links) if not name.startswith(".")]
    if not found:
        raise ImageError(f"{folder}: there are no files in this folder; give one with photos")
    return sorted(found, key=os.fsencode)


def _unreadable(error: OSError) -> NoReturn:
    raise ImageError(f"{error.filename}: cannot be read ({error.strerror}); check the folder") from error


def scan(
    folder: Path,
    config: ScanConfig,
    journal: Journal,
    kept: Path,
    tick: Callable[[], None] = lambda: None,
    without: Path | None = None,
) -> Scanned:
    """Look at every file once; what the journal knows of an unchanged file is not looked at again.

    Args:
        kept: folder for the photos as they are kept. What a killed scan left unfinished there is removed.
        tick: called after each file.
        without: see `list_files`.

    Raises:
        ImageError: there is nothing in the folder, or a folder in it cannot be read.
        OutputError: a photo cannot be kept.
    """
    for place in kept.glob("??"):
        remove_parts(place)
    photos: list[Found] = []
    aside: list[Aside] = []
    digests: set[str] = set()
    seen = Seen(config.near)
    for path, value in _looked_at(list_files(folder, without), config, journal, kept):
        name = printable(path.relative_to(folder).as_posix())
        tick()
        if "reason" in value:
            aside.append(Aside(STAGE, value["reason"], name, value["detail"]))
            continue
        photo = Found(value["digest"], name, kept / value["file"])
        fingerprint = Fingerprint(value["bits"], tuple(value["colour"]))
        copy = seen.find(fingerprint)
        if photo.digest in digests:
            aside.append(Aside(STAGE, "copy of another photo", name))
        elif copy is not None:
            aside.append(Aside(STAGE, "nearly the same as another photo", name, copy))
        else:
            digests.add(photo.digest)
            seen.add(fingerprint, name)
            photos.append(photo)
    return Scanned(tuple(photos), tuple(aside))


def _looked_at(
    files: list[Path], config: ScanConfig, journal: Journal, kept: Path
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each file with what is known of it, in order, however many are looked at at a time."""
    waiting = iter(files)
    with ThreadPoolExecutor(config.threads) as threads:
        while some := list(islice(waiting, _AT_ONCE)):
            keys = [_key(path, config) for path in some]
            known = [None if key is None else journal.get(key) for key in keys]
            known = [None if value is not None and _gone(value, kept) else value for value in known]
            looks = [
                threads.submit(_look, path, config, kept) if value is None else None
                for path, value in zip(some, known, strict=True)
            ]
            for path, key, value, look in zip(some, keys, known, looks, strict=True):
                if look is not None:
                    value = look.result()
                    if key is not None:
                        journal.put(key, value)
                assert value is not None, "known or looked at"
                yield path, value


def _key(path: Path, config: ScanConfig) -> str | None:
    """Equal for an unchanged file and equal settings; None for what is no file, or is gone."""
    try:
        told = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(told.st_mode):
        return None
    settings = f"{config.min_side} {config.longest_side} {config.quality}"
    place = os.fsencode(path.absolute()).hex()
    return hashlib.sha256(f"{place} {told.st_size} {told.st_mtime_ns} {settings}".encode("ascii")).hexdigest()


def _gone(value: dict[str, Any], kept: Path) -> bool:
    return "file" in value and not (kept / value["file"]).is_file()


def _look(path: Path, config: ScanConfig, kept: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
        return {"reason": "no ordinary file", "detail": "a link to a folder" if path.is_dir() else ""}
    if path.suffix.lower() not in IMAGE_FORMATS:
        return {"reason": "no PNG, JPEG or WebP", "detail": printable(path.suffix)}
    try:
        content = path.read_bytes()
        pixels = load_image(path)
    except (ImageError, OSError) as error:
        told = str(error).replace(str(path), "").strip(": ")
        return {"reason": "not readable", "detail": printable(told)}
    height, width = pixels.shape[1:]
    image = small(pixels, config)
    if min(image.size) < config.min_side:  # as it is kept: a long strip is small, too
        return {"reason": "too small", "detail": f"{width}x{height}"}
    digest = hashlib.sha256(content).hexdigest()
    file = keep(image, digest, config, kept)
    fingerprint = Fingerprint.of(image)
    return {"digest": digest, "file": file, "bits": fingerprint.bits, "colour": list(fingerprint.colour)}


def small(pixels: Float[Tensor, "3 height width"], config: ScanConfig) -> Image.Image:
    """An upright photo, 0 to 1, no longer than the recipe has it."""
    image = to_pillow(pixels)
    image.thumbnail((config.longest_side, config.longest_side), Image.Resampling.LANCZOS)
    return image


def place_of(digest: str, config: ScanConfig) -> str:
    """Where a photo is kept, relative to the folder of kept photos."""
    return f"{digest[:2]}/{digest}-{config.longest_side}-{config.quality}.jpg"


def keep(image: Image.Image, digest: str, config: ScanConfig, kept: Path) -> str:
    """Write a photo to its place; its `place_of`. Raises OutputError."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=config.quality, subsampling=0)
    file = place_of(digest, config)
    make_folder((kept / file).parent)
    write_atomic(kept / file, encoded.getvalue())
    return file
