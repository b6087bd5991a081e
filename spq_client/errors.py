"""What can go wrong between a program and the service."""

from typing import Any


class SpqClientError(Exception):
    """Base class; catch this to catch everything that the client raises on purpose."""


class ServiceError(SpqClientError):
    """The service refused a request, or did not answer.

    Attributes:
        code: the service's own, stable from version to version (`invalid_recipe`, `job_not_found`, …).
        status: of HTTP; 0 where there was no answer.
        request_id: to quote when reporting a bug.
        errors: malformed parts of the request, each with a JSON `pointer`, a `code` and a `detail`.
    """

    def __init__(
        self, code: str, detail: str, status: int = 0, problem: dict[str, Any] | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.status = code, detail, status
        self.request_id: str | None = (problem or {}).get("request_id")
        self.errors: list[dict[str, str]] = (problem or {}).get("errors", [])


class AuthenticationError(ServiceError):
    """There is no valid API key, or it lacks a scope."""


class InvalidRequestError(ServiceError):
    """The request cannot be taken as it is: a recipe, a model, a setting."""


class NotFoundError(ServiceError):
    """There is no such thing, or not any more."""


class ConflictError(ServiceError):
    """It cannot be done as things stand now."""


class RateLimitedError(ServiceError):
    """Too many requests, or a quota is used up; it was tried again for as long as the client's patience lasts."""


class UnavailableError(ServiceError):
    """The service did not answer for as long as the client's patience lasts."""


class JobFailedError(SpqClientError):
    """A job that was waited for did not succeed. `job` is its document: `error`, and figures as far as there are any."""

    def __init__(self, job: dict[str, Any]) -> None:
        error = job.get("error") or {"code": job["status"], "message": "it was canceled"}
        super().__init__(f"{job['id']} {job['status']}: {error['code']}: {error['message']}")
        self.job, self.code = job, str(error["code"])


class WaitTimeoutError(SpqClientError, TimeoutError):
    """What was waited for has not ended; it goes on."""


class DamagedDownloadError(SpqClientError):
    """A file is not what the service has recorded of it."""


BY_STATUS: dict[int, type[ServiceError]] = {
    400: InvalidRequestError, 401: AuthenticationError, 403: AuthenticationError, 404: NotFoundError, 409: ConflictError,
    410: NotFoundError, 413: InvalidRequestError, 422: InvalidRequestError, 429: RateLimitedError,
}  # fmt: skip


def error_of(status: int, problem: dict[str, Any] | None) -> ServiceError:
    """The error of an answer.

    Args:
        problem: its document (RFC 9457); None where something else than the service answered.
    """
    kind = BY_STATUS.get(status, UnavailableError if status >= 500 else ServiceError)  # noqa: PLR2004
    if problem is None:
        return kind(
            "http_error", f"something answered {status}, and no document of the service", status
        )
    return kind(
        str(problem.get("code", "http_error")), str(problem.get("detail", "")), status, problem
    )
