"""The client for programs that do other things while they wait."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from spq_client.calls import (
    Answer,
    Calls,
    Conversation,
    Document,
    Pause,
    Result,
    Send,
    body_of,
    require_answer,
)
from spq_client.client import DEFAULT_URL, Client, answer_of, found_key, no_answer
from spq_client.streams import Event, Stream


class AsyncClient:
    """As `Client`, with `await`."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        patience: float = 120.0,
    ) -> None:
        self.url = (url or os.environ.get("SPQ_URL") or DEFAULT_URL).rstrip("/")
        self._key = found_key(key)
        headers = {"Authorization": f"Bearer {self._key}"}
        self._http = httpx2.AsyncClient(base_url=self.url, headers=headers, timeout=timeout)
        self._calls = Calls(patience, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give connections back."""
        await self._http.aclose()

    async def me(self) -> Document:
        """Whom the key speaks for."""
        return await self._run(self._calls.get("/me"))

    async def recipes(self) -> list[Document]:
        """The recipes of the catalog."""
        return list((await self._run(self._calls.get("/recipes")))["data"])

    async def estimate(
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
        return await self._run(self._calls.change("POST", "/estimates", body))

    async def submit(
        self,
        model: str,
        recipe: str | Mapping[str, Any] = "balanced",
        *,
        local: bool = False,
        revision: str = "main",
        idempotency_key: str | None = None,
        **more: Any,
    ) -> Document:
        """Submit a job; see `Client.submit`."""
        body = body_of(model, local=local, revision=revision, recipe=recipe, **more)
        return await self._run(self._calls.submit(body, idempotency_key))

    async def job(self, job_id: str) -> Document:
        """A job."""
        return await self._run(self._calls.get(f"/jobs/{job_id}"))

    async def jobs(self, **filters: Any) -> AsyncIterator[Document]:
        """Jobs in rows, newest first, page by page; see `Client.jobs`."""
        after: str | None = None
        while True:
            rows, after = await self._run(self._calls.job_rows(filters, after))
            for row in rows:
                yield row
            if after is None:
                return

    async def wait(
        self, job_id: str, *, timeout: float | None = None, check: bool = True
    ) -> Document:
        """Wait for a job's end; see `Client.wait`."""
        return await self._run(self._calls.wait_for_job(job_id, timeout, check=check))

    async def cancel(self, job_id: str) -> Document:
        """Ask a job to stop."""
        return await self._run(self._calls.change("POST", f"/jobs/{job_id}/cancel"))

    async def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Document:
        """A new job that asks for what a failed or canceled one did."""
        return await self._run(self._calls.again(job_id, "retry", None, idempotency_key))

    async def measure(
        self,
        job_id: str,
        evaluation: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Document:
        """A new job that measures the artifact of one that has ended."""
        body = {} if evaluation is None else {"evaluation": dict(evaluation)}
        return await self._run(self._calls.again(job_id, "measure", body, idempotency_key))

    async def label(self, job_id: str, **labels: str | None) -> Document:
        """Set labels, and remove those that are None."""
        return await self._run(self._calls.change("PATCH", f"/jobs/{job_id}", {"labels": labels}))

    async def delete(self, job_id: str) -> None:
        """Forget a job that has ended, its figures and its artifact."""
        await self._run(self._calls.change("DELETE", f"/jobs/{job_id}"))

    async def logs(self, job_id: str, *, follow: bool = False) -> AsyncIterator[Document]:
        """Lines of a job's log; with `follow` those that come until it has ended."""
        if follow:
            async for event in self._stream(f"/jobs/{job_id}/logs"):
                yield event.data
            return
        after: int | None = 0
        while after is not None:
            lines, after = await self._run(self._calls.log_lines(job_id, after))
            for line in lines:
                yield line

    async def download(
        self, job_id: str, folder: str | Path, *, only: Callable[[str], bool] | None = None
    ) -> Path:
        """Fetch a job's artifact; see `Client.download`. It runs in a thread, which a cancellation leaves to end by itself."""

        def fetch() -> Path:
            timeout, patience = self._calls.timeout, self._calls.patience
            with Client(self.url, self._key, timeout=timeout, patience=patience) as client:
                return client.download(job_id, folder, only=only)

        return await asyncio.to_thread(fetch)

    async def submit_sweep(
        self,
        model: str,
        sweep: str | Mapping[str, Any],
        *,
        local: bool = False,
        revision: str = "main",
        idempotency_key: str | None = None,
        **more: Any,
    ) -> Document:
        """Submit a sweep; see `Client.submit_sweep`."""
        body = body_of(model, local=local, revision=revision, sweep=sweep, **more)
        return await self._run(self._calls.submit_sweep(body, idempotency_key))

    async def sweep(self, sweep_id: str) -> Document:
        """A sweep."""
        return await self._run(self._calls.get(f"/sweeps/{sweep_id}"))

    async def wait_sweep(self, sweep_id: str, *, timeout: float | None = None) -> Document:
        """Wait for a sweep's end."""
        return await self._run(self._calls.wait_for_sweep(sweep_id, timeout))

    async def cancel_sweep(self, sweep_id: str) -> Document:
        """Stop a sweep."""
        return await self._run(self._calls.change("POST", f"/sweeps/{sweep_id}/cancel"))

    async def events(self, job_id: str) -> AsyncIterator[Event]:
        """A job's history, and what happens, until it has ended; goes on by itself where the stream breaks."""
        async for event in self._stream(f"/jobs/{job_id}/events"):
            yield event

    async def _stream(self, path: str) -> AsyncIterator[Event]:
        stream = Stream(self._calls.patience)
        while True:
            broke: Answer | None = None
            try:
                async with self._http.stream("GET", path, headers=stream.headers()) as response:
                    if response.status_code == httpx2.codes.NO_CONTENT:
                        return
                    if response.is_error:
                        await response.aread()
                        broke = answer_of(response)
                        require_answer(broke)
                    else:
                        async for line in response.aiter_lines():
                            for event in stream.take(line):
                                yield event
            except httpx2.TransportError as error:
                broke = no_answer(self.url, error)
            await asyncio.sleep(stream.pause(broke))

    async def _run(self, call: Conversation[Result]) -> Result:
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
                await asyncio.sleep(step.seconds)
            else:
                answer = await self._sent(step)

    async def _sent(self, request: Send) -> Answer:
        try:
            response = await self._http.request(
                request.method,
                request.path,
                params=dict(request.query),
                json=request.body,
                headers=dict(request.headers),
            )
        except httpx2.TransportError as error:
            return no_answer(self.url, error)
        return answer_of(response)
