"""OpenTelemetry traces, sent by OTLP over HTTP where `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

Requests are traced by FastAPI itself. The trace of the request that made a job is kept in its row; the
worker goes on with it (`worker/attempt/spans.py`).
"""

import os

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def configured() -> bool:
    """Whether traces go anywhere."""
    return any(os.environ.get(name) for name in ENDPOINTS)


def export_spans(service: str) -> None:
    """Send this process's spans; call once, in the process that makes them.

    Raises:
        ImportError: the `tracing` extra is not installed.
    """
    if not configured():
        return
    # Imported here: only those who trace install the exporter.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", service)})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def current_traceparent() -> str | None:
    """The current span as a W3C traceparent; None outside of any trace."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")
