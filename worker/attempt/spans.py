"""Spans of an attempt and its stages, in the trace of the request that made the job."""

from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.db.attempts import Claim

FLUSH_MILLISECONDS = 3000


class AttemptSpans:
    """A context manager around an attempt. Costs nothing where nobody traces.

    The first attempt belongs to the request's trace; later ones begin their own and are linked to it. A
    stage's span ends where the next begins, so that a long run shows up as it goes.
    """

    def __init__(self, claimed: Claim) -> None:
        carrier = {"traceparent": claimed.traceparent} if claimed.traceparent else {}
        origin = TraceContextTextMapPropagator().extract(carrier, Context())
        first = claimed.attempt == 1
        request = trace.get_current_span(origin).get_span_context()
        self._tracer = trace.get_tracer("spq.worker")
        self._span = self._tracer.start_span(
            "attempt",
            origin if first else Context(),
            links=[] if first or not request.is_valid else [Link(request)],
            attributes={"spq.job_id": claimed.job_id, "spq.attempt": claimed.attempt},
        )
        self._stage: Span | None = None

    def stage(self, name: str) -> None:
        """The attempt has come to this stage."""
        self._end_stage()
        inside = trace.set_span_in_context(self._span, Context())
        self._stage = self._tracer.start_span(name, inside)

    def outcome(self, text: str, *, good: bool) -> None:
        """How it ended."""
        self._span.set_attribute("spq.outcome", text)
        if not good:
            self._span.set_status(Status(StatusCode.ERROR, text))

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._stage.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_back: TracebackType | None,
    ) -> None:
        self._end_stage()
        self._span.end()
        flush = getattr(trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            flush(FLUSH_MILLISECONDS)  # the process may be stopped next
