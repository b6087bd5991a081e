"""One job from claim to outcome: fetch, run, keep, publish. Knows no Celery and loads no torch."""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DataError, SQLAlchemyError

from app.artifacts.leftovers import settle
from app.db.attempts import Attempt, claim
from app.db.counters import DUPLICATES, FENCED, count
from app.domain.errors import FencedError, StoreAwayError
from app.domain.job_status import TERMINAL
from app.telemetry import log
from spq_core.machine import DISK_FULL
from worker.attempt.artifact import AttemptArtifact
from worker.attempt.heartbeat import Heartbeat
from worker.attempt.job_log import JobLog
from worker.attempt.record import Record
from worker.attempt.reported import Reported
from worker.attempt.steps import Steps
from worker.attempt.telemetry import Observed, observed
from worker.errors import (
    CancelRequestedError,
    ChildError,
    ChildFailedError,
    ChildRetryError,
    DrainRequestedError,
    LeaseLostError,
    disk_is_full,
    failed,
)
from worker.runtime import Runtime
from worker.storage.scratch import remove_leftovers, scratch_folder

GATE_CODES = {"quality_gate_failed", "load_gate_failed"}


def run_job(job_id: str, runtime: Runtime) -> None:
    """Claim the job and bring it to an outcome.

    A job that is not queued is left alone: the queue may deliver one id many times.
    """
    settings, asked_at = runtime.settings, time.monotonic()
    claimed = claim(runtime.database, job_id, runtime.worker_id, settings.lease_seconds)
    if claimed is None:
        log.info("duplicate_delivery", job_id=job_id)
        count(runtime.database, DUPLICATES.more())
        return
    attempt = Attempt(runtime.database, claimed)
    log.info("attempt_started", job_id=job_id, attempt=claimed.attempt)
    heartbeat = Heartbeat(
        attempt, settings.heartbeat_seconds, settings.lease_seconds, renewed_at=asked_at
    )
    with observed(runtime, claimed) as watched, heartbeat, ExitStack() as folders:
        try:
            folder = scratch_folder(settings.scratch_dir, job_id, claimed.attempt)
            scratch = folders.enter_context(folder)
        except OSError as error:  # another worker may have room, or the right to make one
            log.error("no_scratch_folder", job_id=job_id, error=str(error))
            with suppress(FencedError, SQLAlchemyError):  # then its lease ends
                attempt.give_back(DISK_FULL if disk_is_full(error) else "no_scratch_folder")
            return
        with suppress(SQLAlchemyError):  # the next job tries again
            remove_leftovers(runtime.database, settings.scratch_dir)
        _JobRun(runtime, attempt, heartbeat, scratch, watched).to_outcome()


