"""Discoveries of the fake server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from pahq.v1 import circuit_pb2
from pahq.v1 import discovery_pb2 as pb
from pahq.v1.discovery_pb2_grpc import DiscoveryServiceServicer

from .faults import Code, Fault

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FINAL = (pb.DISCOVERY_STATE_CANCELLED, pb.DISCOVERY_STATE_SUCCEEDED, pb.DISCOVERY_STATE_FAILED)


class FakeJob:
    """A discovery with a list of events that grows."""

    def __init__(self, name: str, spec: pb.DiscoverySpec | None = None) -> None:
        self.name = name
        self.spec = spec
        self.events: list[pb.Event] = []
        self.changed = threading.Condition()
        self.warnings: list[str] = []  # the first one is known from the start
        self.measured: circuit_pb2.Metric | None = None

    @property
    def sequence(self) -> int:
        return self.events[-1].sequence if self.events else 0

    def add(self, state: int, kind: int = pb.EVENT_KIND_STATE, error: str = "", decided: int = 0) -> None:
        progress = pb.Progress(decided=decided, total=10, kept=decided // 2, metric=0.5, evaluations=decided)
        with self.changed:
            event = pb.Event(
                sequence=self.sequence + 1, kind=kind, state=state, error_message=error, progress=progress
            )
            self.events.append(event)
            self.changed.notify_all()

    def move(self, position: int, start: datetime) -> None:
        """Tells a new place in the queue: all else stays, the sequence number too."""
        with self.changed:
            event = pb.Event()
            event.CopyFrom(self.events[-1])
            event.queue_position = position
            event.estimated_start_time.FromDatetime(start)
            self.events.append(event)
            self.changed.notify_all()

    def end(self, state: int, error: str = "") -> None:
        self.add(state, pb.EVENT_KIND_END, error, decided=10)

    @property
    def state(self) -> int:
        return self.events[-1].state

    def message(self) -> pb.Discovery:
        latest = self.events[-1]
        message = pb.Discovery(
            name=self.name,
            spec=self.spec,
            state=latest.state,
            progress=latest.progress,
            error_message=latest.error_message,
            charged_seconds=1.5,
            warnings=self.warnings if latest.state in FINAL else self.warnings[:1],
            num_prompts=16,
            create_time=STARTED,
            start_time=STARTED,
        )
        if latest.state in FINAL:
            message.end_time.FromDatetime(STARTED + timedelta(seconds=65))
        if latest.state == pb.DISCOVERY_STATE_SUCCEEDED and self.measured is not None:
            message.metric.CopyFrom(self.measured)
        if latest.HasField("queue_position"):
            message.queue_position = latest.queue_position
            message.estimated_start_time.CopyFrom(latest.estimated_start_time)
        return message


class FakeDiscoveries(DiscoveryServiceServicer):
    """The discovery service; a part of `FakeServer`."""

    def __init__(self) -> None:
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
        self.warnings: list[str] = []  # of every answer; of jobs, the first one is known from the start
        self.measured: circuit_pb2.Metric | None = None  # of every job that succeeded
        self.watching = threading.Event()
        self.cancelled = threading.Event()
        self._closing = threading.Event()

    def _enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        raise NotImplementedError

    def _job(self, name: str, context: grpc.ServicerContext) -> FakeJob:
        if name not in self.jobs:
            Fault(Code.NOT_FOUND, f"no {name}", "NOT_FOUND", {"name": name}).raise_on(context)
        return self.jobs[name]

    def CreateDiscovery(self, request: Any, context: Any) -> Any:
        if request.validate_only:
            self._enter("CreateDiscovery", request, context)
            estimate = pb.Estimate(
                memory_bytes=1 << 20,
                least_seconds=2,
                most_seconds=90,
                streams_weights=True,
                warnings=self.warnings[:1],
            )
            return pb.CreateDiscoveryResponse(discovery=pb.Discovery(spec=request.spec), estimate=estimate)
        job = self.by_request.get(request.request_id)
        if job is None:
            job = FakeJob(f"users/me/discoveries/{len(self.jobs)}", request.spec)
            self.jobs[job.name] = self.by_request[request.request_id] = job
            job.warnings, job.measured = self.warnings, self.measured
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
            discoveries=[self._listed(name) for name in self.list_pages[page]],
            next_page_token=str(page + 1) if more else "",
        )

    def _listed(self, name: str) -> pb.Discovery:
        if name in self.jobs:
            return self.jobs[name].message()
        return pb.Discovery(name=name, state=pb.DISCOVERY_STATE_SUCCEEDED)

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
        position = 0 if self.repeat else sum(event.sequence <= after for event in job.events)
        if position == len(job.events) and job.events[-1].HasField("queue_position"):
            position -= 1  # who asks again is told the present place again
        while context.is_active() and not self._closing.is_set():
            with job.changed:
                if len(job.events) <= position:
                    job.changed.wait(timeout=0.02)
                news = job.events[position:]
            yield from news
            position += len(news)
            if job.state in FINAL and position == len(job.events):
                return

    def GetCircuit(self, request: Any, context: Any) -> Iterator[Any]:
        self._enter("GetCircuit", request, context)
        job = self._job(request.name, context)
        for page in self.pages:
            if page.HasField("summary"):
                page.summary.warnings[:] = job.warnings
            yield page

    def EvaluateCircuit(self, request: Any, context: Any) -> Any:
        self._enter("EvaluateCircuit", request, context)
        metric = circuit_pb2.Metric(name=request.objective.metric, value=1.0, full=0.0, empty=4.0)
        return pb.EvaluateCircuitResponse(metric=metric, num_edges_total=7, warnings=self.warnings)


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
