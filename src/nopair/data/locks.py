"""One process writes to a place at a time."""

from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from nopair.errors import OutputError


def locked(path: Path) -> AcquireReturnProxy:
    """Take the lock of what is written at `path`; it is a file beside it, and ends with the process. As a context
    manager, or through `lock.release`, it is given back.

    Raises:
        OutputError: another run has it, or it cannot be written.
    """
    try:
        return FileLock(f"{path}.lock").acquire(blocking=False)
    except Timeout:
        raise OutputError(f"{path}: another run is writing here; wait for it, or stop it") from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
