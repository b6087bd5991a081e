"""Where errors meet HTTP: one table of statuses, one shape of answer (RFC 9457)."""

import json
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from app.db.quotas import WINDOW_SECONDS
from app.db.session import is_away
from app.domain.errors import (
    ArtifactExpiredError,
    ArtifactNotFoundError,
    AuthenticationError,
    DamagedArtifactError,
    DeliveryNotFoundError,
    DomainError,
    EstimatesBusyError,
    FencedError,
    IdempotencyKeyReusedError,
    JobActiveError,
    JobNotFoundError,
    JobNotMeasurableError,
    JobNotRetryableError,
    PermissionDeniedError,
    PublishInProgressError,
    QuotaExceededError,
    RateLimitedError,
    RequestInProgressError,
    SecretUnreadableError,
    StoreAwayError,
    TokensDisabledError,
    TooManyStreamsError,
    UnsafeWebhookError,
    WebhooksDisabledError,
)
from app.domain.naming_errors import (
    InvalidCursorError,
    ModelNotAllowedError,
    TooManyLabelsError,
    UnknownDatasetError,
    UnknownFilterError,
    UnknownTaskError,
)
from app.domain.session_errors import CrossSiteRequestError, LoginRefusedError
from app.domain.sweep_errors import (
    SweepActiveError,
    SweepEndedError,
    SweepNotFoundError,
    SweepNotRetryableError,
)
from app.http.forms import WORDS
from app.http.view import View
from app.telemetry import log
from spq_core.errors import (
    ArtifactError,
    RecipeError,
    SpqError,
    UnsafeModelError,
    UnsupportedModelError,
)
from spq_core.hub.errors import HubError, HubUnavailableError

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:spq:problem:"

STATUS: Mapping[type[Exception], HTTPStatus] = {
    ArtifactExpiredError: HTTPStatus.GONE,
    ArtifactNotFoundError: HTTPStatus.NOT_FOUND,
    AuthenticationError: HTTPStatus.UNAUTHORIZED,
    CrossSiteRequestError: HTTPStatus.FORBIDDEN,
    LoginRefusedError: HTTPStatus.UNAUTHORIZED,
    TooManyLabelsError: HTTPStatus.UNPROCESSABLE_ENTITY,
    TooManyStreamsError: HTTPStatus.TOO_MANY_REQUESTS,
    EstimatesBusyError: HTTPStatus.TOO_MANY_REQUESTS,
    DamagedArtifactError: HTTPStatus.INTERNAL_SERVER_ERROR,
    FencedError: HTTPStatus.CONFLICT,
    IdempotencyKeyReusedError: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidCursorError: HTTPStatus.BAD_REQUEST,
    JobActiveError: HTTPStatus.CONFLICT,
    JobNotFoundError: HTTPStatus.NOT_FOUND,
    JobNotMeasurableError: HTTPStatus.CONFLICT,
    JobNotRetryableError: HTTPStatus.CONFLICT,
    ModelNotAllowedError: HTTPStatus.UNPROCESSABLE_ENTITY,
    PermissionDeniedError: HTTPStatus.FORBIDDEN,
    PublishInProgressError: HTTPStatus.CONFLICT,
    QuotaExceededError: HTTPStatus.TOO_MANY_REQUESTS,
    RateLimitedError: HTTPStatus.TOO_MANY_REQUESTS,
    DeliveryNotFoundError: HTTPStatus.NOT_FOUND,
    RequestInProgressError: HTTPStatus.CONFLICT,
    SecretUnreadableError: HTTPStatus.INTERNAL_SERVER_ERROR,
    StoreAwayError: HTTPStatus.SERVICE_UNAVAILABLE,
    SweepActiveError: HTTPStatus.CONFLICT,
    SweepEndedError: HTTPStatus.CONFLICT,
    SweepNotFoundError: HTTPStatus.NOT_FOUND,
    SweepNotRetryableError: HTTPStatus.CONFLICT,
    UnsafeWebhookError: HTTPStatus.UNPROCESSABLE_ENTITY,
    TokensDisabledError: HTTPStatus.UNPROCESSABLE_ENTITY,
    WebhooksDisabledError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnknownDatasetError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnknownFilterError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnknownTaskError: HTTPStatus.UNPROCESSABLE_ENTITY,
    RecipeError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ArtifactError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnsafeModelError: HTTPStatus.UNPROCESSABLE_ENTITY,
    UnsupportedModelError: HTTPStatus.UNPROCESSABLE_ENTITY,
    HubError: HTTPStatus.UNPROCESSABLE_ENTITY,
    HubUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}


HEADERS = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": "30"},
    HTTPStatus.TOO_MANY_REQUESTS: {"Retry-After": "5"},
}


AGAIN_IN_SECONDS: Mapping[type[Exception], int] = {
    RequestInProgressError: 1,
    PublishInProgressError: 5,
}


