"""Short names of contents, so that a result says what it was made with."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nopair.errors import DataError, ModelError

_SMALL: Final = 2**16
_TINY: Final = 2**26


def folder_digest(folder: Path) -> str:
    """Twelve hex digits that change with the files of a model folder: names, sizes, and what small files hold.

    Weights are known by their size and their first and last kilobytes: reading them whole takes minutes.

    Raises:
        ModelError: a file cannot be read.
    """
    return _digest(folder, _files(folder), whole=_SMALL)


def model_digest(folder: Path) -> str:
    """The same of what the model computes with: not of its card, README.md, nor of hidden files.

    Files of up to 64 MiB are read whole, so of the tiny models every weight counts. Of larger ones, weights between the
    first 64 MiB and the last 4 KiB do not.

    Raises:
        ModelError: a file cannot be read.
    """
    paths = [path for path in _files(folder) if path.name != "README.md"]
    return _digest(folder, [path for path in paths if not _hidden(path.relative_to(folder))], whole=_TINY)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _digest(folder: Path, paths: Sequence[Path], whole: int) -> str:
    """Of files in `folder`; those of more than `whole` bytes by as many, and by their last kilobytes."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(whole))
                if size > whole:
                    file.seek(-4096, 2)
                    digest.update(file.read())
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    return digest.hexdigest()[:12]


def file_digest(path: Path) -> str:
    """Of all that a file holds.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file") from error


def edit_digest(instruction: str, source: Path) -> str:
    """Of what an editor is asked for: the words, and all that the image's file holds.

    Raises:
        DataError: the image cannot be read.
    """
    return hashlib.sha256(f"{instruction}\0{file_digest(source)}".encode()).hexdigest()
