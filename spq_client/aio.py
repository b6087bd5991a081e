"""The client for programs that do other things while they wait."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
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
    job_body,
    require_answer,
)
from spq_client.client import DEFAULT_URL, ENDED, answer_of, found_key, no_answer, queried
from spq_client.streams import Event, Parser


class AsyncClient:
    """As `Client`, with `await`. Downloads are the sync client's: they wait for disk and network alike."""

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
        body = job_body(model, recipe, local=local, revision=revision, more=more)
        return await self._run(self._calls.submit(body, idempotency_key))

    async def job(self, job_id: str) -> Document:
        """A job."""
        return await self._run(self._calls.get(f"/jobs/{job_id}"))

    async def jobs(self, **filters: Any) -> AsyncIterator[Document]:
        """Jobs in rows, newest first, page by page; see `Client.jobs`."""
        query = {"limit": 100, "view": "row", **queried(filters)}
        after: str | None = None
        while True:
            rows, after = await self._run(self._calls.page("/jobs", query | {"after": after}))
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
        where = {"path": model} if local else {"repo_id": model, "revision": revision}
        body = {
            "model": where,
            "sweep": sweep,
            **{name: value for name, value in more.items() if value is not None},
        }
        return await self._run(self._calls.submit_sweep(body, idempotency_key))

    async def sweep(self, sweep_id: str) -> Document:
        """A sweep."""
        return await self._run(self._calls.get(f"/sweeps/{sweep_id}"))

    async def wait_sweep(self, sweep_id: str, *, timeout: float | None = None) -> Document:
        """Wait for a sweep's end."""
        return await self._run(self._calls.wait_for_sweep(sweep_id, timeout))

    async def events(self, job_id: str) -> AsyncIterator[Event]:
        """A job's history, and what happens, until it has ended; goes on by itself where the stream breaks."""
        last, patience = "", Patience(self._calls.patience)
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
            broke: Answer | None = None
            try:
                async with self._http.stream(
                    "GET", f"/jobs/{job_id}/events", headers=headers
                ) as response:
                    if response.status_code == httpx2.codes.NO_CONTENT:
                        return
                    if response.is_error:
                        await response.aread()
                        found = answer_of(response)
                        broke = None if require_answer(found) else found
                    parser = Parser()
                    async for line in response.aiter_lines():
                        for event in parser.take(line):
                            last = event.id or last
                            patience.progress()
                            yield event
            except httpx2.TransportError as error:
                broke = no_answer(self.url, error)
            if broke is None:  # a quiet stream ends now and then
                patience.progress()
            await asyncio.sleep(patience.pause(broke or ENDED))

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
