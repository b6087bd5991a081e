"""Bodies of requests about jobs."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

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
from app.http import forms
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.models.reading import Reading
from spq_core.recipe.catalog import DEFAULT

RepoId = Annotated[
    str,
    StringConstraints(pattern=forms.REPO_ID.pattern),
]
Label = Annotated[str, StringConstraints(pattern=forms.LABEL.pattern)]
Labels = Annotated[
    dict[Label, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=MAX_LABELS)
]
TOKEN = re.compile(r"[\x21-\x7e]{1,512}")
MAX_DEPTH = 32
UNWANTED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What no column can hold, and what would steer the terminal or turn the line it is shown in."""


class RequestBody(BaseModel):
    """Base of every part of a request."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PlainBody(RequestBody):
    """A request whose text is only text, wherever it is: nothing that no database column can hold, or that steers a terminal."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, document: Any) -> Any:
        _require_plain(document)
        return document


class ModelReference(RequestBody):
    """A Hub repository at a revision, or a folder this service may read."""

    repo_id: RepoId | None = None
    """A repository of the Hub: owner/name."""
    revision: Annotated[str, StringConstraints(pattern=forms.REVISION.pattern)] = "main"
    """Branch, tag or commit; the job keeps the commit it was at."""
    path: Annotated[str, StringConstraints(pattern=forms.FOLDER.pattern)] | None = None
    """Name of a folder inside one of the service's SPQ_MODEL_DIRS."""

    subfolder: (
        Annotated[str, StringConstraints(max_length=200, pattern=forms.SUBFOLDER.pattern)] | None
    ) = None
    """The folder within it that holds the model's config.json, where that is not at its top."""
    file: Annotated[str, StringConstraints(pattern=forms.GGUF_FILE.pattern)] | None = None
    """A .gguf file of it that is the model, instead of safetensors."""
    allow_requantize: bool = False
    """Widen weights that are quantized already (FP8, MXFP4, GGUF) to 16 bits and compress those. Their first loss
    stays in them, and figures are against them."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.repo_id is None) == (self.path is None):
            raise ValueError("give either repo_id or path")
        return self

    @property
    def name(self) -> str:
        """What to call the model, as clients name it."""
        return self.repo_id or self.path or ""

    @property
    def place(self) -> str:
        """The name with all that is said of where in it the model is."""
        return "/".join(part for part in (self.name, self.subfolder, self.file) if part)

    @property
    def reading(self) -> Reading:
        """What of it is the model."""
        return Reading.of_request(self.model_dump())


class OutputReference(RequestBody):
    """Where to publish; without it the artifact stays in the service's store."""

    repo_id: RepoId
    """A repository that is new, or holds an earlier artifact."""
    private: bool = True
    """Whether a new one is private."""


class WebhookReference(RequestBody):
    """Whom to tell how the job goes; messages are signed (Standard Webhooks)."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    """An https:// address."""
    events: tuple[Literal["job.started", "job.succeeded", "job.failed", "job.canceled"], ...] = (
        "job.succeeded",
        "job.failed",
        "job.canceled",
    )
    """Which messages it gets."""


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


class Submission(PlainBody):
    """What jobs and sweeps are asked for with."""

    model: ModelReference
    """What is compressed."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How source, plain INT8 and result are measured."""
    hub_token: Annotated[SecretStr, AfterValidator(_sendable)] | None = None
    """Reads the model and publishes the result instead of the service's own token. It is kept encrypted,
    never shown, and forgotten at the end."""
    limits: TimeLimits = TimeLimits()
    """When to give up."""
    labels: Labels = Field(default_factory=dict)
    """Names and values of your own, to find jobs by."""


class JobSubmission(Submission):
    """A request to compress a model."""

    model_config = ConfigDict(json_schema_extra={"examples": EXAMPLES})

    recipe: Annotated[str, Field(max_length=64)] | dict[str, Any] = DEFAULT
    """A catalog name, a recipe document, or a document with `extends`."""
    output: OutputReference | None = None
    """Where it is published, if it is."""
    webhook: WebhookReference | None = None
    """Whom to tell how it goes."""


class Measuring(RequestBody):
    """What to measure of an artifact that is there."""

    evaluation: EvaluationSettings | None = None
    """As the job had it, if left out."""


class JobChange(PlainBody):
    """What is to be different of a job."""

    labels: dict[Label, Annotated[str, StringConstraints(max_length=512)] | None]
    """Set these; those that are null are removed."""


def _require_plain(value: Any, depth: int = 0) -> None:
    """Refuse control characters, lone surrogates and endless nesting anywhere in a JSON document."""
    if depth > MAX_DEPTH:
        raise ValueError(f"lists and objects may be nested {MAX_DEPTH} deep")
    if isinstance(value, str) and UNWANTED.search(value):
        raise ValueError("text must not contain control characters or lone surrogates")
    if isinstance(value, dict):
        for key, member in value.items():
            _require_plain(key, depth + 1)
            _require_plain(member, depth + 1)
    elif isinstance(value, list):
        for member in value:
            _require_plain(member, depth + 1)
