"""Bodies of requests and answers about sweeps."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, model_validator

from app.domain.sweep_status import SweepStatus
from app.http.view import View
from app.jobs.requests import Labels, OutputReference, PlainBody, RequestBody, Submission
from spq_core.evaluation.settings import EvaluationSettings
from spq_core.sweep.document import MOST_MEMBERS, Grid, RequestedRecipe

EXAMPLES: list[JsonValue] = [
    {
        "model": {"repo_id": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "main"},
        "sweep": "baselines",
        "evaluation": {"perplexity": ["wikitext2"], "limit": 32},
    },
    {
        "model": {"path": "my-model"},
        "sweep": {
            "name": "smallest",
            "search": {
                "method": "bisect", "base": "small", "field": "target.bytes_ratio", "low": 0.2,
                "high": 0.5, "tolerance": 0.01,
            },
            "objective": {"minimize": "bytes_on_disk", "subject_to": {"kl": {"max": 0.02}}},
        },
        "max_parallel": 2,
    },
]  # fmt: skip
"""For the API's document; a test submits them."""


class SweepWebhook(RequestBody):
    """Whom to tell when it has ended."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    """An https:// address."""


class SweepSubmission(Submission):
    """A request to compare many recipes on one model."""

    model_config = ConfigDict(json_schema_extra={"examples": EXAMPLES})

    sweep: Annotated[str, Field(max_length=64)] | dict[str, Any]
    """A shipped sweep by name, or a document."""
    evaluation: EvaluationSettings = EvaluationSettings(throughput=False, tuned_control=False)
    """Of every member. Speeds are not measured: members run at different moments, on different workers."""
    dataset: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """What all members are calibrated on, in place of their recipes' text; and evaluated on, unless
    `evaluation.perplexity` names other texts."""
    max_parallel: Annotated[int, Field(ge=1, le=MOST_MEMBERS)] = 4
    """Members that are queued or run at a time; one at first, whose figures of the source serve the others."""
    webhook: SweepWebhook | None = None
    """Whom to tell when it has ended."""
    publish: OutputReference | None = None
    """Where the best member goes when all have ended; its figures are measured once more for its card."""

    @model_validator(mode="after")
    def _without_speeds(self) -> Self:
        asked = self.evaluation.model_fields_set
        if "throughput" in asked and self.evaluation.throughput:
            raise ValueError(
                "speeds of members run at different moments cannot be compared: leave evaluation.throughput out"
            )
        return self

    def settings(self) -> EvaluationSettings:
        """Of every member, with what sweeps do not measure."""
        changes: dict[str, Any] = {"throughput": False}
        if self.dataset is not None and "perplexity" not in self.evaluation.model_fields_set:
            changes["perplexity"] = (self.dataset,)
        if "tuned_control" not in self.evaluation.model_fields_set:
            changes["tuned_control"] = False
        return self.evaluation.model_copy(update=changes)


class SweepChange(PlainBody):
    """What is to be different from now on."""

    max_parallel: Annotated[int, Field(ge=1, le=MOST_MEMBERS)] | None = None
    """Members that are queued or run at a time."""
    labels: Labels | None = None
    """In place of those that it has; jobs that are made from now on have them."""
    recipes: Annotated[tuple[RequestedRecipe, ...], Field(max_length=MOST_MEMBERS)] = ()
    """More members, by name or document; a sweep that has ended goes on with them."""
    grid: Annotated[tuple[Grid, ...], Field(max_length=16)] = ()
    """Members to add; a sweep that has ended goes on with them."""

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("give max_parallel, labels, recipes or grid")
        return self


class FinalView(View):
    """A winner, measured once more when all members had ended."""

    job_id: str
    status: str
    publishes: bool
    row: dict[str, Any] | None = None
    """Figures on the first text of `finals.confirm_on`, and speeds."""
    beside: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Those of the source and of plain INT8 in the same run."""
    published: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class MemberView(View):
    """One recipe of a sweep."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    fields: dict[str, Any]
    """What sets it apart: the recipe's name, and what was varied."""
    recipe_sha256: str
    status: str
    """`waiting`, a status of its job, or `skipped`."""
    stopped: Literal["infeasible", "target", "failures", "canceled"] | None = None
    """Why it was skipped."""
    job_id: str | None = None
    estimate: dict[str, Any] | None = None
    """As `POST /estimates` has it; None where the model's headers could not be had."""
    row: dict[str, Any] | None = None
    """Figures of its artifact, as a job's `result.rows` has them, and `bytes_ratio` and `seconds`."""
    error: dict[str, Any] | None = None
    final: FinalView | None = None


class SweepSummary(View):
    """A sweep in a list."""

    id: str
    object: Literal["sweep"] = "sweep"
    name: str
    status: SweepStatus
    model: str
    source_commit: str | None
    counts: dict[str, int]
    """Members by status."""
    labels: dict[str, str]
    version: int
    created_at: datetime
    finished_at: datetime | None
    urls: dict[str, str]


class SweepView(SweepSummary):
    """A sweep as clients see it."""

    sweep: dict[str, Any]
    evaluation: dict[str, Any]
    max_parallel: int
    members: list[MemberView]
    beside: dict[str, dict[str, Any]]
    """Figures of the source and of plain INT8."""
    front: list[int]
    """Numbers of the members that no other beats."""
    best: int | None
    """The best member that keeps the limits, of those that are done."""
    tied: list[int]
    """Others that so much text does not tell from it."""
    waits_for: str | None
    estimated_finish_at: datetime | None
    """From the time that members took so far."""


class SweepPlan(View):
    """What a sweep would be (`dry_run`)."""

    object: Literal["sweep_plan"] = "sweep_plan"
    name: str
    model: str
    source_commit: str | None
    members: list[MemberView]
    seconds: int | None
    """Of all members one after the other, on two cores, without what they share; None where nothing is known."""


class SweepPage(View):
    """A page of sweeps, newest first."""

    object: Literal["list"] = "list"
    data: list[SweepSummary]
    has_more: bool
    next_cursor: str | None


class SweepEventView(View):
    """One entry of a sweep's history."""

    model_config = ConfigDict(from_attributes=True)

    seq: int
    at: datetime
    type: str
    data: dict[str, Any]
