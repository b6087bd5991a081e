"""An attempt's artifact: where it is made, and how it gets into the store."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.artifacts.store import ArtifactStore, StoredFile, WorkCopy
from app.domain.errors import DamagedArtifactError, StoreAwayError
from app.telemetry import log
from worker.children.messages import Files
from worker.errors import failed
from worker.storage.artifact_check import require_plain_files

ARTIFACT = "artifact"


@dataclass(slots=True)
class AttemptArtifact:
    """Of one attempt."""

    store: ArtifactStore
    job_id: str
    attempt: int
    scratch: Path
    checkpoint_seconds: float
    """Between two copies of unfinished work, at least; a copy takes at most half of the time."""
    work: Path | None = None
    """Where the run writes, from `take_over` on."""
    copy: WorkCopy | None = None
    """Of the work folder, where other workers do not see it."""
    kept: Path | None = None
    """Where the finished artifact is on this machine, once it is in the store."""

    @property
    def made(self) -> Path:
        """Where the run writes the artifact.

        Raises:
            FileNotFoundError: the run has not begun.
        """
        if self.work is None:
            raise FileNotFoundError("the attempt has no work folder yet")
        return self.work / ARTIFACT

    @property
    def is_made(self) -> bool:
        """Whether the run came as far as an artifact that is not in the store yet."""
        return self.work is not None and self.made.is_dir()

    def take_over(self) -> Path:
        """The work folder, with what the predecessors left.

        Raises:
            FencedError: a later attempt has begun.
        """
        self.work = self.store.take_over(self.job_id, self.attempt, self.scratch)
        self.copy = self.store.work_copy(self.job_id, self.attempt, self.work)
        return self.work

    @contextmanager
    def copied(self) -> Iterator[None]:
        """While the run writes: copy its work to where another worker finds it, if that is needed."""
        copy = self.copy
        if copy is None:
            yield
            return
        over = threading.Event()
        thread = threading.Thread(target=self._save_often, args=(copy, over), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def hand_on(self) -> None:
        """Copy the work of a run that ended early, for whoever goes on with it."""
        if self.copy is not None:
            _saved(self.copy, lambda: False)

    def keep(self, files: Files) -> None:
        """Put the artifact into the store.

        Raises:
            ChildFailedError: it is not what the run said it is.
            FileNotFoundError: a later attempt has taken the work folder.
        """
        require_plain_files(self.made, files)
        stored = [StoredFile(name, file.bytes, file.sha256) for name, file in files.items()]
        try:
            self.kept = self.store.keep(self.job_id, self.made.parent, stored)
        except DamagedArtifactError as error:
            raise failed(error.code, str(error)) from None

    def drop_work(self) -> None:
        """Of a job that has ended; housekeeping tries again what fails."""
        with suppress(OSError, StoreAwayError):
            self.store.drop_work(self.job_id)

    def remove(self) -> None:
        """Of a job that was canceled; housekeeping tries again what fails."""
        with suppress(OSError, StoreAwayError):
            self.store.remove(self.job_id)

    def _save_often(self, copy: WorkCopy, over: threading.Event) -> None:
        pause = self.checkpoint_seconds
        while not over.wait(pause):
            pause = max(self.checkpoint_seconds, _saved(copy, over.is_set))


def _saved(copy: WorkCopy, stop: Callable[[], bool]) -> float:
    """Copy once; returns the seconds it took. What fails is tried again the next time."""
    begun = time.monotonic()
    try:
        copy.save(stop)
    except Exception as error:  # noqa: BLE001  a run must not end for its copy, nor go on without one in silence
        log.warning("work_not_copied", error=f"{type(error).__name__}: {error}"[:300])
    return time.monotonic() - begun
