"""What an attempt does, step by step: fetch, compress and measure, keep, publish."""

from dataclasses import dataclass, field
from pathlib import Path

from spq_core.estimate.stages import requested_stages
from spq_core.progress import PhaseKind, phase
from worker.attempt.artifact import AttemptArtifact
from worker.attempt.brought import bring_artifact
from worker.attempt.course import Course
from worker.attempt.credentials import hub_token, require_publishable
from worker.attempt.job_log import JobLog
from worker.attempt.record import Record
from worker.attempt.reported import Reported
from worker.attempt.source import fetching_spec, source_of
from worker.attempt.telemetry import Observed
from worker.attempt.unmeasured import ends_unmeasured, missing_figures, require_no_gates
from worker.children.messages import (
    Fetched,
    FinishedArtifact,
    HubAnswered,
    Logged,
    Message,
    Phase,
    Progressed,
    PublishSpec,
    Ready,
    RunSpec,
    Source,
)
from worker.children.process import Child
from worker.errors import ChildFailedError, ChildRetryError
from worker.runtime import Runtime
from worker.storage.figures import FOLDER, bring, figures_folder, share, take_in
from worker.storage.inputs import readable_files


@dataclass(slots=True)
class Steps:
    """Of one attempt. A step that does not end well raises a `ChildError`."""

    runtime: Runtime
    record: Record
    scratch: Path
    observed: Observed
    log: JobLog
    artifact: AttemptArtifact
    reported: Reported
    source: Source = field(init=False)
    course: Course = field(init=False)

    def __post_init__(self) -> None:
        claimed = self.record.attempt.claim
        self.course = Course(requested_stages(claimed.recipe, claimed.request), self.log.note)

    def fetch(self) -> None:
        """Bring the model and texts to this machine, or find the allowed local folder.

        Also makes sure, before any work, that the result could be published if that is asked for.
        """
        settings, claimed = self.runtime.settings, self.record.attempt.claim
        self.log.token = hub_token(settings, claimed)
        require_publishable(claimed, self.log.token)
        folder = self.scratch / "source"
        self.source = source_of(claimed, settings, folder)
        spec = fetching_spec(claimed, settings, folder, self.log.token, self.scratch / "texts")
        if spec.repo_id is None and spec.output is None and not spec.tasks:
            return
        with self.runtime.fetcher().started(spec, self.scratch) as child:
            self._follow(child)

    def compress(self) -> None:
        settings, claimed = self.runtime.settings, self.record.attempt.claim
        self.record.renew()
        work = self.artifact.take_over()
        folders = [self.scratch / "texts", *([settings.data_dir] if settings.data_dir else [])]
        runner = self.runtime.runner()
        finished = self._brought()
        figures = figures_folder(settings.scratch_dir, self.source, claimed)
        if settings.max_figures_bytes:
            bring(self.runtime.database, figures)
        left = runner.home(self.scratch) / FOLDER
        spec = RunSpec(
            source=self.source,
            recipe=claimed.recipe,
            evaluation=claimed.request["evaluation"],
            text_folders=[str(folder) for folder in folders],
            out=str(self.artifact.made),
            scratch=str(runner.home(self.scratch)),
            threads=settings.threads,
            device=settings.device,
            figures=str(figures),
            leave=str(left),
            job_id=claimed.job_id,
            finished=finished,
        )
        reads = [*folders, figures, *readable_files(settings, Path(self.source.folder))]
        try:
            with (
                self.artifact.copied(),
                runner.started(spec, self.scratch, work, reads=reads) as child,
            ):
                self._follow(child)
        except (ChildFailedError, ChildRetryError) as why:
            if not (self.reported.is_unmeasured and ends_unmeasured(why, claimed)):
                raise
            self._finish_unmeasured(why)
        finally:
            take_in(left, figures, settings.max_figures_bytes)
            share(self.runtime.database, figures)

    def _brought(self) -> FinishedArtifact | None:
        """The artifact that the job only measures, if it does."""
        claimed = self.record.attempt.claim
        job_id = claimed.request.get("measure_of")
        if job_id is None:
            return None
        self.log.note(f"measuring the artifact of {job_id}")
        return bring_artifact(
            self.runtime.database, self.runtime.store, claimed.tenant, job_id, self.artifact.made
        )

    def _finish_unmeasured(self, why: ChildFailedError | ChildRetryError) -> None:
        """Go on with a finished artifact without figures.

        Raises:
            ChildFailedError: the recipe has gates, which nobody can judge now.
        """
        missing = missing_figures(why)
        self.log.note(missing["message"])
        self.reported.go_on_unmeasured(missing)
        require_no_gates(self.record.attempt.claim.recipe, missing)

    def keep_artifact(self) -> None:
        """Put the artifact into the store, if the job is still this attempt's; it stays there even if publishing fails."""
        self.record.renew()
        self.artifact.keep(self.reported.files)

    def publish(self) -> None:
        request = self.record.attempt.claim.request
        if request["output"] is None:
            self.course.end()
            return
        spec = PublishSpec(
            endpoint=self.runtime.settings.hub_endpoint,
            token=self.log.token,
            repo_id=request["output"]["repo_id"],
            private=request["output"]["private"],
            job_id=self.record.attempt.claim.job_id,
            folder=str(self.artifact.kept),
            title=f"Compress {self.source.name} with {self.record.attempt.claim.recipe['metadata']['name']}",
        )
        publishing = Phase.model_validate(phase(PhaseKind.PUBLISHING), from_attributes=True)
        self._show(Progressed(phase=publishing, done=0, total=1, unit="commits"))
        with self.runtime.publisher().started(spec, self.scratch) as child:
            self._follow(child, drains=False)  # a commit takes seconds, and may have been made
        self.course.end()

    def _follow(self, child: Child, *, drains: bool = True) -> None:
        child.follow(
            self.record.heartbeat, lambda message: self._on_message(child, message), self.log.note,
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
                self.record.write(lambda: self.record.attempt.source_commit(message.commit))
            case Ready():
                self.record.write(self.record.attempt.begin_commit)
                child.tell("commit")
            case _:
                self.reported.take(message)

    def _show(self, told: Progressed) -> None:
        self.observed.phase(told.phase)
        course = self.course.take(told)
        self.record.progress(told, course, self.course.left(told))
