"""Logs as events with fields, and the Prometheus metrics."""

import logging
import os
import platform
import sys
from importlib.metadata import version

import structlog
from prometheus_client import Counter, Gauge, Info

log: structlog.stdlib.BoundLogger = structlog.get_logger("spq")

JOBS_CREATED = Counter("spq_jobs_created_total", "Jobs accepted.", ["recipe"])
JOBS = Gauge("spq_jobs", "Jobs by status, read from the database at each scrape.", ["status"])
QUEUE_AGE = Gauge("spq_queue_oldest_age_seconds", "Age of the oldest job that waits for a worker.")
FAILED_LATELY = Gauge(
    "spq_jobs_failed_last_hour", "Jobs that failed in the last hour.", ["error_code"]
)
OUTBOX_LAG = Gauge("spq_outbox_lag_seconds", "Age of the oldest outbox message not sent yet.")
WEBHOOKS_PENDING = Gauge("spq_webhooks_pending", "Webhook messages not delivered yet.")
OUTBOX_PENDING = Gauge("spq_outbox_pending", "Outbox messages not sent yet.")
OUTBOX_FAILURES = Counter("spq_outbox_failures_total", "Outbox messages the broker did not take.")
WEBHOOKS = Counter("spq_webhook_deliveries_total", "Webhook messages sent.", ["result"])
SCRATCH_FREE = Gauge(
    "spq_scratch_free_bytes", "Room in the scratch folders of workers that are there.", ["worker"]
)
GPU_PEAK = Gauge(
    "spq_gpu_memory_peak_bytes", "Most GPU memory one of a worker's runs has taken.", ["worker"]
)
BUILD = Info("spq_build", "What runs here.")
BUILD.info({"version": version("spq"), "python": platform.python_version()})


def configure_logging(level: str = "INFO") -> None:
    """Write to stderr: JSON lines, or on a terminal lines for people; called once where a process starts."""
    for_people = sys.stderr.isatty()
    plain = "NO_COLOR" in os.environ
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            *(
                (
                    structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
                    structlog.dev.ConsoleRenderer(
                        colors=not plain, exception_formatter=structlog.dev.plain_traceback
                    ),
                )
                if for_people
                else (
                    structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
                    structlog.processors.format_exc_info,
                    structlog.processors.JSONRenderer(),
                )
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
