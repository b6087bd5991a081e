"""Lists of jobs: which, in what order, and how many of each status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, String, and_, cast, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db.models import Job
from app.db.session import is_sqlite
from app.domain.job_status import JobStatus

SortKey = Literal["created_at", "finished_at", "model", "bytes_ratio", "kl", "perplexity_ratio"]
COLUMNS: Mapping[str, InstrumentedAttribute[Any]] = {
    "created_at": Job.created_at,
    "finished_at": Job.finished_at,
    "model": Job.model_name,
    "bytes_ratio": Job.bytes_ratio,
    "kl": Job.kl,
    "perplexity_ratio": Job.perplexity_ratio,
}


class Order(NamedTuple):
    """Jobs that lack the figure come last, whichever way it goes; equal ones go by id."""

    key: str
    descending: bool


NEWEST_FIRST = Order("created_at", descending=True)


class Position(NamedTuple):
    """Of a job in an order."""

    value: Any
    """None behind the last that has one."""
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs a list shows; None and nothing show all."""

    status: Sequence[JobStatus] = ()
    ids: Sequence[str] = ()
    model: str | None = None
    recipe: str | None = None
    sweep: str | None = None
    text: str | None = None
    """Part of the id, the model, the recipe's name or a label."""
    id_part: str | None = None
    """Part of the id."""
    created_after: datetime | None = None
    created_before: datetime | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def job_page(
    session: Session,
    tenant: str,
    chosen: JobFilter,
    *,
    limit: int,
    order: Order = NEWEST_FIRST,
    after: Position | None = None,
) -> list[Job]:
    """Up to `limit` jobs that come after a position in an order."""
    query = select(Job).where(*_conditions(session, tenant, chosen))
    column = COLUMNS[order.key]
    if after is not None:
        query = query.where(_behind(column, order, after))
    sorted_by = column.desc() if order.descending else column.asc()
    by_id = Job.id.desc() if order.descending else Job.id.asc()
    nulls_last = () if order.key in {"created_at", "model"} else (column.is_(None),)
    return list(session.scalars(query.order_by(*nulls_last, sorted_by, by_id).limit(limit)))


def job_counts(session: Session, tenant: str, chosen: JobFilter) -> dict[str, int]:
    """By status, how many there are."""
    query = (
        select(Job.status, func.count())
        .where(*_conditions(session, tenant, chosen))
        .group_by(Job.status)
    )
    return {status: count for status, count in session.execute(query).all()}  # noqa: C416 - rows are no pairs to mypy


def position_of(job: Job, order: Order) -> Position:
    """Where a job is in an order."""
    return Position(getattr(job, COLUMNS[order.key].key), job.id)


def _behind(
    column: InstrumentedAttribute[Any], order: Order, after: Position
) -> ColumnElement[bool]:
    further_id = Job.id < after.id if order.descending else Job.id > after.id
    if after.value is None:
        return and_(column.is_(None), further_id)
    further = column < after.value if order.descending else column > after.value
    return or_(further, and_(column == after.value, further_id), column.is_(None))


def _conditions(session: Session, tenant: str, chosen: JobFilter) -> list[ColumnElement[bool]]:
    recipe = Job.recipe["metadata"]["name"].as_string()
    conditions: list[tuple[object, ColumnElement[bool]]] = [
        (chosen.status, Job.status.in_(chosen.status)),
        (chosen.ids, Job.id.in_(chosen.ids)),
        (chosen.model, Job.model_name == chosen.model),
        (chosen.recipe, recipe == chosen.recipe),
        (chosen.sweep, Job.sweep_id == chosen.sweep),
    ]
    found = [condition for wanted, condition in conditions if wanted]
    if chosen.created_after is not None:
        found.append(Job.created_at > chosen.created_after)
    if chosen.created_before is not None:
        found.append(Job.created_at < chosen.created_before)
    found += [
        Job.request["labels"][name].as_string() == value for name, value in chosen.labels.items()
    ]
    if chosen.text:
        columns = (Job.id, Job.model_name, recipe)
        found.append(
            or_(
                *(one.icontains(chosen.text, autoescape=True) for one in columns),
                _has_label(chosen.text, sqlite=is_sqlite(session)),
            )
        )
    if chosen.id_part:
        found.append(Job.id.contains(chosen.id_part, autoescape=True))
    return [Job.tenant == tenant, *found]


def _has_label(text: str, *, sqlite: bool) -> ColumnElement[bool]:
    """Whether a name or a value of the job's labels has a text in it."""
    each = func.json_each if sqlite else func.jsonb_each_text
    labels = each(Job.request["labels"]).table_valued("key", "value", name="label")
    by_text = or_(
        labels.c.key.icontains(text, autoescape=True),
        cast(labels.c.value, String).icontains(text, autoescape=True),
    )
    return select(1).select_from(labels).where(by_text).exists()
