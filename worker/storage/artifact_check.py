"""A last look at an artifact before it leaves the run's folder: the run may have made anything there."""

import errno
import os
import stat
import time
from pathlib import Path

from spq_core.artifact.manifest import artifact_files, is_inside
from worker.children.messages import Files
from worker.errors import ChildFailedError, failed


def require_plain_files(folder: Path, files: Files) -> None:
    """Make sure that a folder holds the listed files and nothing else, and that they are files.

    A link would lead whoever serves or uploads them to other files of this machine.

    Args:
        files: what the run says it wrote, by name.

    Raises:
        ChildFailedError: it does not.
        FileNotFoundError: there is no such folder.
    """
    if stat.S_ISLNK(folder.lstat().st_mode):
        raise _damaged("a link")
    found = {name: path.lstat() for name, path in artifact_files(folder).items()}
    if set(found) != set(files) or not all(is_inside(name) for name in found):
        raise _damaged("other files than the run listed")
    for name, state in found.items():
        if not stat.S_ISREG(state.st_mode) or state.st_nlink != 1:
            raise _damaged(f"{name[:100]!r}, which is no file of its own")
        if state.st_size != files[name].bytes:
            raise _damaged(f"{name[:100]!r} in another size than the run listed")


def move_into_store(work: Path, target: Path) -> None:
    """Give the artifact of an attempt's work folder its final name, in one step.

    Raises:
        FileNotFoundError: a later attempt has taken the work folder.
    """
    while True:
        if target.exists():  # of an attempt that was lost before it ended the job
            os.replace(target, work / f"superseded.{time.time_ns()}")  # noqa: PTH105
        try:
            os.replace(work / "artifact", target)  # noqa: PTH105
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            continue  # another attempt put its own there meanwhile
        return


def _damaged(what: str) -> ChildFailedError:
    return failed("unsafe_artifact", f"the artifact's folder holds {what}")
