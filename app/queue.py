"""What a worker is notified by: a Celery message that carries a job id and nothing else."""

from dataclasses import dataclass
from typing import Protocol

from celery import Celery

RUN_JOB_TASK = "spq.run_job"
JOB_QUEUE = "spq.jobs"


class JobQueue(Protocol):
    """Announces jobs to workers."""

    def notify(self, job_id: str) -> None:
        """Announce one job; raises when the broker does not take it."""
        ...


@dataclass(frozen=True, slots=True)
class CeleryQueue:
    """Notifies through a Celery broker."""

    app: Celery

    def notify(self, job_id: str) -> None:
        """Send the message, without waiting long and without retrying here: the outbox does."""
        self.app.send_task(RUN_JOB_TASK, args=[job_id], queue=JOB_QUEUE, retry=False)


def celery_app(broker_url: str, visibility_timeout_seconds: int) -> Celery:
    """A Celery application with the settings that neither lose nor double messages.

    Measured reasons: kombu redelivers what is unacknowledged for the visibility timeout, and time
    in a worker's prefetch buffer counts, so prefetching is off and messages are acknowledged
    early; a lost one is sent again by the sweeper. Sockets have timeouts, as a frozen broker would
    otherwise hold a publisher without end. There is no result backend.
    """
    app = Celery("spq", broker=broker_url)
    app.conf.update(
        broker_transport_options={
            "visibility_timeout": visibility_timeout_seconds,
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "max_retries": 0,
        },
        visibility_timeout=visibility_timeout_seconds,
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=False,
        task_serializer="json",
        accept_content=["json"],
        task_create_missing_queues=True,
        task_default_queue=JOB_QUEUE,
        worker_prefetch_multiplier=1,
        worker_proc_alive_timeout=60,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
    )
    return app
