"""Answers about jobs."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import ConfigDict

from app.domain.job_status import JobStatus
from app.http.view import View
from spq_core.estimate.stages import StageKind


class StageView(View):
    """One stage of a job, planned from its request."""

    id: str
    """The same for all jobs and versions: `download`, `compress`, `load_gate`, `int8`, `measure`, ..."""
    title: str
    kind: StageKind
    state: Literal["planned", "running", "done", "skipped", "stopped"]
    """`skipped`: a later one began without it, as its figures were known; `stopped`: the job ended in it."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    done: int | None = None
    total: int | None = None
    """Units of the current phase of it."""


class QueueView(View):
    """Of a job that waits for a worker."""

    model_config = ConfigDict(from_attributes=True)

    position: int
    """From 1, among the queued jobs of all tenants, oldest first."""
    running: int
    """Jobs that workers are busy with."""
    workers: int
    """That were there within the last minute; without one, nothing begins."""
    estimated_start_at: datetime | None
    """From what running jobs still take, and what jobs took lately; None where that cannot be told."""


class Attempted(View):
    """An attempt that ended without a result."""

    number: int
    reason: str
    ended_at: datetime


class VerdictView(View):
    """The result beside plain INT8."""

    word: Literal["better", "worse", "mixed", "same", "unclear"]
    """By bytes and by KL from the source; `mixed`: smaller and farther, or larger and nearer."""
    sentence: str


class JobProgress(View):
    """Where a running job is."""

    stage_id: str | None = None
    overall_fraction: float | None = None
    """Of the whole job, 0–1; never goes back within an attempt."""
    stage: str
    done: int
    total: int
    unit: str
    fraction: float
    """Of the current stage, 0–1."""
    message: str
    updated_at: datetime
    stage_ends_at: datetime | None = None
    """When the current stage will be done if it goes on as it went; None until that can be told."""
    estimated_finish_at: datetime | None = None
    """When the run will be done if it takes as long as its estimate (`POST /estimates`) expects, which can
    be off by a factor of three; never before `stage_ends_at`. None while there is nothing to go by."""


class JobError(View):
    """Why a job failed."""

    code: str
    message: str
    retryable: bool = False


class JobView(View):
    """A job as clients see it."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    object: Literal["job"] = "job"
    status: JobStatus
    stage: str | None
    progress: JobProgress | None
    model: str
    source_commit: str | None
    recipe: dict[str, Any]
    recipe_sha256: str
    request: dict[str, Any]
    labels: dict[str, str]
    retry_of: str | None
    sweep_id: str | None
    sweep_member: int | None
    """The sweep that it is a member of, and which."""
    attempt: int
    max_attempts: int
    last_attempt: Attempted | None
    """Why the job is queued again, or was before."""
    queue: QueueView | None = None
    """While it is queued. It changes without a new version: look without `If-None-Match` to see it."""
    stages: list[StageView]
    result: dict[str, Any] | None
    verdict: VerdictView | None
    """None without figures of plain INT8 beside the result's."""
    error: JobError | None
    version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cancel_requested_at: datetime | None
    artifact_expired_at: datetime | None
    urls: dict[str, str]


class JobPlan(View):
    """What a job would be (`dry_run`)."""

    object: Literal["job_plan"] = "job_plan"
    model: str
    source_commit: str | None
    """That the model was looked at; None for a local model, or where the Hub could not be asked now."""
    recipe: dict[str, Any]
    recipe_sha256: str
    estimate: dict[str, Any] | None
    """As `POST /estimates` has it; None where the model's headers could not be had now."""
    queue: QueueView
    stages: list[StageView]


class JobPage(View):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobView]
    has_more: bool
    next_cursor: str | None


class RowFigures(View):
    """Headline figures of a result, on its first text."""

    dataset: str
    windows: int | None = None
    tokens: int | None = None
    bytes_on_disk: int
    bytes_ratio: float
    perplexity: float | None = None
    perplexity_se: float | None = None
    source_perplexity: float | None = None
    perplexity_ratio: float | None = None
    perplexity_ratio_se: float | None = None
    compared: str | None = None
    """The perplexity beside the source's, in words that so much text allows."""
    kl: float | None = None
    kl_se: float | None = None
    top1: float | None = None
    decode_ratio: float | None = None
    """Decoding speed over the source's."""
    retention: float | None = None


class JobRow(View):
    """A job as lists show it (`view=row`)."""

    id: str
    object: Literal["job_row"] = "job_row"
    status: JobStatus
    version: int
    model: str
    recipe: str
    labels: dict[str, str]
    sweep_id: str | None
    sweep_member: int | None
    attempt: int
    max_attempts: int
    last_attempt: Attempted | None
    stage: str | None
    stage_number: int | None
    """Of `stage_count`, from 1."""
    stage_count: int
    overall_fraction: float | None
    estimated_finish_at: datetime | None
    queue: QueueView | None
    error: JobError | None
    verdict: VerdictView | None
    figures: RowFigures | None
    missing: str | None
    """Why a finished artifact has no figures."""
    published: str | None
    """The repository that it was published to."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    artifact_expired_at: datetime | None


class JobRowPage(View):
    """A page of jobs in rows."""

    object: Literal["list"] = "list"
    data: list[JobRow]
    has_more: bool
    next_cursor: str | None


class JobCounts(View):
    """How many jobs a filter finds."""

    object: Literal["job_counts"] = "job_counts"
    total: int
    by_status: dict[JobStatus, int]


class EventView(View):
    """One entry of a job's history."""

    model_config = ConfigDict(from_attributes=True)

    seq: int
    at: datetime
    attempt: int
    type: str
    data: dict[str, Any]


class LogLineView(View):
    """One line a runner wrote."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    at: datetime
    attempt: int
    text: str


class MetricView(View):
    """One measured figure."""

    model_config = ConfigDict(from_attributes=True, protected_namespaces=())

    model: str
    name: str
    dataset: str
    value: float


class LayerView(View):
    """What one stage did to one matrix."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    layer: str
    stage: str
    applied: bool
    reason: str
    figures: dict[str, Any]


class ArtifactFileView(View):
    """One file of the artifact."""

    path: str
    bytes: int
    sha256: str
    url: str


Item = TypeVar("Item", bound=View)


class Listing(View, Generic[Item]):
    """A numbered list; ask again with `after` = next_after."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    next_after: int
