"""A folder that API and workers share.

    <artifacts>/<job>/                    a finished artifact
    <artifacts>/.work/<job>.<attempt>/    where the newest attempt of an unfinished one compresses

A new attempt takes its predecessor's folder by renaming it. A predecessor that is still alive somewhere
(frozen, cut off) finds its paths gone, and what it has open is replaced, not written over.
"""

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.artifacts.store import StoredFile
from app.domain.errors import FencedError

FOLDER = ".work"
PIECE = 1 << 20
"""Bytes read at once."""
_JOB = re.compile(r"job_[0-9a-f]{32}")
_NAME = re.compile(r"(?P<job>job_[0-9a-f]{32})\.(?P<attempt>\d+)")


@dataclass(frozen=True, slots=True)
class LocalStore:
    """The folder, as a store."""

    root: Path

    def take_over(self, job_id: str, attempt: int, scratch: Path) -> Path:
        """Rename the predecessor's folder.

        Raises:
            FencedError: a later attempt has a folder already.
        """
        del scratch
        folders = self.root / FOLDER
        folders.mkdir(parents=True, exist_ok=True)
        own = folders / f"{job_id}.{attempt}"
        earlier = sorted(folders.glob(f"{job_id}.*"), key=lambda path: int(path.suffix[1:]))
        if earlier and int(earlier[-1].suffix[1:]) > attempt:
            raise FencedError(job_id, attempt)
        for older in earlier[:-1]:
            shutil.rmtree(older, ignore_errors=True)
        if earlier:
            os.replace(earlier[-1], own)  # noqa: PTH105
        else:
            own.mkdir()
        return own

    def work_copy(self, job_id: str, attempt: int, work: Path) -> None:
        """None: all workers see the folder as it is."""

    def keep(self, job_id: str, work: Path, files: Sequence[StoredFile]) -> Path:
        """Give the artifact its final name, in one step.

        Both moves go through the attempt's work folder, which a later attempt takes by renaming it: an
        attempt that was frozen here finds nothing to move when it wakes up.

        Raises:
            FileNotFoundError: a later attempt has taken the work folder.
        """
        del files
        target = self.root / job_id
        while True:
            if target.exists():  # of an attempt that was lost before it ended the job
                os.replace(target, work / f"superseded.{time.time_ns()}")  # noqa: PTH105
            try:
                os.replace(work / "artifact", target)  # noqa: PTH105
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                continue  # another attempt put its own there meanwhile
            return target

    def drop_work(self, job_id: str) -> None:
        """Remove the work folders of a job."""
        for folder in (self.root / FOLDER).glob(f"{job_id}.*"):
            shutil.rmtree(folder, ignore_errors=True)

    def read(
        self, job_id: str, file: StoredFile, start: int = 0, stop: int | None = None
    ) -> Iterator[bytes]:
        """Read a file; no link is followed.

        Raises:
            FileNotFoundError: it is not there.
        """
        path = self.root / job_id / file.path
        if path.is_symlink() or not path.is_file():
            raise FileNotFoundError(file.path)
        opened = path.open("rb")

        def pieces() -> Iterator[bytes]:
            with opened:
                opened.seek(start)
                left = (file.bytes if stop is None else stop) - start
                while left > 0 and (piece := opened.read(min(PIECE, left))):
                    left -= len(piece)
                    yield piece

        return pieces()

    def remove(self, job_id: str) -> None:
        """Remove the job's folder."""
        shutil.rmtree(self.root / job_id, ignore_errors=True)

    def settle(self, job_id: str, files: Sequence[StoredFile]) -> None:
        """Nothing: an artifact takes the place of the one before it."""

    def jobs(self) -> set[str]:
        """Folders that are called like a job."""
        return {folder.name for folder in self.root.glob("job_*") if _JOB.fullmatch(folder.name)}

    def jobs_with_work(self) -> set[str]:
        """Work folders that are called like an attempt's."""
        folders = (self.root / FOLDER).glob("job_*")
        return {match["job"] for folder in folders if (match := _NAME.fullmatch(folder.name))}
