"""A server that speaks the protocol over real sockets and does what a test tells it to."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from pahq.v1 import circuit_pb2, model_pb2, patching_pb2, server_pb2
from pahq.v1 import discovery_pb2 as pb
from pahq.v1.discovery_pb2_grpc import DiscoveryServiceServicer, add_DiscoveryServiceServicer_to_server
from pahq.v1.model_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server
from pahq.v1.patching_pb2_grpc import PatchingServiceServicer, add_PatchingServiceServicer_to_server
from pahq.v1.server_pb2_grpc import ServerServiceServicer, add_ServerServiceServicer_to_server

Code = grpc.StatusCode
FINAL = (pb.DISCOVERY_STATE_CANCELLED, pb.DISCOVERY_STATE_SUCCEEDED, pb.DISCOVERY_STATE_FAILED)


@dataclass(frozen=True)
class Fault:
    """An error to answer with: rich if it has a reason or other details, else plain."""

    code: grpc.StatusCode
    message: str = "no luck"
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violation: tuple[str, str] | None = None
    retry_s: float | None = None
    domain: str = "pahq"

    def raise_on(self, context: grpc.ServicerContext) -> None:
        if not self.reason:
            context.abort(self.code, self.message)
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in self._details():
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        context.abort_with_status(rpc_status.to_status(status))

    def _details(self) -> Iterator[Message]:
        # Not first, so that readers have to look for it.
        yield error_details_pb2.DebugInfo(detail="noise")
        yield error_details_pb2.ErrorInfo(reason=self.reason, domain=self.domain, metadata=self.metadata)
        if self.violation:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.violation[0], description=self.violation[1]
            )
            yield error_details_pb2.BadRequest(field_violations=[violation])
        if self.retry_s is not None:
            delay = Duration(nanos=round(self.retry_s * 1e9) % 10**9, seconds=int(self.retry_s))
            yield error_details_pb2.RetryInfo(retry_delay=delay)


class FakeJob:
    """A discovery with a list of events that grows."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.events: list[pb.Event] = []
        self.changed = threading.Condition()

    def add(self, state: int, kind: int = pb.EVENT_KIND_STATE, error: str = "", decided: int = 0) -> None:
        progress = pb.Progress(decided=decided, total=10, kept=decided // 2, metric=0.5, evaluations=decided)
        with self.changed:
            number = len(self.events) + 1
            event = pb.Event(sequence=number, kind=kind, state=state, error_message=error, progress=progress)
            self.events.append(event)
            self.changed.notify_all()

    def end(self, state: int, error: str = "") -> None:
        self.add(state, pb.EVENT_KIND_END, error, decided=10)

    @property
    def state(self) -> int:
        return self.events[-1].state

    def message(self) -> pb.Discovery:
        return pb.Discovery(name=self.name, state=self.state, error_message=self.events[-1].error_message)


class FakeServer(
    DiscoveryServiceServicer, ModelServiceServicer, PatchingServiceServicer, ServerServiceServicer
):
    """Set its fields before calls; look at ``calls`` after them.

    Args:
        port: to listen on; 0 for any.
    """

    def __init__(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self.calls: list[tuple[str, Any, dict[str, str]]] = []
        self.faults: dict[str, list[Fault | None]] = defaultdict(list)
        self.jobs: dict[str, FakeJob] = {}
        self.by_request: dict[str, FakeJob] = {}
        self.outcome: tuple[int, str] | None = (
            pb.DISCOVERY_STATE_SUCCEEDED,
            "",
        )  # None: runs until cancelled
        self.cuts: list[int] = []  # per stream: after so many events it breaks off
        self.cut_fault: Fault | None = Fault(Code.UNAVAILABLE)  # None: it just ends
        self.repeat = False  # streams ignore after_sequence
        self.pages = circuit_pages()
        self.list_pages: list[list[str]] = [[]]
        self.session = patching_pb2.Session(
            name="users/me/sessions/0",
            graph=circuit_pb2.Graph(layers=1, heads=2, kv_heads=1, kv_receivers="group", mlps=True),
            num_edges_total=11,
            metric_full=0.0,
            metric_empty=4.0,
            max_hypotheses=5,
        )
        self.base = 11  # edges of the session's base circuit
        self.unanswered = 0  # hypotheses per call
        self.watching = threading.Event()
        self.cancelled = threading.Event()
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(16)
        self._server = grpc.server(self._pool)
        add_DiscoveryServiceServicer_to_server(self, self._server)
        add_ModelServiceServicer_to_server(self, self._server)
        add_PatchingServiceServicer_to_server(self, self._server)
        add_ServerServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._closing.set()
        self._server.stop(None).wait()
        self._pool.shutdown()

    def called(self, method: str) -> list[Any]:
        """The requests of a method so far."""
        return [request for name, request, _ in self.calls if name == method]

    def _enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.calls.append((method, request, dict(context.invocation_metadata())))
        fault = self.faults[method].pop(0) if self.faults[method] else None
        if fault is not None:
            fault.raise_on(context)

    def _job(self, name: str, context: grpc.ServicerContext) -> FakeJob:
        if name not in self.jobs:
            Fault(Code.NOT_FOUND, f"no {name}", "NOT_FOUND", {"name": name}).raise_on(context)
        return self.jobs[name]

    def CreateDiscovery(self, request: Any, context: Any) -> Any:
        job = self.by_request.get(request.request_id)
        if job is None:
            job = FakeJob(f"users/me/discoveries/{len(self.jobs)}")
            self.jobs[job.name] = self.by_request[request.request_id] = job
            job.add(pb.DISCOVERY_STATE_QUEUED)
            job.add(pb.DISCOVERY_STATE_RUNNING)
            job.add(pb.DISCOVERY_STATE_RUNNING, pb.EVENT_KIND_PROGRESS, decided=4)
            if self.outcome is not None:
                job.end(*self.outcome)
        self._enter("CreateDiscovery", request, context)  # after the work: a fault loses the answer only
        return pb.CreateDiscoveryResponse(discovery=job.message())

    def GetDiscovery(self, request: Any, context: Any) -> Any:
        self._enter("GetDiscovery", request, context)
        return pb.GetDiscoveryResponse(discovery=self._job(request.name, context).message())

    def ListDiscoveries(self, request: Any, context: Any) -> Any:
        self._enter("ListDiscoveries", request, context)
        page = int(request.page_token or 0)
        more = page + 1 < len(self.list_pages)
        return pb.ListDiscoveriesResponse(
            discoveries=[pb.Discovery(name=name) for name in self.list_pages[page]],
            next_page_token=str(page + 1) if more else "",
        )

    def CancelDiscovery(self, request: Any, context: Any) -> Any:
        self._enter("CancelDiscovery", request, context)
        job = self._job(request.name, context)
        if job.state not in FINAL:
            job.end(pb.DISCOVERY_STATE_CANCELLED)
        self.cancelled.set()
        return pb.CancelDiscoveryResponse(discovery=job.message())

    def DeleteDiscovery(self, request: Any, context: Any) -> Any:
        self._enter("DeleteDiscovery", request, context)
        del self.jobs[self._job(request.name, context).name]
        return pb.DeleteDiscoveryResponse()

    def WatchDiscovery(self, request: Any, context: Any) -> Iterator[Any]:
        self._enter("WatchDiscovery", request, context)
        job = self._job(request.name, context)
        cut = self.cuts.pop(0) if self.cuts else None
        self.watching.set()
        for count, event in enumerate(self._events(job, request.after_sequence, context)):
            if count == cut:
                break
            yield pb.WatchDiscoveryResponse(event=event)
        if cut is not None and self.cut_fault is not None:
            self.cut_fault.raise_on(context)

    def _events(self, job: FakeJob, after: int, context: grpc.ServicerContext) -> Iterator[pb.Event]:
        position = 0 if self.repeat else after
        while context.is_active() and not self._closing.is_set():
            with job.changed:
                if len(job.events) <= position:
                    job.changed.wait(timeout=0.02)
                news = job.events[position:]
            yield from news
            position += len(news)
            if job.state in FINAL:
                return

    def GetCircuit(self, request: Any, context: Any) -> Iterator[Any]:
        self._enter("GetCircuit", request, context)
        self._job(request.name, context)
        yield from self.pages

    def EvaluateCircuit(self, request: Any, context: Any) -> Any:
        self._enter("EvaluateCircuit", request, context)
        metric = circuit_pb2.Metric(name=request.measurement.metric, value=1.0, full=0.0, empty=4.0)
        return pb.EvaluateCircuitResponse(metric=metric, num_edges_total=7)

    def OpenSession(self, request: Any, context: Any) -> Any:
        self._enter("OpenSession", request, context)
        return patching_pb2.OpenSessionResponse(session=self.session)

    def ScoreCircuits(self, request: Any, context: Any) -> Any:
        """A circuit's metric is its number of edges; as if no edge were named twice."""
        self._enter("ScoreCircuits", request, context)
        answered = request.hypotheses[self.unanswered :]
        return patching_pb2.ScoreCircuitsResponse(metrics=map(self._count, answered))

    def CommitCircuit(self, request: Any, context: Any) -> Any:
        self._enter("CommitCircuit", request, context)
        self.base = self._count(request.circuit)
        return patching_pb2.CommitCircuitResponse(num_edges=self.base)

    def _count(self, circuit: patching_pb2.Hypothesis) -> int:
        if circuit.HasField("edges"):
            return len(circuit.edges.names)
        return self.base - len(circuit.removed.names)

    def CloseSession(self, request: Any, context: Any) -> Any:
        self._enter("CloseSession", request, context)
        return patching_pb2.CloseSessionResponse()

    def ListModels(self, request: Any, context: Any) -> Any:
        self._enter("ListModels", request, context)
        return model_pb2.ListModelsResponse(models=[model_pb2.Model(name="demo", layers=4, tokenizer=True)])

    def GetServerInfo(self, request: Any, context: Any) -> Any:
        self._enter("GetServerInfo", request, context)
        memory = server_pb2.MemoryUsage(page_bytes=16, pages=70, used_pages=60, preemptions=3)
        info = server_pb2.ServerInfo(
            version="9.9", device="abacus", methods=["acdc", "single_edge"], memory=memory
        )
        return server_pb2.GetServerInfoResponse(server_info=info)


def circuit_pages() -> list[pb.GetCircuitResponse]:
    """A circuit in three messages: two edges, one untested, and four verdicts."""
    summary = circuit_pb2.CircuitSummary(
        graph=circuit_pb2.Graph(layers=2, heads=4, kv_heads=2, kv_receivers="group", mlps=True),
        gates_kept=["a1.h0<q>"],
        metric=circuit_pb2.Metric(name="kl_divergence", value=0.1, full=0.0, empty=2.0),
        num_evaluations=3,
        num_edges_total=10,
        provenance_request_json=json.dumps(
            {"parameters": {"method": "acdc", "threshold": 0.1, "ablation": "zero"}, "policy": "bf16"}
        ),
        provenance_run_json=json.dumps({"model": "demo", "seconds": 1.5}),
    )
    edge, untested = (
        circuit_pb2.Edge(source="a0.h1", target="a1.h0<q>", score=0.25),
        circuit_pb2.Edge(source="input", target="logits"),
    )
    gate = circuit_pb2.Verdict(subject="a1.h0<q>", delta=0.5, kept=True, gate=True)
    kept = circuit_pb2.Verdict(subject="a0.h1->a1.h0<q>", delta=0.25, kept=True)
    removed = circuit_pb2.Verdict(subject="input->m0", delta=-0.0, kept=False)
    return [
        pb.GetCircuitResponse(summary=summary),
        pb.GetCircuitResponse(edges=[edge], verdicts=[gate, kept]),
        pb.GetCircuitResponse(edges=[untested], verdicts=[removed]),
    ]
