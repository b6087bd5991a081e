"""Composition root of the API process: settings in, FastAPI application out."""

import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from app.artifacts.opening import open_store
from app.artifacts.store import ArtifactStore
from app.catalog import account, machines
from app.catalog import router as catalog
from app.db.retention import Retention
from app.db.session import Database, connect
from app.estimates import router as estimates
from app.estimates.service import Feasibility
from app.http import pages
from app.http.problems import Problem, documented_everywhere, install
from app.http.request_context import RequestFrame
from app.http.waiting import WaitingRoom
from app.jobs.admission import Admission
from app.jobs.list_router import router as job_lists_router
from app.jobs.parts_router import router as job_parts_router
from app.jobs.router import router as jobs_router
from app.jobs.service import JobService
from app.live import router as live
from app.ops import health
from app.ops.housekeeper import Housekeeper
from app.ops.metrics import Metrics
from app.queue import CeleryQueue, celery_app
from app.secrets import make_sealer
from app.sessions import router as sessions
from app.settings import ApiSettings
from app.sweeps.controller import SweepController
from app.sweeps.router import router as sweeps_router
from app.sweeps.service import SweepService
from app.tracing import configured
from app.webhooks.check import check_webhook
from app.webhooks.router import router as webhooks_router
from app.webhooks.sender import WebhookSender

THREADS = 16
"""That requests run in; fewer than database connections, and few enough not to fight for the interpreter."""


def create_app(settings: ApiSettings) -> FastAPI:
    """Make the application. The database must have been migrated; see `/readyz`."""
    database = connect(settings.database_url.get_secret_value())
    store = open_store(settings.store_address)
    housekeeper = _housekeeper(settings, database, store)
    controller = SweepController(database, housekeeper.wake, store, settings.max_attempts)
    housekeeper.between.append(controller.advance)
    sealer = make_sealer(settings.secret_keys)
    threads: list[Housekeeper | WebhookSender] = [housekeeper]
    if sealer is not None:
        networks, pause = settings.trusted_networks(), settings.housekeeping_seconds
        threads.append(WebhookSender(database, sealer, networks, pause))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = THREADS
        gc.collect()
        gc.freeze()  # modules and routes stay; looking through them stopped all requests for 86 ms, again and again
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.stop()
        database.dispose()

    app = FastAPI(
        title="spq", version=version("spq"), lifespan=lifespan, docs_url=None, redoc_url=None,
        responses=documented_everywhere(), telemetry=_telemetry(),
        generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    app.state.settings, app.state.database, app.state.sealer = settings, database, sealer
    app.state.controller = controller
    app.state.metrics = Metrics(database)
    _add_services(app, housekeeper.wake, store)
    install(app)
    for router in (
        job_lists_router, jobs_router, job_parts_router, sweeps_router, estimates.router, webhooks_router, catalog.router, account.router,
        machines.router, live.router, sessions.router, health.router, pages.router,
    ):  # fmt: skip
        app.include_router(router)
    app.add_middleware(RequestFrame, max_body_bytes=settings.max_body_bytes)
    _name_problem_schema(app)
    return app


def _add_services(app: FastAPI, wake: Callable[[], None], store: ArtifactStore) -> None:
    settings, database, sealer = app.state.settings, app.state.database, app.state.sealer
    feasibility = app.state.feasibility = Feasibility(settings)
    admission, waiting = Admission(settings, sealer), WaitingRoom()
    check = partial(check_webhook, sealer, settings.trusted_networks())
    app.state.jobs = JobService(
        database, wake, store, settings.max_attempts, settings.submissions_per_minute, admission,
        waiting, check, feasibility.require,
    )  # fmt: skip
    app.state.sweeps = SweepService(
        database, wake, settings.submissions_per_minute, admission, waiting, check, feasibility
    )


def _housekeeper(settings: ApiSettings, database: Database, store: ArtifactStore) -> Housekeeper:
    celery = celery_app(settings.broker_url.get_secret_value(), settings.visibility_timeout_seconds)
    return Housekeeper(
        database,
        CeleryQueue(celery),
        pause_seconds=settings.housekeeping_seconds,
        sweep_seconds=settings.sweep_seconds,
        notify_again_seconds=settings.notify_again_seconds,
        store=store,
        retention=Retention(
            artifact_days=settings.keep_artifacts_days,
            log_days=settings.keep_logs_days,
            event_days=settings.keep_events_days,
            job_days=settings.keep_jobs_days,
        ),
    )


def _telemetry() -> TelemetryConfig:
    """How FastAPI traces: requests only, and nothing at all where traces go nowhere."""
    traced = configured()
    return {
        "tracing": traced, "auto_configure": traced, "metrics": False, "logs": False,
        "operation_spans": False,
    }  # fmt: skip


def _name_problem_schema(app: FastAPI) -> None:
    """Put the error shape into the OpenAPI document, where the routes refer to it."""
    original = app.openapi

    def openapi() -> dict[str, object]:
        document = original()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        problem_schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem_schema.pop("$defs", {}))
        schemas["Problem"] = problem_schema
        return document

    app.openapi = openapi  # type: ignore[method-assign]
