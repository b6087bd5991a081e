"""A last look at an artifact before it leaves the run's folder: the run may have made anything there."""

import stat
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


def _damaged(what: str) -> ChildFailedError:
    return failed("unsafe_artifact", f"the artifact's folder holds {what}")
