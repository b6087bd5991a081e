"""Bodies of requests and answers about jobs."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    StringConstraints,
    model_validator,
)

from app.db.jobs import MAX_LABELS
from app.domain.job_status import JobStatus
from spq_core.estimate.stages import StageKind
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.recipe.catalog import DEFAULT

RepoId = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.\-]{0,95})?$"
    ),
]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\-]{1,63}$")]
Labels = Annotated[
    dict[Label, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=MAX_LABELS)
]
TOKEN = re.compile(r"[\x21-\x7e]{1,512}")
MAX_DEPTH = 32
UNWANTED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What no column can hold, and what would steer the terminal or turn the line it is shown in."""


class RequestBody(BaseModel):
    """Base of every part of a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelReference(RequestBody):
    """A Hub repository at a revision, or a folder this service may read."""

    repo_id: RepoId | None = None
    revision: Annotated[str, StringConstraints(pattern=r"^[\w./\-]{1,128}$")] = "main"
    path: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.\-]{0,127}$")] | None = None
    """Name of a folder inside one of the service's SPQ_MODEL_DIRS."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.repo_id is None) == (self.path is None):
            raise ValueError("give either repo_id or path")
        return self

    @property
    def name(self) -> str:
        """What to call the model, as clients name it."""
        return self.repo_id or self.path or ""


class OutputReference(RequestBody):
    """Where to publish; without it the artifact stays in the service's store."""

    repo_id: RepoId
    private: bool = True


class WebhookReference(RequestBody):
    """Whom to tell how the job goes; messages are signed (Standard Webhooks)."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    events: tuple[Literal["job.started", "job.succeeded", "job.failed", "job.canceled"], ...] = (
        "job.succeeded",
        "job.failed",
        "job.canceled",
    )


class TimeLimits(RequestBody):
    """How long a job may take; without a limit, as long as it needs."""

    max_pending_seconds: Annotated[int, Field(ge=1, le=30 * 86400)] | None = None
    """A job no worker has taken by then fails."""
    max_runtime_seconds: Annotated[int, Field(ge=1, le=30 * 86400)] | None = None
    """A job that is not done this long after its first start fails."""


EXAMPLES: list[JsonValue] = [
    {
        "model": {"repo_id": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "main"},
        "recipe": "balanced",
        "evaluation": {"perplexity": ["wikitext2"], "limit": 16},
        "labels": {"team": "search"},
    },
    {
        "model": {"path": "my-model"},
        "recipe": {"extends": "small", "target": {"bytes_ratio": 0.25}, "gates": {"max_kl": 0.1}},
        "output": {"repo_id": "me/my-model-small", "private": True},
        "limits": {"max_pending_seconds": 3600, "max_runtime_seconds": 86400},
        "webhook": {"url": "https://example.com/hooks/spq"},
    },
]
"""For the API's document; a test submits them."""


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside of the calendar in UTC") from None


Instant = Annotated[AwareDatetime, AfterValidator(_in_utc)]


def _sendable(token: SecretStr) -> SecretStr:
    """HTTP headers hold nothing else; a line break at the end comes from reading a file."""
    if not TOKEN.fullmatch(token.get_secret_value()):
        raise ValueError("must be 1 to 512 visible ASCII characters, without spaces or line breaks")
    return token


class Submission(RequestBody):
    """What jobs and sweeps are asked for with."""

    model: ModelReference
    evaluation: EvaluationSettings = EvaluationSettings()
    hub_token: Annotated[SecretStr, AfterValidator(_sendable)] | None = None
    """Reads the model and publishes the result instead of the service's own token. It is kept encrypted,
    never shown, and forgotten at the end."""
    limits: TimeLimits = TimeLimits()
    labels: Labels = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, document: Any) -> Any:
        """Refuse text that no database column can hold, or that is more than text where it is shown."""
        require_plain(document)
        return document


class JobSubmission(Submission):
    """A request to compress a model."""

    model_config = ConfigDict(json_schema_extra={"examples": EXAMPLES})

    recipe: Annotated[str, Field(max_length=64)] | dict[str, Any] = DEFAULT
    """A catalog name, a recipe document, or a document with `extends`."""
    output: OutputReference | None = None
    webhook: WebhookReference | None = None


class Measuring(RequestBody):
    """What to measure of an artifact that is there."""

    evaluation: EvaluationSettings | None = None
    """As the job had it, if left out."""


def require_plain(value: Any, depth: int = 0) -> None:
    """Refuse control characters, lone surrogates and endless nesting anywhere in a JSON document."""
    if depth > MAX_DEPTH:
        raise ValueError(f"lists and objects may be nested {MAX_DEPTH} deep")
    if isinstance(value, str) and UNWANTED.search(value):
        raise ValueError("text must not contain control characters or lone surrogates")
    if isinstance(value, dict):
        for key, member in value.items():
            require_plain(key, depth + 1)
            require_plain(member, depth + 1)
    elif isinstance(value, list):
        for member in value:
            require_plain(member, depth + 1)


class StageView(BaseModel):
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


class QueueView(BaseModel):
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


class Attempted(BaseModel):
    """An attempt that ended without a result."""

    number: int
    reason: str
    ended_at: datetime


class VerdictView(BaseModel):
    """The result beside plain INT8."""

    word: Literal["better", "worse", "mixed", "same"]
    """By bytes and by KL from the source; `mixed`: smaller and farther, or larger and nearer."""
    sentence: str


class JobProgress(BaseModel):
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


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    retryable: bool = False


class JobView(BaseModel):
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


class JobPlan(BaseModel):
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


class JobPage(BaseModel):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobView]
    has_more: bool
    next_cursor: str | None


class RowFigures(BaseModel):
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


class JobRow(BaseModel):
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


class JobRowPage(BaseModel):
    """A page of jobs in rows."""

    object: Literal["list"] = "list"
    data: list[JobRow]
    has_more: bool
    next_cursor: str | None


class JobCounts(BaseModel):
    """How many jobs a filter finds."""

    object: Literal["job_counts"] = "job_counts"
    total: int
    by_status: dict[JobStatus, int]


class JobChange(RequestBody):
    """What is to be different of a job."""

    labels: dict[Label, Annotated[str, StringConstraints(max_length=512)] | None]
    """Set these; those that are null are removed."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, document: Any) -> Any:
        require_plain(document)
        return document


class EventView(BaseModel):
    """One entry of a job's history."""

    model_config = ConfigDict(from_attributes=True)

    seq: int
    at: datetime
    attempt: int
    type: str
    data: dict[str, Any]


class LogLineView(BaseModel):
    """One line a runner wrote."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    at: datetime
    attempt: int
    text: str


class MetricView(BaseModel):
    """One measured figure."""

    model_config = ConfigDict(from_attributes=True, protected_namespaces=())

    model: str
    name: str
    dataset: str
    value: float


class LayerView(BaseModel):
    """What one stage did to one matrix."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    layer: str
    stage: str
    applied: bool
    reason: str
    figures: dict[str, Any]


class ArtifactFileView(BaseModel):
    """One file of the artifact."""

    path: str
    bytes: int
    sha256: str
    url: str


Item = TypeVar("Item", bound=BaseModel)


class Listing(BaseModel, Generic[Item]):
    """A numbered list; ask again with `after` = next_after."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    next_after: int
