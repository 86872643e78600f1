from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from pahq_server.core.context import log_context
from pahq_server.core.errors import InvalidRequestError
from pahq_server.telemetry.telemetry import Telemetry
from pahq_server.telemetry.tracing import Tracing, otlp_tracing

NOW_NS = 5_000_000_000
CREATE = "pahq.v1.JobService/CreateJob"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    return Tracing("1.2.3", SimpleSpanProcessor(exporter), clock=lambda: NOW_NS)


def only(exporter: InMemorySpanExporter) -> ReadableSpan:
    (span,) = exporter.get_finished_spans()
    return span


def test_a_call_is_a_span_that_ends_now(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with log_context(request_id="r1"):
        tracing.call_ended(CREATE, "OK", 2.0)
    span = only(exporter)
    assert (span.name, span.kind) == (CREATE, SpanKind.SERVER)
    assert (span.start_time, span.end_time) == (NOW_NS - 2_000_000_000, NOW_NS)
    assert span.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "pahq.v1.JobService",
        "rpc.method": "CreateJob",
        "rpc.response.status_code": "OK",
        "pahq.request_id": "r1",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.resource.attributes["service.name"] == "pahq-server"
    assert span.resource.attributes["service.version"] == "1.2.3"


@pytest.mark.parametrize(("code", "fault"), [("INTERNAL", True), ("NOT_FOUND", False), ("CANCELLED", False)])
def test_faults_of_the_server_are_errors(
    tracing: Tracing, exporter: InMemorySpanExporter, code: str, fault: bool
) -> None:
    tracing.call_ended(CREATE, code, 0.0)
    assert (only(exporter).status.status_code is StatusCode.ERROR) is fault


def test_jobs_and_batches_are_spans(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    tracing.batch(passes=32, seconds=0.5)
    tracing.job_ended("users/ada/jobs/1", "failed", 3.0)
    batch, job = exporter.get_finished_spans()
    assert (batch.name, batch.attributes) == ("batch", {"pahq.passes": 32})
    assert job.attributes == {"pahq.job": "users/ada/jobs/1", "pahq.state": "failed"}
    assert job.status.status_code is StatusCode.ERROR


def test_the_environment_names_the_service(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "circuits")
    Tracing("1.2.3", SimpleSpanProcessor(exporter)).batch(1, 0.1)
    assert only(exporter).resource.attributes["service.name"] == "circuits"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans as a collector does."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            self.names += [span.name for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_reach_a_collector_by_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setattr("pahq_server.telemetry.tracing.CLOSE_S", 30.0)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    telemetry = Telemetry((), {"version": "1"}, tracing=True)
    telemetry.observer.batch(1, 0.1)
    telemetry.observer.call_ended(CREATE, "OK", 0.1)
    telemetry.close()
    server.stop(None).wait()
    assert collector.names == ["batch", CREATE]


def test_it_closes_though_nobody_takes_the_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pahq_server.telemetry.tracing.CLOSE_S", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = otlp_tracing("1.2.3")
    tracing.batch(1, 0.1)
    tracing.close()


def test_without_its_packages_asking_for_traces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "pahq_server.telemetry.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(InvalidRequestError, match=r"pip install '\.\[tracing\]' in a checkout"):
        Telemetry((), {"version": "1"}, tracing=True)
