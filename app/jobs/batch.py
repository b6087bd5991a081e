"""One action for many jobs: each by itself, and all that was refused is told."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from app.db.job_lists import JobFilter, Position, job_page
from app.db.keys import Principal
from app.db.models import Job
from app.domain.errors import DomainError
from app.domain.job_status import RETRYABLE, TERMINAL, JobStatus
from app.http.view import View
from app.jobs import cursor
from app.jobs.requests import Instant, Label, PlainBody, RequestBody
from app.jobs.service import JobService

MOST = 500
"""Jobs of one request."""
Action = Literal["cancel", "retry", "delete", "label"]
SENSIBLE: Mapping[str, frozenset[JobStatus]] = {
    "cancel": frozenset(JobStatus) - TERMINAL - {JobStatus.CANCELING},
    "retry": RETRYABLE,
    "delete": TERMINAL,
    "label": frozenset(JobStatus),
}
"""Statuses of jobs that an action does something to; others are passed over."""
Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class BatchFilter(RequestBody):
    """Jobs by what they are; every part that is given must fit."""

    status: tuple[JobStatus, ...] = ()
    """One of these."""
    model: Text | None = None
    """Its `repo_id` or local folder."""
    recipe: Text | None = None
    """The recipe's name."""
    sweep: Text | None = None
    """The sweep that it is a member of."""
    q: Text | None = None
    """Part of the id, the model, the recipe's name or a label."""
    labels: dict[Label, str] = Field(default_factory=dict)
    """All of these."""
    created_after: Instant | None = None
    """Submitted after this."""
    created_before: Instant | None = None
    """Submitted before this."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not any(getattr(self, name) for name in self.model_fields_set):
            raise ValueError('say which jobs; for all of them, give "status" with every status')
        return self

    def jobs(self) -> JobFilter:
        """As the database has it."""
        return JobFilter(
            status=self.status, model=self.model, recipe=self.recipe, sweep=self.sweep, text=self.q,
            labels=self.labels, created_after=self.created_after, created_before=self.created_before,
        )  # fmt: skip


class BatchRequest(PlainBody):
    """What to do, and to which jobs."""

    action: Action
    """What is done to each."""
    ids: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MOST)] | None = None
    """Which jobs, by id; up to 100."""
    filter: BatchFilter | None = None
    """Which jobs, by what they are."""
    labels: dict[Label, Annotated[str, StringConstraints(max_length=512)] | None] | None = None
    """For `label`: set these; those that are null are removed."""
    after: Annotated[str, StringConstraints(max_length=600)] | None = None
    """Where the request before ended; its answer's `next_after`. With a filter, only jobs that the action does something to are counted."""
    dry_run: bool = False
    """Only tell which jobs it would be."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either ids or filter")
        if (self.action == "label") != (self.labels is not None):
            raise ValueError("labels go with the action label, which needs them")
        return self


class Refusal(View):
    """A job that the action was not done to, and why."""

    id: str
    code: str
    detail: str


class BatchResult(View):
    """What became of every job."""

    object: Literal["batch"] = "batch"
    action: Action
    dry_run: bool
    done: list[str]
    """Ids of the jobs; with `dry_run`, of those it would be."""
    made: list[str]
    """Ids of new jobs, by `retry`, in the order of `done`."""
    passed_over: list[str]
    """Of the ids, those of jobs that the action does nothing to in their status."""
    refused: list[Refusal]
    has_more: bool
    """The filter finds more jobs than one request takes: ask again with `after`."""
    next_after: str | None


def run_batch(jobs: JobService, caller: Principal, body: BatchRequest) -> BatchResult:
    """Do it to each job in a transaction of its own; an error of one keeps no other from it.

    Raises:
        InvalidCursorError: `after` is none of an answer before.
    """
    found, others, missing, more = _found(jobs, caller.tenant, body)
    result = BatchResult(
        action=body.action, dry_run=body.dry_run, done=[], made=[], passed_over=others,
        refused=[
            Refusal(id=one, code="job_not_found", detail="there is no such job") for one in missing
        ],
        has_more=more is not None, next_after=more,
    )  # fmt: skip
    act = _action(jobs, caller, body)
    for job in found:
        try:
            made = None if body.dry_run else act(job.id)
        except DomainError as error:
            refusal = Refusal(id=job.id, code=str(getattr(error, "code", "")), detail=str(error))
            result.refused.append(refusal)
            continue
        result.done.append(job.id)
        result.made += [] if made is None else [made]
    return result


def _found(
    jobs: JobService, tenant: str, body: BatchRequest
) -> tuple[list[Job], list[str], list[str], str | None]:
    """Jobs to do it to, ids of others, ids of which there are none, and where to go on."""
    sensible = SENSIBLE[body.action]
    if body.filter is None:
        with jobs.database.read() as session:
            found = job_page(session, tenant, JobFilter(ids=body.ids or ()), limit=MOST)
        known = {job.id for job in found}
        missing = [one for one in dict.fromkeys(body.ids or ()) if one not in known]
        fit = [job for job in found if job.status in sensible]
        return fit, [job.id for job in found if job.status not in sensible], missing, None
    chosen = body.filter.jobs()
    wanted = [one for one in chosen.status or tuple(JobStatus) if one in sensible]
    if not wanted:
        return [], [], [], None
    position = None if body.after is None else Position(*cursor.decode(body.after))
    with jobs.database.read() as session:
        found = job_page(
            session, tenant, replace(chosen, status=wanted), limit=MOST + 1, after=position
        )
    more = (
        cursor.encode(found[MOST - 1].created_at, found[MOST - 1].id) if len(found) > MOST else None
    )
    return found[:MOST], [], [], more


def _action(jobs: JobService, caller: Principal, body: BatchRequest) -> Callable[[str], str | None]:
    """Does it to one job; returns the id of a new one, if that makes one."""

    def cancel(job_id: str) -> None:
        jobs.cancel(caller.tenant, job_id)

    def delete(job_id: str) -> None:
        jobs.delete(caller.tenant, job_id)

    def label(job_id: str) -> None:
        changes = body.labels or {}
        jobs.change(caller.tenant, lambda repo: repo.change_labels(job_id, changes))

    def retry(job_id: str) -> str:
        return str(jobs.retry(caller, job_id, None).document["id"])

    actions: Mapping[str, Callable[[str], str | None]] = {
        "cancel": cancel, "delete": delete, "label": label, "retry": retry,
    }  # fmt: skip
    return actions[body.action]