@dataclass(slots=True)
class _JobRun:
    """One attempt. `to_outcome` is the whole story; the rest are its steps."""

    runtime: Runtime
    attempt: Attempt
    heartbeat: Heartbeat
    scratch: Path
    observed: Observed
    record: Record = field(init=False)
    log: JobLog = field(init=False)
    artifact: AttemptArtifact = field(init=False)
    reported: Reported = field(default_factory=Reported)
    steps: Steps = field(init=False)

    def __post_init__(self) -> None:
        claimed, settings = self.attempt.claim, self.runtime.settings
        self.record = Record(self.attempt, self.heartbeat, settings.lease_seconds)
        self.log = JobLog(lambda lines: self.record.write(lambda: self.attempt.log(lines)))
        self.artifact = AttemptArtifact(
            self.runtime.store, claimed.job_id, claimed.attempt, self.scratch,
            settings.checkpoint_seconds,
        )  # fmt: skip
        self.steps = Steps(
            self.runtime, self.record, self.scratch, self.observed, self.log, self.artifact,
            self.reported,
        )  # fmt: skip

    def to_outcome(self) -> None:
        """Run the steps and record how they ended, exactly once, while the attempt owns the job."""
        try:
            outcome, ending = self._attempted()
            try:
                self.record.write(ending)
            except DataError as error:
                outcome = "failed"
                self.record.write(self._bug(error))
            if outcome in TERMINAL:
                self.artifact.drop_work()
                self._settle()
            if outcome == "canceled":  # while its artifact was being published
                self.artifact.remove()
        except (LeaseLostError, FencedError):
            count(self.runtime.database, FENCED.more())
            outcome = self._after_fence()
            self._settle()
        self.observed.outcome(outcome, good=outcome in {"succeeded", "canceled", "drained"})
        claimed = self.attempt.claim
        log.info("attempt_ended", job_id=claimed.job_id, attempt=claimed.attempt, outcome=outcome)

    def _attempted(self) -> tuple[str, Callable[[], object]]:
        """Run the steps; return the outcome's name and the write that records it."""
        try:
            self.steps.fetch()
            self.steps.compress()
            self.steps.keep_artifact()
            self.steps.publish()
            ending = self._success()
        except ChildError as stopped:
            try:
                return self._stopped(stopped)
            except (LeaseLostError, FencedError):
                raise
            except Exception as error:  # noqa: BLE001  keeping what there is may fail, too
                return self._broke(error)
        except FencedError:
            raise
        except Exception as error:  # noqa: BLE001  the edge of an attempt: a bug must not burn the others
            return self._broke(error)
        return "succeeded", ending

    def _broke(self, error: Exception) -> tuple[str, Callable[[], object]]:
        """What an error comes to that nobody raised on purpose.

        An attempt that lost its job finds its folders gone, and much else may follow from that. So it asks
        whether the job is its own before it takes the error for a bug.

        Raises:
            LeaseLostError, FencedError: it is not.
        """
        self.record.renew()
        if disk_is_full(error):
            return self._stopped(ChildRetryError(DISK_FULL, str(error)))
        if isinstance(error, StoreAwayError):
            return self._stopped(ChildRetryError(error.code, error.reason))
        return "failed", self._bug(error)

    def _stopped(self, why: ChildError) -> tuple[str, Callable[[], object]]:
        """What a run that did not succeed comes to.

        Raises:
            LeaseLostError: nothing may be written.
        """
        match why:
            case ChildFailedError(error=error):
                return "failed", self._failed(error)
            case ChildRetryError(reason=reason, detail=detail):
                self.log.note(f"attempt ended: {reason}: {detail}")
                self.artifact.hand_on()
                return f"retry: {reason}", partial(
                    self.attempt.give_back,
                    reason,
                    files=self.reported.file_rows() if self.artifact.kept else [],
                )
            case DrainRequestedError():
                self.artifact.hand_on()
                return "drained", partial(self.attempt.give_back, "worker_stopped", counted=False)
            case CancelRequestedError():
                return "canceled", self.attempt.cancel
        raise why

    def _failed(self, error: dict[str, Any]) -> Callable[[], object]:
        """The write that ends the job with an error; what is finished is kept, except behind a gate."""
        reported = self.reported
        if reported.is_unmeasured:
            reported.go_on_unmeasured({"code": error["code"], "message": error["message"]})
        if error["code"] in GATE_CODES and not self._can_keep():
            reported.files = {}
        if reported.files and self.artifact.is_made:
            with suppress(ChildFailedError):
                self.steps.keep_artifact()
        if self.artifact.kept is None:
            reported.files = {}
        return partial(self._fail, error)

    def _bug(self, error: Exception) -> Callable[[], object]:
        """The write that ends the job after an error nobody expected."""
        log.error("attempt_bug", job_id=self.attempt.claim.job_id, exc_info=error)
        return partial(self.attempt.fail, failed("internal", type(error).__name__).error)

    def _after_fence(self) -> str:
        """This attempt may not write; if that is because of a cancel, it can still end the job."""
        try:
            self.record.write(self.attempt.cancel)
        except (LeaseLostError, FencedError):
            return "fenced"
        self.artifact.remove()
        return "canceled"

    def _can_keep(self) -> bool:
        """Whether the recipe asks for artifacts that fail, and the run came as far as one."""
        wanted = self.attempt.claim.recipe["gates"]["on_fail"] == "keep"
        return wanted and self.artifact.is_made

    def _settle(self) -> None:
        """Leave nothing in the store that another attempt of an ended job, or this one, kept in vain."""
        with suppress(SQLAlchemyError, StoreAwayError):
            settle(self.runtime.database, self.runtime.store, self.attempt.claim.job_id)

    def _success(self) -> Callable[[], object]:
        """The write that ends the job well; what a run told is looked at before it, once."""
        self.observed.figures(self.reported.document)
        return partial(
            self.attempt.succeed, result=self.reported.result() or {}, **self.reported.rows()
        )

    def _fail(self, error: dict[str, Any]) -> None:
        error = error | {"message": self.log.scrubbed(str(error["message"]))}
        self.attempt.fail(error, result=self.reported.result(), **self.reported.rows())