class FieldProblem(View):
    """One malformed part of a request."""

    pointer: str
    """JSON Pointer into the request."""
    code: str
    detail: str


class Problem(View):
    """Every error answer of this service."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[FieldProblem] = Field(default_factory=list)


def documented(*errors: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """`responses=` entries for the errors a route can raise, one per status."""
    return {
        int(STATUS[error]): {
            "description": (error.__doc__ or "").strip(),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for error in errors
    }


def documented_everywhere() -> dict[int | str, dict[str, Any]]:
    """`responses=` entries for what any request can be answered."""
    meanings = {
        400: "The request is malformed.",
        401: "There is no valid API key.",
        403: "The API key lacks a scope.",
        411: "The body does not say how long it is.",
        413: "The body is too large.",
        422: "Some part of the request cannot be taken; `errors` points at it.",
        503: "The database or the Hub does not answer; try again.",
    }
    schema = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": meaning, "content": schema} for status, meaning in meanings.items()
    }


def request_id_of(request: Request) -> str:
    """The id of this request, made by the middleware."""
    return getattr(request.state, "request_id", "") or f"req_{secrets.token_hex(8)}"


def problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Make an error answer."""
    request_id = request_id_of(request)
    body = Problem(
        type=f"{TYPE_PREFIX}{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=f"/requests/{request_id}",
        code=code,
        request_id=request_id,
        errors=list(errors),
    )
    # ASCII escapes: a request's own text is quoted here, and may not be valid Unicode.
    text = json.dumps(body.model_dump())
    return Response(text, status, dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Give every error of the app the shape above."""
    app.add_exception_handler(DomainError, _on_known)
    app.add_exception_handler(SpqError, _on_known)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(SQLAlchemyError, _on_database)
    app.add_exception_handler(Exception, _on_bug)


async def _on_known(request: Request, error: Exception) -> Response:
    status = STATUS[type(error)]
    headers = dict(HEADERS.get(status, {}))
    if type(error) in AGAIN_IN_SECONDS:
        headers["Retry-After"] = str(AGAIN_IN_SECONDS[type(error)])
    code = getattr(error, "code", "invalid_request")
    if isinstance(error, QuotaExceededError):
        headers["Retry-After"] = "60"
    if isinstance(error, RateLimitedError):
        headers |= rate_headers(error.allowed, 0, error.reset_seconds)
        headers["Retry-After"] = str(error.reset_seconds)
    return problem(request, status, code, str(error), headers=headers)


def rate_headers(allowed: int, remaining: int, reset_seconds: int) -> dict[str, str]:
    """How often a key may submit, and where it stands (draft-ietf-httpapi-ratelimit-headers-10)."""
    return {
        "RateLimit-Policy": f'"create";q={allowed};w={WINDOW_SECONDS}',
        "RateLimit": f'"create";r={remaining};t={reset_seconds}',
    }


async def _on_invalid(request: Request, error: Exception) -> Response:
    details = error.errors() if isinstance(error, RequestValidationError) else []
    if any(detail["type"] == "json_invalid" for detail in details):
        return problem(request, 400, "malformed_json", "the body is not valid JSON")
    errors = [
        FieldProblem(
            pointer="".join(f"/{_escape(part)}" for part in detail["loc"][1:]),
            code=detail["type"],
            detail=_detail(detail),
        )
        for detail in details
    ]
    summary = "; ".join(f"{one.pointer or '/'}: {one.detail}" for one in errors[:5])
    return problem(request, 422, "invalid_request", summary, errors=errors)


async def _on_http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    names = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
    details = {
        404: f"there is nothing at {request.url.path[:200]}",
        405: f"{request.method} is not allowed at {request.url.path[:200]}",
    }
    detail = details.get(status, str(getattr(error, "detail", "")))
    return problem(request, status, names.get(status, "http_error"), detail, headers=headers)


async def _on_database(request: Request, error: Exception) -> Response:
    if not is_away(error):
        return await _on_bug(request, error)
    log.warning("database_unavailable", error=type(error).__name__)
    return problem(
        request, 503, "database_unavailable", "the database does not answer; try again",
        headers={"Retry-After": "5"},
    )  # fmt: skip


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("unhandled_error", path=request.url.path, error=repr(error), exc_info=error)
    return problem(
        request, 500, "internal", "this is a bug; quote the request id when reporting it"
    )


def _detail(detail: Mapping[str, Any]) -> str:
    if detail["type"] == "extra_forbidden":
        return "unknown field"
    given = detail.get("input")
    if "hub_token" in detail["loc"] or isinstance(given, dict | list):
        return str(detail["msg"])  # a token, or something that may hold one
    words = WORDS.get(detail.get("ctx", {}).get("pattern"), detail["msg"])
    return f"{words}, got {str(given)[:80]}"


def _escape(part: object) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")
