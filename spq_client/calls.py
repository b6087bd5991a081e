"""Every request as a conversation: what to send, when to try again, what the answer means. Neither sync nor async.

A call is a generator. It yields `Send` and gets the answer (or what kept it from coming), or yields `Pause`; it returns the
result. `client.Client` and `aio.AsyncClient` drive the same calls.
"""

import math
import random
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from spq_client.errors import JobFailedError, UnavailableError, WaitTimeoutError, error_of

Document = dict[str, Any]
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
PASSING = frozenset({429, 502, 503, 504})
"""Answers after which the same request may do better: too many requests, a restart, a proxy without its service."""
JOB_ENDED = frozenset({"succeeded", "failed", "canceled"})
SWEEP_ENDED = frozenset({"finished", "failed", "canceled"})
NOT_MODIFIED = 304
LONGEST_WAIT = 20.0


@dataclass(frozen=True, slots=True)
class Send:
    """A request."""

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pause:
    """Seconds to wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    """0: nothing did, and `text` says why."""
    headers: Mapping[str, str]
    document: Any = None
    text: str = ""


Result = TypeVar("Result")
Conversation: TypeAlias = Generator[Send | Pause, Answer | None, Result]
Call: TypeAlias = Generator[Send | Pause, Answer | None, Document]


def answered(request: Send, patience: float) -> Conversation[Answer]:
    """Send a request until there is an answer that will not get better by itself.

    Raises:
        ServiceError: it is a refusal; or there was none for so many seconds.
    """
    began = time.monotonic()
    attempt = 0
    while True:
        answer = yield request
        assert answer is not None
        passes = answer.status == 0 or answer.status in PASSING
        if not passes:
            if answer.status >= 400:  # noqa: PLR2004
                if request.method == "DELETE" and answer.status == 404 and attempt:  # noqa: PLR2004
                    return answer  # an attempt before, whose answer was lost, did it
                raise error_of(answer.status, _problem(answer))
            return answer
        pause = _pause(attempt, answer.headers.get("retry-after"))
        if time.monotonic() - began + pause > patience:
            if answer.status == 0:
                raise UnavailableError("service_unreachable", answer.text)
            raise error_of(answer.status, _problem(answer))
        yield Pause(pause)
        attempt += 1


def _pause(attempt: int, retry_after: str | None) -> float:
    """Longer each time, never all clients at once, and never shorter than the service asks for."""
    grown: float = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * (0.75 + random.random() / 2)  # noqa: S311
    try:
        return max(grown, float(retry_after or 0))
    except ValueError:
        return grown


def _problem(answer: Answer) -> Document | None:
    return (
        answer.document if isinstance(answer.document, dict) and "code" in answer.document else None
    )


class Patience:
    """How long something is tried that makes no progress: a stream or a download that breaks off."""

    def __init__(self, seconds: float) -> None:
        """Begin."""
        self._seconds, self._attempt, self._since = seconds, 0, time.monotonic()

    def progress(self) -> None:
        """Something came."""
        self._attempt, self._since = 0, time.monotonic()

    def pause(self, answer: Answer) -> float:
        """Seconds until it is tried again.

        Raises:
            ServiceError: patience is over.
        """
        pause = _pause(self._attempt, answer.headers.get("retry-after"))
        self._attempt += 1
        if time.monotonic() - self._since + pause > self._seconds:
            if answer.status == 0:
                raise UnavailableError("service_unreachable", answer.text)
            raise error_of(answer.status, _problem(answer))
        return pause


def require_answer(answer: Answer) -> bool:
    """Whether an answer is the beginning of what was asked for; False if the same request may do better later.

    Raises:
        ServiceError: it is a refusal.
    """
    if answer.status in PASSING:
        return False
    if answer.status >= 400:  # noqa: PLR2004
        raise error_of(answer.status, _problem(answer))
    return True


@dataclass(frozen=True, slots=True)
class Calls:
    """What can be asked of the service. Names and bodies are those of its API (`/openapi.json`)."""

    patience: float
    timeout: float = 30.0
    """Seconds for one answer."""

    def get(self, path: str, **query: Any) -> Call:
        """The document at a path."""
        answer = yield from answered(Send("GET", path, _given(query)), self.patience)
        return dict(answer.document or {})

    def change(self, method: str, path: str, body: Any = None, key: str | None = None) -> Call:
        """Change something; a request that is sent again is done once."""
        headers = {"Idempotency-Key": key} if key else {}
        answer = yield from answered(Send(method, path, body=body, headers=headers), self.patience)
        return dict(answer.document or {})

    def submit(self, body: Document, key: str | None) -> Call:
        """A new job."""
        return (yield from self.change("POST", "/jobs", body, key or str(uuid.uuid4())))

    def again(self, job_id: str, action: str, body: Document | None, key: str | None) -> Call:
        """A new job made of an old one: `retry` or `measure`."""
        path = f"/jobs/{job_id}/{action}"
        return (yield from self.change("POST", path, body, key or str(uuid.uuid4())))

    def submit_sweep(self, body: Document, key: str | None) -> Call:
        """A new sweep."""
        return (yield from self.change("POST", "/sweeps", body, key or str(uuid.uuid4())))

    def job_rows(
        self, filters: Mapping[str, Any], after: str | None
    ) -> Conversation[tuple[list[Document], str | None]]:
        """A page of jobs, and the cursor of the next."""
        query = {"limit": 100, "view": "row", **_queried(filters), "after": after}
        document = yield from self.get("/jobs", **query)
        return document["data"], document.get("next_cursor") if document["has_more"] else None

    def log_lines(self, job_id: str, after: int) -> Conversation[tuple[list[Document], int | None]]:
        """A page of a log, and where the next begins."""
        page = yield from self.get(f"/jobs/{job_id}/logs", after=after, limit=1000)
        return page["data"], page["next_after"] if page["has_more"] else None

    def wait_for_job(self, job_id: str, timeout: float | None, *, check: bool) -> Call:
        """A job once it has ended.

        Raises:
            JobFailedError: it did not succeed, with `check`.
            WaitTimeoutError: it has not ended in so many seconds.
        """
        job = yield from self._wait(f"/jobs/{job_id}", JOB_ENDED, timeout)
        if check and job["status"] != "succeeded":
            raise JobFailedError(job)
        return job

    def wait_for_sweep(self, sweep_id: str, timeout: float | None) -> Call:
        """A sweep once it has ended.

        Raises:
            WaitTimeoutError: it has not in so many seconds.
        """
        return (yield from self._wait(f"/sweeps/{sweep_id}", SWEEP_ENDED, timeout))

    def _wait(self, path: str, ended: frozenset[str], timeout: float | None) -> Call:
        began = time.monotonic()
        etag = ""
        while True:
            left = math.inf if timeout is None else max(0.0, timeout - (time.monotonic() - began))
            wait = int(min(LONGEST_WAIT, self.timeout / 2, left))
            headers = {"If-None-Match": etag, "Prefer": f"wait={wait}"} if etag else {}
            try:
                answer = yield from answered(
                    Send("GET", path, headers=headers), min(self.patience, left)
                )
            except UnavailableError:
                if left < self.patience:
                    raise WaitTimeoutError(_not_ended(path, timeout)) from None
                raise
            if answer.status != NOT_MODIFIED:
                etag = answer.headers.get("etag", "")
                if answer.document["status"] in ended:
                    return dict(answer.document or {})
            pause = min(5.0, float(answer.headers.get("retry-after", 2)))
            if timeout is not None and time.monotonic() - began + pause > timeout:
                raise WaitTimeoutError(_not_ended(path, timeout))
            yield Pause(pause)


def _not_ended(path: str, timeout: float | None) -> str:
    return f"{path[1:]} has not ended in {timeout:g} s; it goes on"


def body_of(model: str, *, local: bool, revision: str, **more: Any) -> Document:
    """The body of a job, an estimate or a sweep of a model."""
    where: Document = {"path": model} if local else {"repo_id": model, "revision": revision}
    where |= {name: more[name] for name in OF_MODEL if more.get(name)}
    return {
        "model": where,
        **_given({name: one for name, one in more.items() if name not in OF_MODEL}),
    }


OF_MODEL = ("subfolder", "file", "allow_requantize")
"""What a request says of its model beyond where it is."""


def _queried(filters: Mapping[str, Any]) -> Document:
    """Filters of a list as its query: `labels` by name."""
    labels = filters.get("labels") or {}
    rest = {name: value for name, value in filters.items() if name != "labels"}
    return rest | {f"label.{name}": value for name, value in labels.items()}


def _given(values: Mapping[str, Any]) -> Document:
    """Those that are not None; lists as the API's queries have them."""
    return {
        name: ",".join(map(str, value))
        if isinstance(value, Sequence) and not isinstance(value, str | Mapping) and name in LISTS
        else value
        for name, value in values.items()
        if value is not None
    }


LISTS = frozenset({"ids", "status"})
