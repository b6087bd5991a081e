"""One run at a time writes an output: a lock that ends with the process that holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spq_core.errors import OutputLockedError


@contextmanager
def output_lock(out: Path) -> Iterator[None]:
    """Hold `<out>.lock` for the length of the block.

    Raises:
        OutputLockedError: another process holds it.
    """
    path = out.with_name(f"{out.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = _locked(path)
    if handle is None:
        raise OutputLockedError(str(out))
    try:
        yield
    finally:
        path.unlink(
            missing_ok=True
        )  # whoever waits for this file finds that it is gone, and tries again
        os.close(handle)


def _locked(path: Path) -> int | None:
    """A handle of the lock file that has the lock; None if another has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # its last holder removed it meanwhile
