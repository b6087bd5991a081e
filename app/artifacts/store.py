"""Where finished artifacts are kept, and what unfinished attempts have got so far: the port.

Two adapters: `local`, a folder that all machines share, and `object_store`, an S3-compatible one, with which workers
share no file system. Both keep what the service rests on:

* An artifact appears whole. Who reads it has its names and digests from the database, where only the attempt that owns
  the job may write them.
* An attempt that was frozen and wakes up late changes nothing that a later one made.
* A new attempt goes on from where the newest of its predecessors was last seen, on whatever machine that was.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol


class StoredFile(NamedTuple):
    """One file of an artifact, as the database has it."""

    path: str
    bytes: int
    sha256: str


class WorkCopy(Protocol):
    """Brings an attempt's work folder to where another machine's attempt can go on with it."""

    def save(self, stop: Callable[[], bool] = ...) -> bool:
        """Copy what has changed; False if the run was writing its state just then: try later.

        Args:
            stop: asked before each file; True ends the copy, and what was there before it stays.

        Raises:
            StoreAwayError: the store does not answer.
        """
        ...


class ArtifactStore(Protocol):
    """Where artifacts are. All of it may raise `StoreAwayError`."""

    # For the attempt that owns a job

    def take_over(self, job_id: str, attempt: int, scratch: Path) -> Path:
        """A folder for the attempt's work, with what the newest of its predecessors left.

        Args:
            scratch: the attempt's own folder on this machine.

        Raises:
            FencedError: a later attempt has one already.
        """
        ...

    def work_copy(self, job_id: str, attempt: int, work: Path) -> WorkCopy | None:
        """How the work folder is copied while the run goes on; None where all workers see it as it is."""
        ...

    def keep(self, job_id: str, work: Path, files: Sequence[StoredFile]) -> Path:
        """Take over the finished artifact in `work`; returns where it is on this machine now.

        Raises:
            FileNotFoundError: a later attempt has taken the work folder.
            DamagedArtifactError: a file's content is not the one it is listed with.
        """
        ...

    def drop_work(self, job_id: str) -> None:
        """Forget the unfinished work of all attempts."""
        ...

    # For readers

    def read(
        self, job_id: str, file: StoredFile, start: int = 0, stop: int | None = None
    ) -> Iterator[bytes]:
        """A file's content from byte `start` to before byte `stop`, in pieces.

        Raises:
            FileNotFoundError: it is not there (any more); before the first piece.
        """
        ...

    # For housekeeping

    def remove(self, job_id: str) -> None:
        """Remove a job's artifact."""
        ...

    def settle(self, job_id: str, files: Sequence[StoredFile]) -> None:
        """Of a job that has ended: remove what attempts kept that is not among its files."""
        ...

    def jobs(self) -> set[str]:
        """Jobs that have (parts of) an artifact here."""
        ...

    def jobs_with_work(self) -> set[str]:
        """Jobs that have unfinished work here."""
        ...
