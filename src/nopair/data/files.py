"""Outputs that are complete or absent, and checks of paths before the work starts. No torch: cheap to import."""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from nopair.errors import ImageError, OutputError

IMAGE_FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Suffixes of the images nopair reads and writes, and Pillow's name of each format."""
_PART: Final = ".nopair-{}.part"
"""Names of what is not complete yet."""


def image_format(path: Path) -> str:
    """Pillow's name of the format that the suffix asks for, whatever its case.

    Raises:
        OutputError: no suffix, or an unknown one.
    """
    image_format = IMAGE_FORMATS.get(path.suffix.lower())
    if image_format is None and is_folder(path):
        raise OutputError(f"{path}: is a folder; name a file in it, which ends in {', '.join(IMAGE_FORMATS)}")
    if image_format is None:
        raise OutputError(f"{path}: cannot tell the image format; end the name in {', '.join(IMAGE_FORMATS)}")
    return image_format


def file_name(text: str) -> str:
    """A name for a file or folder: letters, digits, `_`, `.` and `-` of `text`; a run of anything else becomes one `-`.

    Different texts may get one name.
    """
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "unnamed"


def shown(text: str) -> str:
    """A text that can be printed: of names whose bytes are no text, and of halves of characters, a sign remains."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def is_folder(path: Path) -> bool:
    """Whether it is a folder, as far as we may know: `Path.is_dir` raises on forbidden and overlong paths."""
    try:
        return path.is_dir()
    except OSError:
        return False


def check_image(path: Path) -> None:
    """Find out, without opening it, that a file cannot be an image.

    Raises:
        ImageError: it is missing, empty, a folder or not an ordinary file, or its place is not accessible.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(f"{path}: cannot be read ({_reason(error)}); check the path") from error
    if stat.S_ISDIR(found.st_mode):
        raise ImageError(f"{path}: is a folder, not an image; name a file in it")
    if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
        raise ImageError(f"{path}: is not an ordinary file; copy it to one first")
    if found.st_size == 0:
        raise ImageError(f"{path}: is an empty file; copy or export it again")


def seen_from(folder: Path, path: Path) -> str:
    """The way from a folder to a file, with `/`; right also where a symbolic link leads to either."""
    return Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve())).as_posix()


def read_photo(path: Path) -> bytes:
    """An image file's bytes.

    Raises:
        ImageError: it cannot be read.
    """
    check_image(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({_reason(error)}); check the path") from error


def read_part(path: Path, offset: int, size: int, name: str) -> bytes:
    """An image within a file: so many bytes from there. `name` is for the message.

    Raises:
        ImageError: they cannot be read, or are not there.
    """
    try:
        with path.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), size, offset)
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({_reason(error)}); copy the dataset again") from error
    if len(content) != size:
        raise ImageError(f"{name}: cut short; copy the dataset again")
    return content


def check_output(path: Path) -> None:
    """Find out now, and not after the work is done, that an image cannot be written to `path`.

    Raises:
        OutputError: unknown suffix, `path` is a folder, or its folder is missing or not writable.
    """
    image_format(path)
    if is_folder(path):
        raise OutputError(f"{path}: is a folder; give the name of a file")
    if not is_folder(path.parent):
        raise OutputError(f"{path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {path.parent} is not writable; choose another place")


def make_folder(path: Path) -> None:
    """Create a folder and its parents, unless it is there already.

    Raises:
        OutputError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise OutputError(f"{path}: cannot create this folder ({_reason(error)}); choose another place") from error


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that at every moment `path` holds its old content or all of the new one, whatever happens.

    Raises:
        OutputError: it cannot be written.
    """
    with file_atomic(path) as file:
        file.write(content)


@contextmanager
def file_atomic(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write to; on leaving without an error it becomes `path`, all of it at once.

    Raises:
        OutputError: it cannot be written.
    """
    part = _beside(path)
    try:
        file = part.open("xb")
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written ({_reason(error)}); choose another place") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written ({_reason(error)}); check the name and the disk space") from error
    finally:
        part.unlink(missing_ok=True)


def check_folder(folder: Path, marker: str) -> None:
    """Find out now, and not after the work is done, that `folder_atomic` will not write `folder`.

    Raises:
        OutputError: it holds something else or is a file, or its place is not writable.
    """
    try:
        folder = folder.resolve()
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file; choose a new or an empty folder")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
            raise OutputError(f"{folder}: holds other files (no {marker}); choose a new or an empty folder")
        place = next(parent for parent in folder.parents if parent.exists())
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder}: cannot be written ({_reason(error)}); choose another place") from error
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise OutputError(f"{folder}: cannot be written ({place} is no writable folder); choose another place")


@contextmanager
def folder_atomic(folder: Path, marker: str) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving without an error it becomes `folder`, in place of what was there.

    `marker` is the file that every such folder holds; only a folder with it, or an empty one, is ever replaced.

    Raises:
        OutputError: `folder` holds something else, or cannot be written.
    """
    check_folder(folder, marker)
    folder = folder.resolve()
    try:
        part, old = _beside(folder), _beside(folder)
        part.mkdir(parents=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder}: cannot be written ({_reason(error)}); choose another place") from error
    try:
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({_reason(error)}); check the disk space") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield an empty hidden folder within `folder`, which is gone on leaving. `remove_parts` removes it after a kill.

    Raises:
        OutputError: it cannot be created.
    """
    part = _beside(folder / "any")
    try:
        part.mkdir()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({_reason(error)}); choose another place") from error
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_parts(folder: Path) -> None:
    """Remove the unfinished files and folders of writers that were killed. For who alone writes to `folder`.

    Raises:
        OutputError: one cannot be removed.
    """
    for part in folder.glob(_PART.format("*")):
        try:
            shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()
        except OSError as error:
            raise OutputError(f"{part}: cannot be removed ({_reason(error)}); remove it yourself") from error


def _beside(path: Path) -> Path:
    """A new hidden name in the same folder, so that renaming stays on one disk; short, as names have a limit."""
    return path.parent / _PART.format(secrets.token_hex(8))


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
