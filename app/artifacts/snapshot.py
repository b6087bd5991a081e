"""A consistent view of a folder that a run writes to, by hard links.

A run replaces its state file in one step when all files that it names are complete, and never writes into a file that
is: it makes a new one. So links made while no such file changed are to a state that a run can go on from.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATES = "*.json"
"""Files that name others: states, and the index and manifest of a finished artifact."""


@contextmanager
def linked(work: Path) -> Iterator[dict[str, Path] | None]:
    """Files of `work` by name, as they were at one moment; None if the state changed meanwhile.

    Links and files with another name elsewhere are left out: a run may have made anything.
    """
    folder = work.with_name(f"{work.name}.snapshot")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield _linked(work, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _linked(work: Path, folder: Path) -> dict[str, Path] | None:
    try:
        before = _states(work)
        files = _link(work, folder)
        return files if before == _states(work) else None
    except FileNotFoundError:  # removed while it was looked at
        return None


def version_of(path: Path) -> str:
    """Tells contents apart: a file that is replaced is another one, or has another time."""
    state = path.stat()
    return f"{state.st_ino:x}-{state.st_mtime_ns:x}-{state.st_size:x}"


def _states(work: Path) -> dict[str, str]:
    names = {path.name: "" for path in work.iterdir()}
    return names | {str(path): version_of(path) for path in work.rglob(STATES) if path.is_file()}


def _link(work: Path, folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for parent, _, names in os.walk(work):
        for name in names:
            path = Path(parent) / name
            relative = path.relative_to(work)
            if path.is_symlink() or not path.is_file():
                continue
            link = folder / relative
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link, follow_symlinks=False)
            if link.stat().st_nlink == 2:  # noqa: PLR2004 - itself and this one
                files[relative.as_posix()] = link
    return files
