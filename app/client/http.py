"""A client for the service's own API."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from app.domain.job_status import TERMINAL
from spq_core.errors import CodedError

TIMEOUT_SECONDS = 30.0
PATIENCE_SECONDS = 300.0
WAIT_SECONDS = 2.0
AWAY = frozenset({502, 503, 504})
"""Of a proxy in front of the service."""
UNAUTHENTICATED = frozenset({"unauthenticated", "permission_denied", "login_refused"})
OF_THIS_MACHINE = frozenset({"output_exists", "artifact_damaged"})
PASSING = frozenset({"service_unreachable", "database_unavailable", "rate_limited"})
"""What a restart or a deployment looks like from outside; the job does not notice it."""


class ApiError(CodedError):
    """The service refused a request, or does not answer."""

    @property
    def exit_code(self) -> int:
        """Of a command that ends with it: 2 a wrong address, 4 no valid key, 5 refused, 6 no answer."""
        if self.code == "invalid_url":
            return 2
        if self.code in UNAUTHENTICATED:
            return 4
        if self.code in OF_THIS_MACHINE:
            return 1
        return 6 if self.code == "service_unreachable" else 5


@dataclass(frozen=True, slots=True)
class Client:
    """Requests with one API key."""

    url: str
    key: str
    key_source: str = "the API key"
    """Where the key came from, for whoever must mend it."""

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        **query: Any,
    ) -> dict[str, Any]:
        """Send one request and return the answer's document.

        Raises:
            ApiError: with the service's own code and words.
        """
        answer = self._send(method, path, body, query, headers or {})
        return dict(answer.json()) if answer.content else {}

    def patient(
        self, method: str, path: str, *, within: float = math.inf, **query: Any
    ) -> dict[str, Any]:
        """As `call`, through a restart or a deployment of the service.

        Raises:
            ApiError: the service refused, or was away for `PATIENCE_SECONDS`, or for `within` seconds.
        """
        begun = time.monotonic()
        while True:
            try:
                return self.call(method, path, **query)
            except ApiError as error:
                if error.code not in PASSING or time.monotonic() - begun > min(
                    within, PATIENCE_SECONDS
                ):
                    raise
            time.sleep(2.0)

    def text(self, path: str) -> str:
        """An answer that is no JSON.

        Raises:
            ApiError: with the service's own code and words.
        """
        return self._send("GET", path, None, {}, {}).text

    def download(self, path: str, target: Path, sha256: str) -> None:
        """Write one file of an artifact.

        Raises:
            ApiError: the service refused, or the bytes are not those it has recorded.
        """
        digest = hashlib.sha256()
        key = {"Authorization": f"Bearer {self.key}"}
        try:
            with (
                httpx2.stream(
                    "GET", self._at(path), headers=key, timeout=TIMEOUT_SECONDS
                ) as answer,
                target.open("xb") as file,
            ):
                if answer.is_error:
                    answer.read()
                    raise self._refused(answer)
                for chunk in answer.iter_bytes():
                    digest.update(chunk)
                    file.write(chunk)
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None
        if digest.hexdigest() != sha256:
            raise ApiError("artifact_damaged", f"{target.name} is not what the service recorded")

    def watch(self, job_id: str) -> Iterator[dict[str, Any]]:
        """Yield the job each time it changes, and a last time when it has ended.

        Raises:
            ApiError: the service refused, or was away for `PATIENCE_SECONDS`.
        """
        etag, heard = "", time.monotonic()
        is_queued = False  # then its place changes without a version
        while True:
            headers = {"If-None-Match": etag} if etag and not is_queued else {}
            try:
                answer = self._send("GET", f"/jobs/{job_id}", None, {}, headers)
            except ApiError as error:
                if error.code not in PASSING or time.monotonic() - heard > PATIENCE_SECONDS:
                    raise
                time.sleep(2.0)
                continue
            heard = time.monotonic()
            if answer.status_code == httpx2.codes.OK:
                etag = answer.headers.get("ETag", "")
                job = answer.json()
                is_queued = job["status"] == "queued"
                yield job
                if job["status"] in TERMINAL:
                    return
            time.sleep(min(2.0, float(answer.headers.get("Retry-After", 2))))

    def rows(self, **query: Any) -> Iterator[dict[str, Any]]:
        """All jobs that a filter finds, in rows."""
        after: str | None = None
        while True:
            page = self.patient("GET", "/jobs", **query, view="row", limit=100, after=after)
            yield from page["data"]
            after = page["next_cursor"]
            if after is None:
                return

    def wait(self, ids: Sequence[str], seconds: float | None = None) -> list[dict[str, Any]]:
        """Jobs once they have ended, in the order in which they did; those that have not after so many seconds are left out.

        Raises:
            ApiError: the service refused, or was away for `PATIENCE_SECONDS`.
        """
        left = list(dict.fromkeys(ids))
        ended: list[dict[str, Any]] = []
        begun, end = time.monotonic(), math.inf if seconds is None else seconds
        while left:
            for job_id in list(left):
                spent = time.monotonic() - begun
                try:
                    job = self.patient("GET", f"/jobs/{job_id}", within=end - spent)
                except ApiError as error:
                    if error.code in PASSING and time.monotonic() - begun > end:
                        return ended
                    raise
                if job["status"] in TERMINAL:
                    left.remove(job_id)
                    ended.append(job)
            if not left or time.monotonic() - begun > end:
                break
            time.sleep(WAIT_SECONDS)
        return ended

    def log_lines(
        self, job_id: str, *, tail: int | None = None, follows: bool = False
    ) -> Iterator[dict[str, Any]]:
        """A job's log, and with `follows` what is added until the job has ended.

        Raises:
            ApiError: as `wait`.
        """
        after, is_over = 0, not follows
        while True:
            if follows and not is_over:
                is_over = self.patient("GET", f"/jobs/{job_id}")["status"] in TERMINAL
            page = self.patient("GET", f"/jobs/{job_id}/logs", after=after, limit=1000, tail=tail)
            tail = None
            yield from page["data"]
            after = page["next_after"]
            if page["has_more"]:
                continue
            if is_over:
                return
            time.sleep(WAIT_SECONDS)

    def _send(
        self, method: str, path: str, body: Any, query: dict[str, Any], headers: dict[str, str]
    ) -> httpx2.Response:
        wanted = {name: value for name, value in query.items() if value is not None}
        try:
            answer = httpx2.request(
                method,
                self._at(path),
                json=body,
                params=wanted,
                headers={"Authorization": f"Bearer {self.key}", **headers},
                timeout=TIMEOUT_SECONDS,
            )
        except httpx2.TransportError as error:
            raise self._unreachable(error) from None
        if answer.is_error:
            raise self._refused(answer)
        return answer

    def _refused(self, answer: httpx2.Response) -> ApiError:
        if answer.status_code == httpx2.codes.UNAUTHORIZED:
            return ApiError(
                "unauthenticated",
                f"{self.url} does not know the key of {self.key_source}; spq login keeps another",
            )
        return _refused(answer)

    def _at(self, path: str) -> str:
        return f"{self.url.rstrip('/')}{path}"

    def _unreachable(self, error: httpx2.TransportError) -> ApiError:
        return ApiError(
            "service_unreachable",
            f"{self.url} does not answer ({type(error).__name__}); is spq serve running?",
        )


def _refused(answer: httpx2.Response) -> ApiError:
    problem = _problem(answer)
    return ApiError(problem["code"], problem["detail"])


def _problem(answer: httpx2.Response) -> dict[str, str]:
    try:
        document = answer.json()
        return {"code": str(document["code"]), "detail": str(document["detail"])}
    except (ValueError, KeyError, TypeError):
        code = "service_unreachable" if answer.status_code in AWAY else "http_error"
        return {"code": code, "detail": f"the service answered {answer.status_code}"}
