"""Traces, with OpenTelemetry: a span for every call, job and batch. Needs the extra ``tracing``.

A span is made when its work has ended, from how long that took, so that no span has to be passed along with
the work. Each is therefore the root of a trace of its own; ``pahq.request_id`` and ``pahq.job`` tie them
together, and to the log.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from pahq_server.core.context import current
from pahq_server.core.observer import Observer

# How long closing waits for spans to be sent: their receiver may be gone.
CLOSE_S = 3.0
# Codes of calls that failed by a fault of the server, as OpenTelemetry's conventions for gRPC have it.
_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")


class Tracing(Observer):
    """Makes a span of whatever ends, with a provider of its own.

    Args:
        version: version of the server.
        processor: receives the spans.
        clock: returns the time in nanoseconds since the epoch.
    """

    def __init__(
        self, version: str, processor: SpanProcessor, clock: Callable[[], int] = time.time_ns
    ) -> None:
        # The SDK reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES by itself, and they win.
        defaults = Resource({"service.name": "pahq-server", "service.version": version})
        self._provider = TracerProvider(
            resource=defaults.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("pahq_server", version)
        self._clock = clock

    def close(self) -> None:
        """Sends the spans that are left, or gives them up after `CLOSE_S`. Later spans are dropped."""
        sending = threading.Thread(target=self._provider.shutdown, name="pahq-traces", daemon=True)
        sending.start()
        sending.join(CLOSE_S)

    def job_ended(self, name: str, state: str, seconds: float) -> None:
        attributes = {"pahq.job": name, "pahq.state": state}
        self._span("job", SpanKind.INTERNAL, seconds, attributes, failed=state == "failed")

    def batch(self, passes: float, seconds: float) -> None:
        self._span("batch", SpanKind.INTERNAL, seconds, {"pahq.passes": passes})

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        service, _, name = method.rpartition("/")
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "rpc.response.status_code": code,
            "pahq.request_id": current().request_id,
        }
        self._span(method, SpanKind.SERVER, seconds, attributes, failed=code in _FAULTS)

    def _span(
        self,
        name: str,
        kind: SpanKind,
        seconds: float,
        attributes: Mapping[str, str | float],
        failed: bool = False,
    ) -> None:
        end = self._clock()
        start = end - int(seconds * 1e9)
        given = {key: value for key, value in attributes.items() if value != ""}
        span = self._tracer.start_span(name, kind=kind, attributes=given, start_time=start)
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end(end)


def otlp_tracing(version: str) -> Tracing:
    """Sends spans to where the standard ``OTEL_EXPORTER_OTLP_…`` variables say, which the exporter reads."""
    return Tracing(version, BatchSpanProcessor(OTLPSpanExporter()))
