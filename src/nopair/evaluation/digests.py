"""Short names of contents, so that a result says what it was made with."""

import hashlib
from pathlib import Path

from nopair.errors import DataError


def folder_digest(folder: Path) -> str:
    """Twelve hex digits that change with the files of a model folder: names, sizes, and what small files hold.

    Weights are known by their size and their first and last kilobytes: reading them whole takes minutes.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(65536))
            if size > 65536:
                file.seek(-4096, 2)
                digest.update(file.read())
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
