"""Counts for Prometheus that outlive a process: workers have no port of their own, and all API processes show the same."""

import json
import math
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.db.models import StoredTally
from app.db.session import Database, is_sqlite
from app.telemetry import log

LABEL = re.compile(r"[A-Za-z0-9_. -]{0,40}")
SUM = "sum"


@dataclass(frozen=True, slots=True)
class Tally:
    """An amount to add to the number that a metric has for these labels."""

    metric: str
    labels: tuple[str, ...]
    amount: float = 1.0


@dataclass(frozen=True, slots=True)
class StoredCounter:
    """A number that only grows."""

    name: str
    help: str
    labels: tuple[str, ...]

    def more(self, *labels: str, amount: float = 1.0) -> tuple[Tally, ...]:
        """What to add for one more. A label that is no plain word counts as `other`."""
        return (Tally(self.name, tuple(map(_plain, labels)), amount),)


@dataclass(frozen=True, slots=True)
class StoredHistogram:
    """How often values fell between bounds."""

    name: str
    help: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...]
    """Ascending; above the last one counts as infinite."""

    def observed(self, value: float, *labels: str) -> tuple[Tally, ...]:
        """What to add for one value."""
        plain = tuple(map(_plain, labels))
        bucket = self.buckets()[bisect_left(self.bounds, value)]
        return Tally(self.name, (*plain, bucket)), Tally(self.name, (*plain, SUM), value)

    def buckets(self) -> tuple[str, ...]:
        """The upper bounds as Prometheus writes them."""
        return (*(str(float(bound)) for bound in self.bounds), "+Inf")


JOBS_FINISHED = StoredCounter(
    "spq_jobs_finished", "Jobs that ended; error_code is empty unless they failed.", ("status", "error_code")
)  # fmt: skip
ATTEMPTS = StoredCounter("spq_job_attempts", "Attempts that ended, by how.", ("reason",))
LEASES_LOST = StoredCounter("spq_lease_lost", "Jobs taken from attempts whose lease had ended.", ())
DUPLICATES = StoredCounter(
    "spq_duplicate_deliveries", "Messages for jobs that were not waiting any more.", ()
)
FENCED = StoredCounter(
    "spq_fenced_writes", "Writes refused because the attempt had lost its job.", ()
)
HUB_REQUESTS = StoredCounter(
    "spq_hub_requests", "Answers of the Hub to fetchers and publishers.", ("op", "code")
)
STAGE_SECONDS = StoredHistogram(
    "spq_job_stage_duration_seconds", "How long stages of runs took.", ("stage",),
    (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600),
)  # fmt: skip
ESTIMATE_ERROR = StoredHistogram(
    "spq_estimate_error_ratio", "What was measured over what the estimate expected.", ("kind",),
    (0.25, 0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 2.0, 4.0),
)  # fmt: skip
STORED: tuple[StoredCounter | StoredHistogram, ...] = (
    JOBS_FINISHED, ATTEMPTS, LEASES_LOST, DUPLICATES, FENCED, HUB_REQUESTS, STAGE_SECONDS, ESTIMATE_ERROR,
)  # fmt: skip


def count(database: Database, tallies: Iterable[Tally]) -> None:
    """Add up. In a transaction of its own, in one order, so that nobody waits for somebody's row who waits for ours.

    A number that cannot be kept is no reason to stop: it is lost, and the log says so.
    """
    sums: defaultdict[tuple[str, str], float] = defaultdict(float)
    for tally in (one for one in tallies if 0 <= one.amount < math.inf):  # some come from a run
        sums[tally.metric, json.dumps(tally.labels)] += tally.amount
    if not sums:
        return
    rows = [
        {"metric": metric, "labels": labels, "value": amount}
        for (metric, labels), amount in sorted(sums.items())
    ]
    try:
        with database.single() as connection:
            dialect = sqlite if is_sqlite(connection) else postgresql
            insert = dialect.insert(StoredTally).values(rows)
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["metric", "labels"],
                    set_={"value": StoredTally.value + insert.excluded.value},
                )
            )
    except SQLAlchemyError as error:
        log.warning("not_counted", error=type(error).__name__)


def stored_tallies(session: Session) -> list[Tally]:
    """All numbers there are."""
    rows = session.execute(select(StoredTally.metric, StoredTally.labels, StoredTally.value))
    return [Tally(metric, tuple(json.loads(labels)), value) for metric, labels, value in rows]


def _plain(label: str) -> str:
    """Some labels come from a run, which nobody vouches for."""
    return label if LABEL.fullmatch(label) else "other"
