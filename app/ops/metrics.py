"""What Prometheus reads: this process's own numbers, and those kept in the database."""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.counters import STORED, SUM, StoredCounter, StoredHistogram, Tally, stored_tallies
from app.db.models import Job, OutboxMessage, WebhookDelivery
from app.db.session import Database, now
from app.db.workers import present_workers
from app.domain.job_status import JobStatus
from app.telemetry import (
    FAILED_LATELY,
    GPU_PEAK,
    JOBS,
    OUTBOX_LAG,
    OUTBOX_PENDING,
    QUEUE_AGE,
    SCRATCH_FREE,
    WEBHOOKS_PENDING,
)

KEPT_SECONDS = 10.0


@dataclass(slots=True)
class Metrics:
    """All metrics as text. Counting a large table takes a while, so scrapes share an answer."""

    database: Database
    _stored: "StoredMetrics" = field(init=False)
    _registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _read_at: float = -math.inf

    def __post_init__(self) -> None:
        self._stored = StoredMetrics()
        self._registry.register(self._stored)

    def exposition(self) -> bytes:
        """Everything, in the text format of Prometheus."""
        self._refresh()
        return generate_latest() + generate_latest(self._registry)

    def _refresh(self) -> None:
        """Read anew what is older than `KEPT_SECONDS`."""
        with self._lock:
            if time.monotonic() - self._read_at < KEPT_SECONDS:
                return
            with self.database.read() as session:
                self._read(session)
            self._read_at = time.monotonic()

    def _read(self, session: Session) -> None:
        moment = now(session)
        counts = dict(session.execute(select(Job.status, func.count()).group_by(Job.status)).all())
        for status in JobStatus:
            JOBS.labels(status.value).set(counts.get(status.value, 0))
        oldest = session.scalar(
            select(func.min(Job.created_at)).where(Job.status == JobStatus.QUEUED)
        )
        QUEUE_AGE.set((moment - oldest).total_seconds() if oldest else 0)
        pending, first = session.execute(
            select(func.count(), func.min(OutboxMessage.created_at)).select_from(OutboxMessage)
        ).one()
        OUTBOX_PENDING.set(pending)
        OUTBOX_LAG.set((moment - first).total_seconds() if pending else 0)
        waiting = select(func.count()).where(WebhookDelivery.next_try_at.is_not(None))
        WEBHOOKS_PENDING.set(session.scalar(waiting) or 0)
        FAILED_LATELY.clear()
        for (error,) in session.execute(
            select(Job.error).where(
                Job.status == JobStatus.FAILED, Job.finished_at > moment - timedelta(hours=1)
            )
        ):
            FAILED_LATELY.labels(error["code"]).inc()
        for gauge in (SCRATCH_FREE, GPU_PEAK):
            gauge.clear()
        for worker in present_workers(session):
            SCRATCH_FREE.labels(worker.id).set(worker.facts.get("scratch_free_bytes", 0))
            GPU_PEAK.labels(worker.id).set(worker.facts.get("gpu_memory_peak_bytes", 0))
        self._stored.tallies = stored_tallies(session)


class StoredMetrics(Collector):
    """Counters and histograms whose numbers are in the database."""

    def __init__(self) -> None:
        self.tallies: list[Tally] = []

    def collect(self) -> Iterator[Metric]:
        """Every metric, with those of its labels that were ever counted."""
        for metric in STORED:
            own = {one.labels: one.amount for one in self.tallies if one.metric == metric.name}
            match metric:
                case StoredCounter():
                    yield _counter(metric, own)
                case StoredHistogram():
                    yield _histogram(metric, own)


def _counter(metric: StoredCounter, values: dict[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _histogram(metric: StoredHistogram, values: dict[tuple[str, ...], float]) -> Metric:
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels in sorted({key[:-1] for key in values}):
        cumulated, buckets = 0.0, []
        for bound in metric.buckets():
            cumulated += values.get((*labels, bound), 0.0)
            buckets.append((bound, cumulated))
        family.add_metric(labels, buckets, sum_value=values.get((*labels, SUM), 0.0))
    return family
