"""The client for programs that wait for answers."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from spq_client.calls import (
    Answer,
    Calls,
    Conversation,
    Document,
    Patience,
    Pause,
    Result,
    Send,
    body_of,
    require_answer,
)
from spq_client.errors import AuthenticationError, NotFoundError
from spq_client.files import Target
from spq_client.streams import Event, Stream

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_FILE = Path("~/.spq/api-key")
CHUNK = 1 << 20


def found_key(key: str | None) -> str:
    """The key that is given, that SPQ_API_KEY holds, or that `spq serve` and `spq login` left.

    Raises:
        AuthenticationError: there is none.
    """
    path = Path(os.environ.get("SPQ_KEY_FILE", KEY_FILE)).expanduser()
    found = (
        key
        or os.environ.get("SPQ_API_KEY")
        or (path.read_text(encoding="ascii") if path.is_file() else "")
    )
    if not found.strip():
        raise AuthenticationError(
            "unauthenticated",
            f"no API key: give key=, set SPQ_API_KEY, or run spq login ({path} does not exist)",
        )
    return found.strip()


def answer_of(response: httpx2.Response) -> Answer:
    """A response as calls see it."""
    is_json = "json" in response.headers.get("content-type", "")
    document = response.json() if is_json and response.content else None
    return Answer(
        response.status_code, response.headers, document, "" if is_json else response.text
    )


def no_answer(url: str, error: Exception) -> Answer:
    """What a call sees where nothing came back."""
    return Answer(0, {}, None, f"{url} does not answer ({type(error).__name__})")


class Client:
    """One service, for whom one API key speaks. Use it as a context manager, or call `close`.

    Requests that fail for reasons that pass (no answer, a restart, too many requests) are sent again with growing pauses for as
    long as `patience` lasts; those that make something carry an Idempotency-Key, so that it is made once.

    Args:
        url: of the service; SPQ_URL, or the one `spq serve` has.
        key: SPQ_API_KEY, or the file that `spq serve` and `spq login` leave.
        timeout: seconds for one answer.
        patience: seconds.

    Raises:
        AuthenticationError: there is no key.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        patience: float = 120.0,
    ) -> None:
        self.url = (url or os.environ.get("SPQ_URL") or DEFAULT_URL).rstrip("/")
        headers = {"Authorization": f"Bearer {found_key(key)}"}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout)
        self._calls = Calls(patience, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give connections back."""
        self._http.close()

    def me(self) -> Document:
        """Whom the key speaks for, its scopes, and the tenant's limits with what is used of them."""
        return self._run(self._calls.get("/me"))

    def recipes(self) -> list[Document]:
        """The recipes of the catalog."""
        return list(self._run(self._calls.get("/recipes"))["data"])

    def estimate(
        self,
        model: str,
        recipe: str | Mapping[str, Any] = "balanced",
        *,
        local: bool = False,
        revision: str = "main",
        evaluation: Mapping[str, Any] | None = None,
    ) -> Document:
        """What a job would take: bytes, memory, minutes."""
        body = body_of(model, local=local, revision=revision, recipe=recipe, evaluation=evaluation)
        return self._run(self._calls.change("POST", "/estimates", body))

    def submit(
        self, model: str, recipe: str | Mapping[str, Any] = "balanced", *, local: bool = False, revision: str = "main",
        evaluation: Mapping[str, Any] | None = None, output: Mapping[str, Any] | None = None, labels: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None, webhook: Mapping[str, Any] | None = None, hub_token: str | None = None,
        idempotency_key: str | None = None, subfolder: str | None = None, file: str | None = None, allow_requantize: bool = False,
    ) -> Document:  # fmt: skip
        """Submit a job; return its document.

        Args:
            model: a Hub repository, or with `local` the name of a folder of the service.
            recipe: a name of the catalog, or a document, which may have `extends`.
            evaluation: `perplexity`, `limit`, `tasks`, `throughput`, … (`EvaluationSettings` in the API's document).
            output: `{"repo_id": …, "private": True}` to publish it.
            subfolder: folder within it that holds the model. file: a .gguf file that is the model.
            allow_requantize: weights that are quantized already may be widened and compressed.
            idempotency_key: of the program's own, where the same request may come from two of its runs.

        Raises:
            InvalidRequestError: the job cannot work as it is.
        """
        body = body_of(
            model, local=local, revision=revision, recipe=recipe, evaluation=evaluation, output=output, labels=labels, limits=limits,
            webhook=webhook, hub_token=hub_token, subfolder=subfolder, file=file, allow_requantize=allow_requantize,
        )  # fmt: skip
        return self._run(self._calls.submit(body, idempotency_key))

    def job(self, job_id: str) -> Document:
        """A job."""
        return self._run(self._calls.get(f"/jobs/{job_id}"))

    def jobs(self, **filters: Any) -> Iterator[Document]:
        """Jobs in rows, newest first, page by page: `status`, `model`, `recipe`, `labels`, `q`, `sort`, `ids`, and so on."""
        after: str | None = None
        while True:
            rows, after = self._run(self._calls.job_rows(filters, after))
            yield from rows
            if after is None:
                return

    def wait(self, job_id: str, *, timeout: float | None = None, check: bool = True) -> Document:
        """Wait for a job's end; return its document.

        Raises:
            JobFailedError: it did not succeed; with `check=False` look at `status` instead.
            WaitTimeoutError: it has not ended in so many seconds.
        """
        return self._run(self._calls.wait_for_job(job_id, timeout, check=check))

    def cancel(self, job_id: str) -> Document:
        """Ask a job to stop."""
        return self._run(self._calls.change("POST", f"/jobs/{job_id}/cancel"))

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Document:
        """A new job that asks for what a failed or canceled one did."""
        return self._run(self._calls.again(job_id, "retry", None, idempotency_key))

    def measure(
        self,
        job_id: str,
        evaluation: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Document:
        """A new job that measures the artifact of one that has ended."""
        body = {} if evaluation is None else {"evaluation": dict(evaluation)}
        return self._run(self._calls.again(job_id, "measure", body, idempotency_key))

    def label(self, job_id: str, **labels: str | None) -> Document:
        """Set labels, and remove those that are None."""
        return self._run(self._calls.change("PATCH", f"/jobs/{job_id}", {"labels": labels}))

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended, its figures and its artifact."""
        self._run(self._calls.change("DELETE", f"/jobs/{job_id}"))

    def events(self, job_id: str) -> Iterator[Event]:
        """A job's history, and what happens, until it has ended; goes on by itself where the stream breaks."""
        yield from self._stream(f"/jobs/{job_id}/events")

    def logs(self, job_id: str, *, follow: bool = False) -> Iterator[Document]:
        """Lines of a job's log; with `follow` those that come until it has ended."""
        if follow:
            yield from (event.data for event in self._stream(f"/jobs/{job_id}/logs"))
            return
        after: int | None = 0
        while after is not None:
            lines, after = self._run(self._calls.log_lines(job_id, after))
            yield from lines

    def download(
        self, job_id: str, folder: str | Path, *, only: Callable[[str], bool] | None = None
    ) -> Path:
        """Fetch a job's artifact into a folder. What is there already is kept if its digest is right; a file that broke off goes on.

        Args:
            only: says of a file's path whether it is wanted; all are where it is not given.

        Raises:
            NotFoundError: the job has no artifact (any more).
            DamagedDownloadError: a file is not what the service recorded.
        """
        files = self._run(self._calls.get(f"/jobs/{job_id}/artifacts"))["data"]
        if not files:
            raise NotFoundError("artifact_not_found", f"{job_id} has no artifact")
        root = Path(folder)
        for one in filter(lambda one: only is None or only(one["path"]), files):
            target = Target(root, one["path"], one["sha256"], one["bytes"])
            if not target.is_whole:
                self._fetch(one["url"], target)
        return root

    def submit_sweep(
        self, model: str, sweep: str | Mapping[str, Any], *, local: bool = False, revision: str = "main", evaluation: Mapping[str, Any] | None = None,
        max_parallel: int | None = None, labels: Mapping[str, str] | None = None, publish: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None, subfolder: str | None = None, file: str | None = None, allow_requantize: bool = False,
    ) -> Document:  # fmt: skip
        """Submit a sweep: a shipped one by name, or a document."""
        body = body_of(
            model, local=local, revision=revision, sweep=sweep, evaluation=evaluation, max_parallel=max_parallel, labels=labels,
            publish=publish, subfolder=subfolder, file=file, allow_requantize=allow_requantize,
        )  # fmt: skip
        return self._run(self._calls.submit_sweep(body, idempotency_key))

    def sweep(self, sweep_id: str) -> Document:
        """A sweep with its members, its front and its best."""
        return self._run(self._calls.get(f"/sweeps/{sweep_id}"))

    def wait_sweep(self, sweep_id: str, *, timeout: float | None = None) -> Document:
        """Wait for a sweep's end.

        Raises:
            WaitTimeoutError: it has not ended in so many seconds.
        """
        return self._run(self._calls.wait_for_sweep(sweep_id, timeout))

    def cancel_sweep(self, sweep_id: str) -> Document:
        """Stop a sweep."""
        return self._run(self._calls.change("POST", f"/sweeps/{sweep_id}/cancel"))

    def _run(self, call: Conversation[Result]) -> Result:
        """Drive a call to its result."""
        answer: Answer | None = None
        while True:
            try:
                step = call.send(answer)
            except StopIteration as done:
                found: Result = done.value
                return found
            answer = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
            else:
                answer = self._sent(step)

    def _sent(self, request: Send) -> Answer:
        try:
            return answer_of(
                self._http.request(
                    request.method,
                    request.path,
                    params=dict(request.query),
                    json=request.body,
                    headers=dict(request.headers),
                )
            )
        except httpx2.TransportError as error:
            return no_answer(self.url, error)

    def _stream(self, path: str) -> Iterator[Event]:
        stream = Stream(self._calls.patience)
        while True:
            try:
                with self._http.stream("GET", path, headers=stream.headers()) as response:
                    if response.status_code == httpx2.codes.NO_CONTENT:
                        return
                    broke = self._refused(response)
                    for line in response.iter_lines() if broke is None else ():
                        yield from stream.take(line)
            except httpx2.TransportError as error:
                broke = no_answer(self.url, error)
            time.sleep(stream.pause(broke))

    def _fetch(self, url: str, target: Target) -> None:
        patience = Patience(self._calls.patience)
        while True:
            start = target.have
            headers = (
                {"Range": f"bytes={start}-", "If-Range": f'"{target.sha256}"'} if start else {}
            )
            try:
                with self._http.stream("GET", url, headers=headers) as response:
                    broke = self._refused(response)
                    if broke is None:
                        goes_on = response.status_code == httpx2.codes.PARTIAL_CONTENT
                        target.write(response.iter_bytes(CHUNK), start if goes_on else 0)
                        target.finish()
                        return
            except httpx2.TransportError as error:
                broke = no_answer(self.url, error)
            if target.have > start:
                patience.progress()
            time.sleep(patience.pause(broke))

    @staticmethod
    def _refused(response: httpx2.Response) -> Answer | None:
        """An answer after which the same request may do better later; None where what was asked for comes.

        Raises:
            ServiceError: it is a refusal.
        """
        if not response.is_error:
            return None
        response.read()
        found = answer_of(response)
        return None if require_answer(found) else found
