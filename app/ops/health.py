"""Liveness, readiness, metrics."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError

from app.db.migrate import at_head
from app.http.auth import database_of
from app.ops.metrics import Metrics

router = APIRouter(tags=["health"])


@router.get("/livez")
def livez() -> dict[str, str]:
    """The process answers; nothing else is checked."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "The database is away or not migrated."}})
def readyz(request: Request) -> JSONResponse:
    """Whether jobs can be accepted. The broker is not needed for that: messages wait."""
    try:
        ready = at_head(database_of(request))
        detail = (
            "ok" if ready else "the database schema is not at the newest migration: run spq migrate"
        )
    except SQLAlchemyError as error:
        ready, detail = False, f"the database does not answer ({type(error).__name__})"
    body: dict[str, Any] = {"status": "ok" if ready else "unavailable", "database": detail}
    return JSONResponse(body, 200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request) -> Response:
    """Prometheus exposition; what concerns jobs comes from the database, at most every ten seconds."""
    found: Metrics = request.app.state.metrics
    return Response(found.exposition(), media_type=CONTENT_TYPE_LATEST)
