"""The Celery application of a worker, and its one task: id in, everything else from the database."""

import multiprocessing
import os
import signal
import warnings
from contextlib import suppress

from celery import Celery
from celery.platforms import SecurityWarning
from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down
from sqlalchemy.exc import SQLAlchemyError

from app.db.attempts import announce
from app.db.session import now
from app.privacy import hide_process
from app.queue import RUN_JOB_TASK, celery_app
from app.telemetry import configure_logging
from app.tracing import export_spans
from worker.attempt.attempt import run_job
from worker.presence import Presence, facts
from worker.runtime import Runtime, make_runtime
from worker.sandbox.launcher import die_with_parent
from worker.settings import WorkerSettings
from worker.standalone.broker import TIED_TO
from worker.storage.scratch import remove_leftovers

_settings = WorkerSettings()
app: Celery = celery_app(
    _settings.broker_url.get_secret_value(), _settings.visibility_timeout_seconds
)
warnings.filterwarnings("ignore", category=SecurityWarning)
"""Of running as root: a message is an id, in JSON, and what opens models has no privileges."""
hide_process()  # and with it the pool's child
if TIED_TO in os.environ:  # a part of `spq serve`, which may be killed
    die_with_parent(signal.SIGTERM, int(os.environ[TIED_TO]))
_stopping = multiprocessing.Event()
"""Made before the pool forks: the parent hears of a shutdown, its child has the job."""
_runtimes: list[Runtime] = []
_presences: list[Presence] = []


@worker_process_init.connect  # type: ignore[untyped-decorator]
def start(**_: object) -> None:
    """Connect in the pool's child: a connection must not cross a fork."""
    configure_logging()
    known = facts(_settings)  # looked up before the first thread: it forks
    export_spans("spq-worker")
    runtime = make_runtime(_settings, _stopping)
    _runtimes[:] = [runtime]
    runtime.facts.update(known)
    presence = Presence(runtime.database, runtime.worker_id, runtime.facts, _settings.scratch_dir)
    presence.start()
    _presences[:] = [presence]
    with suppress(SQLAlchemyError):  # the next job tries again
        remove_leftovers(runtime.database, _settings.scratch_dir)


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def leave(**_: object) -> None:
    """The pool's child ends, without what `atexit` would do."""
    for presence in _presences:
        presence.stop()


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def stop(*_: object, **__: object) -> None:
    """Let the attempt end, and another worker go on with its job."""
    _stopping.set()


@app.task(name=RUN_JOB_TASK)  # type: ignore[untyped-decorator]
def run(job_id: str) -> None:
    """Run one job. Attempts are counted in its row, so nothing is retried here."""
    # A signal to the whole process group must not cost the attempt. Set here, as the pool's child sets
    # its own handlers last.
    before = signal.signal(signal.SIGTERM, stop)
    try:
        if _stopping.is_set():
            with _runtimes[0].database.write() as session:
                announce(session, job_id, now(session))  # for another worker
        else:
            run_job(job_id, _runtimes[0])
    finally:
        signal.signal(signal.SIGTERM, before)
