"""Parameters of lists of jobs: filters and orders."""

from typing import Annotated, Literal

from fastapi import Depends, Query, Request

from app.db.job_lists import JobFilter, Order
from app.domain.job_status import JobStatus
from app.domain.naming_errors import UnknownFilterError
from app.http import forms
from app.jobs.labels import PREFIX, wanted_labels
from app.jobs.parameters import Model, OfSweep
from app.jobs.requests import Instant

PARAMETERS = (
    "status", "ids", "model", "recipe", "sweep", "q", "id_part", "created_after", "created_before", "sort", "view", "limit", "after",
)  # fmt: skip
MOST_IDS, ID_LENGTH = 100, 36
Statuses = Annotated[
    str | None,
    Query(alias="status", pattern=forms.STATUSES.pattern, description="Only jobs with this status, or one of several separated by commas."),
]  # fmt: skip
Ids = Annotated[
    str | None,
    Query(
        max_length=MOST_IDS * (ID_LENGTH + 1), pattern=forms.IDS.pattern,
        description=f"Only these jobs: up to {MOST_IDS} ids separated by commas.",
    ),
]  # fmt: skip
OfRecipe = Annotated[
    str | None, Query(alias="recipe", max_length=128, description="Only jobs whose recipe has this name.")
]  # fmt: skip
IdPart = Annotated[
    str | None, Query(alias="id_part", pattern=forms.ID_PART.pattern, description="Only jobs with this in their id.")
]  # fmt: skip
Text = Annotated[
    str | None,
    Query(alias="q", max_length=128, description="Only jobs with this in their id, model, recipe's name or labels."),
]  # fmt: skip
CreatedAfter = Annotated[Instant | None, Query(description="Only jobs submitted after this.")]
CreatedBefore = Annotated[Instant | None, Query(description="Only jobs submitted before this.")]
Sort = Annotated[
    str,
    Query(
        pattern=forms.SORT.pattern,
        description="What they are sorted by; with `-`, the largest first. Jobs without the figure come last.",
    ),
]  # fmt: skip
Shape = Annotated[
    Literal["whole", "row"],
    Query(alias="view", description="`row`: what a table shows of a job, a tenth of its size."),
]  # fmt: skip


async def chosen_jobs(
    request: Request,
    status: Statuses = None,
    ids: Ids = None,
    model: Model = None,
    recipe: OfRecipe = None,
    sweep: OfSweep = None,
    text: Text = None,
    id_part: IdPart = None,
    created_after: CreatedAfter = None,
    created_before: CreatedBefore = None,
) -> JobFilter:
    """The filter of a list; `label.NAME=VALUE` chooses jobs with a label.

    Raises:
        UnknownFilterError: the query has something else.
    """
    for name in request.query_params:
        if name not in PARAMETERS and not name.startswith(PREFIX):
            raise UnknownFilterError(name, PARAMETERS)
    return JobFilter(
        status=[] if status is None else [JobStatus(name) for name in status.split(",")], ids=[] if ids is None else ids.split(","),
        model=model, recipe=recipe, sweep=sweep, text=text, id_part=id_part, created_after=created_after,
        created_before=created_before, labels=wanted_labels(request.query_params),
    )  # fmt: skip


Chosen = Annotated[JobFilter, Depends(chosen_jobs)]


def order_of(sort: str) -> Order:
    """An order from its parameter."""
    return Order(sort.removeprefix("-"), descending=sort.startswith("-"))
