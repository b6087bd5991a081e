"""One job from claim to outcome: fetch, run, keep, publish. Knows no Celery and loads no torch."""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DataError, SQLAlchemyError

from app.artifacts.sweep import settle
from app.db.attempts import Attempt, claim
from app.db.counters import DUPLICATES, FENCED, count
from app.db.session import is_away
from app.domain.errors import FencedError, StoreAwayError
from app.domain.job_status import TERMINAL
from app.telemetry import log
from spq_core.machine import DISK_FULL
from spq_core.progress import PhaseKind, phase
from worker.attempt.artifact import AttemptArtifact
from worker.attempt.credentials import hub_token, require_publishable
from worker.attempt.heartbeat import Heartbeat
from worker.attempt.job_log import JobLog
from worker.attempt.results import (
    finished_files,
    job_result,
    layer_rows,
    metric_rows,
    shown_progress,
)
from worker.attempt.source import fetching_spec, source_of
from worker.attempt.telemetry import Observed, observed
from worker.attempt.unmeasured import ends_unmeasured, missing_figures, require_no_gates
from worker.children.messages import (
    Fetched,
    File,
    Finished,
    HubAnswered,
    Kept,
    Logged,
    Message,
    Phase,
    Progressed,
    Published,
    PublishSpec,
    Ready,
    Resulted,
    RunSpec,
    Source,
)
from worker.children.process import Child
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
from worker.storage.inputs import readable_files
from worker.storage.scratch import remove_leftovers, scratch_folder

