"""The Celery application of a worker, and its one task: id in, everything else from the database."""

from contextlib import suppress

from celery import Celery
from celery.signals import worker_process_init
from sqlalchemy.exc import SQLAlchemyError

from app.queue import RUN_JOB_TASK, celery_app
from app.telemetry import configure_logging
from worker.compression import run_job
from worker.leftovers import remove_leftovers
from worker.runtime import Runtime, make_runtime
from worker.settings import WorkerSettings

_settings = WorkerSettings()
app: Celery = celery_app(
    _settings.broker_url.get_secret_value(), _settings.visibility_timeout_seconds
)
_runtimes: list[Runtime] = []


@worker_process_init.connect  # type: ignore[untyped-decorator]
def start(**_: object) -> None:
    """Connect in the pool's child: a connection must not cross a fork."""
    configure_logging()
    runtime = make_runtime(_settings)
    _runtimes[:] = [runtime]
    with suppress(SQLAlchemyError):  # the next job tries again
        remove_leftovers(runtime.database, _settings.scratch_dir, _settings.artifact_dir)


@app.task(name=RUN_JOB_TASK)  # type: ignore[untyped-decorator]
def run(job_id: str) -> None:
    """Run one job. Attempts are counted in its row, so nothing is retried here."""
    run_job(job_id, _runtimes[0])