DATABASE_PAUSE_SECONDS = 1.0
LONGEST_STAGE = 64
"""Characters of the column."""
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
    document: dict[str, Any] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    source: Source = field(init=False)
    log: JobLog = field(init=False)
    finished: Finished | None = None
    """What the run told of an artifact that is complete, before it measured it."""
    artifact: AttemptArtifact = field(init=False)
    published: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        claimed = self.attempt.claim
        self.artifact = AttemptArtifact(
            self.runtime.store, claimed.job_id, claimed.attempt, self.scratch,
            self.runtime.settings.checkpoint_seconds,
        )  # fmt: skip
        self.log = JobLog(lambda lines: self._save(lambda: self.attempt.log(lines)))

    def to_outcome(self) -> None:
        """Run the steps and record how they ended, exactly once, while the attempt owns the job."""
        try:
            outcome, record = self._attempted()
            try:
                self._save(record)
            except DataError as error:
                outcome = "failed"
                self._save(self._bug(error))
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
            self._fetch()
            self._compress()
            self._keep_artifact()
            self._publish()
            record = self._success()
        except ChildError as stopped:
            try:
                return self._stopped(stopped)
            except OSError as error:
                return self._broke(error)
        except FencedError:
            raise
        except Exception as error:  # noqa: BLE001  the edge of an attempt: a bug must not burn the others
            return self._broke(error)
        return "succeeded", record

    def _broke(self, error: Exception) -> tuple[str, Callable[[], object]]:
        """What an error comes to that nobody raised on purpose.

        An attempt that lost its job finds its folders gone, and much else may follow from that. So it asks
        whether the job is its own before it takes the error for a bug.

        Raises:
            LeaseLostError, FencedError: it is not.
        """
        self._save(partial(self.attempt.renew, self.runtime.settings.lease_seconds))
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
                    files=finished_files(self.files) if self.artifact.kept else [],
                )
            case DrainRequestedError():
                self.artifact.hand_on()
                return "drained", partial(self.attempt.give_back, "worker_stopped", counted=False)
            case CancelRequestedError():
                return "canceled", self.attempt.cancel
        raise why

    def _failed(self, error: dict[str, Any]) -> Callable[[], object]:
        """The write that ends the job with an error; what is finished is kept, except behind a gate."""
        if self.finished is not None and not self.document:
            self._take_finished({"code": error["code"], "message": error["message"]})
        if error["code"] in GATE_CODES and not self._can_keep():
            self.files = {}
        if self.files and self.artifact.is_made:
            with suppress(ChildFailedError):
                self._keep_artifact()
        if self.artifact.kept is None:
            self.files = {}
        return partial(self._fail, error)

    def _bug(self, error: Exception) -> Callable[[], object]:
        """The write that ends the job after an error nobody expected."""
        log.error("attempt_bug", job_id=self.attempt.claim.job_id, exc_info=error)
        return partial(self.attempt.fail, failed("internal", type(error).__name__).error)

    def _after_fence(self) -> str:
        """This attempt may not write; if that is because of a cancel, it can still end the job."""
        try:
            self._save(self.attempt.cancel)
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

    def _fetch(self) -> None:
        """Bring the model and texts to this machine, or find the allowed local folder.

        Also makes sure, before any work, that the result could be published if that is asked for.
        """
        settings, claimed = self.runtime.settings, self.attempt.claim
        self.log.token = hub_token(settings, claimed)
        require_publishable(claimed, self.log.token)
        self.source = source_of(claimed, settings, self.scratch / "source")
        if claimed.request["model"]["repo_id"] is None and claimed.request["output"] is None:
            return
        spec = fetching_spec(claimed, settings, self.source, self.log.token, self.scratch / "texts")
        with self.runtime.fetcher().started(spec, self.scratch) as child:
            self._follow(child)

    def _compress(self) -> None:
        settings, claimed = self.runtime.settings, self.attempt.claim
        self._save(lambda: self.attempt.renew(settings.lease_seconds))
        work = self.artifact.take_over()
        folders = [self.scratch / "texts", *([settings.data_dir] if settings.data_dir else [])]
        runner = self.runtime.runner()
        spec = RunSpec(
            source=self.source,
            recipe=claimed.recipe,
            evaluation=claimed.request["evaluation"],
            text_folders=[str(folder) for folder in folders],
            out=str(self.artifact.made),
            scratch=str(runner.home(self.scratch)),
            threads=settings.threads,
            device=settings.device,
        )
        reads = [*folders, *readable_files(settings, Path(self.source.folder))]
        try:
            with (
                self.artifact.copied(),
                runner.started(spec, self.scratch, work, reads=reads) as child,
            ):
                self._follow(child)
        except (ChildFailedError, ChildRetryError) as why:
            measuring = self.finished is not None and not self.document
            if not (measuring and ends_unmeasured(why, claimed)):
                raise
            self._finish_unmeasured(why)

    def _finish_unmeasured(self, why: ChildFailedError | ChildRetryError) -> None:
        """Go on with a finished artifact without figures.

        Raises:
            ChildFailedError: the recipe has gates, which nobody can judge now.
        """
        missing = missing_figures(why)
        self.log.note(missing["message"])
        self._take_finished(missing)
        require_no_gates(self.attempt.claim.recipe, missing)

    def _take_finished(self, missing: dict[str, Any]) -> None:
        """What the run told of its artifact before it measured it, in place of a result."""
        if self.finished is not None:
            self.files = self.finished.files
            self.document = {**self.finished.document, "missing": missing}

    def _keep_artifact(self) -> None:
        """Put the artifact into the store, if the job is still this attempt's; it stays there even if publishing fails."""
        self._save(partial(self.attempt.renew, self.runtime.settings.lease_seconds))
        self.artifact.keep(self.files)

    def _publish(self) -> None:
        request = self.attempt.claim.request
        if request["output"] is None:
            return
        spec = PublishSpec(
            endpoint=self.runtime.settings.hub_endpoint,
            token=self.log.token,
            repo_id=request["output"]["repo_id"],
            private=request["output"]["private"],
            job_id=self.attempt.claim.job_id,
            folder=str(self.artifact.kept),
            title=f"Compress {self.source.name} with {self.attempt.claim.recipe['metadata']['name']}",
        )
        publishing = Phase.model_validate(phase(PhaseKind.PUBLISHING), from_attributes=True)
        self._show(Progressed(phase=publishing, done=0, total=1, unit="commits"))
        with self.runtime.publisher().started(spec, self.scratch) as child:
            self._follow(child, drains=False)  # a commit takes seconds, and may have been made

    def _follow(self, child: Child, *, drains: bool = True) -> None:
        child.follow(
            self.heartbeat, lambda message: self._on_message(child, message), self.log.note,
            self.runtime.stopping if drains else None,
        )  # fmt: skip

    def _on_message(self, child: Child, message: Message) -> None:
        match message:
            case Progressed():
                self._show(message)
            case Logged():
                self.log.note(message.text)
            case HubAnswered():
                self.observed.hub_answers(message.answers)
            case _:
                self._on_outcome(child, message)

    def _on_outcome(self, child: Child, message: Message) -> None:
        """Take in what a child came to."""
        match message:
            case Fetched():
                found = {"revision": message.commit, "license": message.license}
                self.source = self.source.model_copy(update=found)
                self._save(lambda: self.attempt.source_commit(message.commit))
            case Finished():
                self.finished = message
            case Resulted():
                self.document, self.files = message.document, message.files
            case Kept():
                self.document, self.files = {}, message.files
            case Ready():
                self._save(self.attempt.begin_commit)
                child.tell("commit")
            case Published():
                self.published = message.model_dump(exclude={"type"})
            case _:
                pass

    def _success(self) -> Callable[[], object]:
        """The write that ends the job well; what a run told is looked at before it, once."""
        self.observed.figures(self.document)
        return partial(
            self.attempt.succeed,
            result=job_result(self.document, self.published),
            layers=layer_rows(self.document),
            metrics=metric_rows(self.document),
            files=finished_files(self.files),
        )

    def _fail(self, error: dict[str, Any]) -> None:
        error = error | {"message": self.log.scrubbed(str(error["message"]))}
        self.attempt.fail(
            error,
            layers=layer_rows(self.document),
            metrics=metric_rows(self.document),
            files=finished_files(self.files),
        )

    def _show(self, told: Progressed) -> None:
        self.observed.phase(told.phase)
        stage = told.phase.title[:LONGEST_STAGE]
        self._save(
            lambda: self.attempt.progress(
                stage, shown_progress(told), stage_left=told.phase_left, run_left=told.run_left
            )
        )

    def _save(self, write: Callable[[], object]) -> None:
        """Write to the database, waiting out its absence for as long as the lease can last."""
        while True:
            try:
                write()
            except SQLAlchemyError as error:
                if not is_away(error):
                    raise
                if self.heartbeat.lost.is_set() or self.heartbeat.overran():
                    raise LeaseLostError from None
                time.sleep(DATABASE_PAUSE_SECONDS)
            else:
                return
