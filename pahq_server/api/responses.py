"""From values to messages."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pahq.v1 import circuit_pb2, discovery_pb2, model_pb2, patching_pb2, server_pb2, task_pb2

from pahq_server.access.limits import CallLimits
from pahq_server.core.engine import Estimate, MemoryUsage, ModelInfo
from pahq_server.core.graph import Graph
from pahq_server.core.task import BuiltinTask, TokenizedText
from pahq_server.core.verdict import SearchResult, Verdict
from pahq_server.jobs.job import Job, JobState, Snapshot
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.provenance import DiscoveryResult
from pahq_server.jobs.sessions import PatchingSession
from pahq_server.jobs.spec import DiscoverySpec
from pahq_server.jobs.standing import QueuePlace

# Edges or verdicts per message: well below the smallest common message limit of 4 MiB.
PAGE = 8192
# Characters of prompts per message, all of them ASCII.
PROMPT_PAGE = 1 << 20

T = TypeVar("T")

_STATES = {state: getattr(discovery_pb2, f"DISCOVERY_STATE_{state.name}") for state in JobState}


def discovery(job: Job) -> discovery_pb2.Discovery:
    now = job.snapshot
    place = place_of(job, now)
    return discovery_pb2.Discovery(
        name=job.name,
        spec=_spec(job.spec),
        state=_STATES[now.state],
        progress=progress(job, now),
        error_message=now.error,
        create_time=_timestamp(now.created),
        start_time=_timestamp(now.started),
        end_time=_timestamp(now.ended),
        queue_position=place.position if place else None,
        estimated_start_time=_timestamp(place.start) if place else None,
        charged_seconds=job.standing.charged_s,
        warnings=job.warnings,
        num_prompts=_num_prompts(job),
        metric=_outcome(job),
    )


def _num_prompts(job: Job) -> int:
    task = job.spec.objective.task
    return task.num_prompts if isinstance(task, BuiltinTask) else job.facts.num_prompts


def _outcome(job: Job) -> circuit_pb2.Metric | None:
    found = job.outcome
    if found is None:
        return None
    return metric(job.spec.objective.metric, found.value, found.full, found.empty)


def estimate(value: Estimate, warnings: Sequence[str]) -> discovery_pb2.Estimate:
    return discovery_pb2.Estimate(**asdict(value), warnings=warnings)


def place_of(job: Job, now: Snapshot) -> QueuePlace | None:
    """Its place in the queue, if it is there and the place is known."""
    return job.standing.place if now.state is JobState.QUEUED else None


def progress(job: Job, now: Snapshot) -> discovery_pb2.Progress:
    total = job.total
    return discovery_pb2.Progress(
        decided=now.progress.decided,
        total=total,
        kept=now.progress.kept,
        metric=now.progress.metric,
        evaluations=now.evaluations,
        eta_seconds=now.eta_s(total),
    )


def event(
    job: Job, now: Snapshot, before: Snapshot | None, place: QueuePlace | None = None
) -> discovery_pb2.Event:
    """What a watcher that last saw ``before`` is told; ``place`` is that in the queue."""
    kind = discovery_pb2.EVENT_KIND_PROGRESS
    if before is None or before.state is not now.state or place is not None:
        kind = discovery_pb2.EVENT_KIND_STATE
    if now.state.final:
        kind = discovery_pb2.EVENT_KIND_END
    return discovery_pb2.Event(
        sequence=now.sequence,
        kind=kind,
        state=_STATES[now.state],
        progress=progress(job, now),
        error_message=now.error,
        queue_position=place.position if place else None,
        estimated_start_time=_timestamp(place.start) if place else None,
    )


def circuit_pages(result: DiscoveryResult) -> Iterator[discovery_pb2.GetCircuitResponse]:
    """The summary, then edges and verdicts in order."""
    graph, found = result.graph, result.search
    yield discovery_pb2.GetCircuitResponse(summary=_summary(result))
    edges = (_edge(graph, found, index) for index in _decision_order(found))
    for some_edges in _pages(edges):
        yield discovery_pb2.GetCircuitResponse(edges=some_edges)
    verdicts = (_verdict(graph, verdict) for verdict in found.verdicts)
    for some_verdicts in _pages(verdicts):
        yield discovery_pb2.GetCircuitResponse(verdicts=some_verdicts)
    prompts = result.prompts or ""
    for start in range(0, len(prompts), PROMPT_PAGE):
        yield discovery_pb2.GetCircuitResponse(prompts_json=prompts[start : start + PROMPT_PAGE])


def metric(name: str, value: float, full: float, empty: float) -> circuit_pb2.Metric:
    return circuit_pb2.Metric(name=name, value=value, full=full, empty=empty)


def session(opened: Session, full: float, empty: float, warnings: Sequence[str]) -> patching_pb2.Session:
    idle = Duration()
    idle.FromMilliseconds(int(opened.limits.idle_s * 1000))
    return patching_pb2.Session(
        name=opened.name,
        graph=_graph(opened.resolved.graph),
        num_edges_total=opened.resolved.graph.num_edges,
        metric_full=full,
        metric_empty=empty,
        max_hypotheses=opened.limits.hypotheses,
        idle_timeout=idle,
        warnings=warnings,
        model_revision=opened.resolved.revision,
    )


def model(info: ModelInfo) -> model_pb2.Model:
    return model_pb2.Model(**asdict(info))


def tokenized_text(found: TokenizedText) -> model_pb2.TokenizedText:
    return model_pb2.TokenizedText(
        text=found.text,
        ids=found.ids,
        tokens=found.tokens,
        answer_id=found.answer,
        answer_token=found.answer_token,
        answer_note=found.note,
    )


def memory(usage: MemoryUsage) -> server_pb2.MemoryUsage:
    return server_pb2.MemoryUsage(
        page_bytes=usage.page_bytes,
        pages=usage.pages,
        used_pages=usage.used,
        shared_pages=usage.shared,
        peak_used_pages=usage.peak_used,
        scratch_bytes=usage.scratch_bytes,
        preemptions=usage.preemptions,
        head_store_hits=usage.head_store.hits,
        head_store_misses=usage.head_store.misses,
        head_store_bytes_moved=usage.head_store.bytes_moved,
    )


def limits(quotas: Quotas, calls: CallLimits) -> server_pb2.Limits:
    return server_pb2.Limits(
        running_jobs=quotas.running_jobs,
        queued_jobs=quotas.queued_jobs,
        prompt_tokens=quotas.prompt_tokens,
        stored_results=quotas.stored_results,
        requests_per_second=calls.rate,
        burst=calls.burst,
        concurrent_calls=calls.user_calls,
        concurrent_streams=calls.user_streams,
    )


def _spec(spec: DiscoverySpec) -> discovery_pb2.DiscoverySpec:
    """What was asked for. The prompts stay out: a list of jobs would repeat them all."""
    asked = spec.objective
    task = task_pb2.Task()
    if isinstance(asked.task, BuiltinTask):
        task.builtin.CopyFrom(task_pb2.BuiltinTask(**asdict(asked.task)))
    return discovery_pb2.DiscoverySpec(
        objective=discovery_pb2.Objective(
            model=asked.model,
            task=task,
            metric=asked.metric,
            ablation=asked.ablation,
            kv_receivers=asked.kv_receivers,
            precision=asked.precision,
        ),
        method=spec.method,
        threshold=spec.threshold,
        gates=spec.gates,
        include_prompts=spec.include_prompts,
    )


def _summary(result: DiscoveryResult) -> circuit_pb2.CircuitSummary:
    graph, found = result.graph, result.search
    kept_gates = [v.index for v in found.verdicts if v.gate and v.kept]
    return circuit_pb2.CircuitSummary(
        graph=_graph(graph),
        gates_kept=[graph.receiver_name(receiver) for receiver in kept_gates],
        metric=metric(result.metric, found.metric_value, found.metric_full, found.metric_empty),
        num_evaluations=len(found.verdicts),
        num_edges_total=graph.num_edges,
        provenance_request_json=json.dumps(result.request, sort_keys=True),
        provenance_run_json=json.dumps(
            {key: value for key, value in result.run.items() if key != "warnings"}, sort_keys=True
        ),
        warnings=result.warnings,
    )


def _graph(graph: Graph) -> circuit_pb2.Graph:
    return circuit_pb2.Graph(**asdict(graph))


def _decision_order(found: SearchResult) -> list[int]:
    """Kept edges in the order of their verdicts. Every kept edge has been tested."""
    return [v.index for v in found.verdicts if v.kept and not v.gate]


def _edge(graph: Graph, found: SearchResult, index: int) -> circuit_pb2.Edge:
    sender, receiver = graph.edge_ends(index)
    score = float(found.scores[index])
    return circuit_pb2.Edge(
        source=graph.sender_name(sender),
        target=graph.receiver_name(receiver),
        score=None if math.isnan(score) else score,
    )


def _verdict(graph: Graph, verdict: Verdict) -> circuit_pb2.Verdict:
    subject = graph.receiver_name(verdict.index) if verdict.gate else graph.edge_name(verdict.index)
    return circuit_pb2.Verdict(subject=subject, delta=verdict.delta, kept=verdict.kept, gate=verdict.gate)


def _pages(items: Iterator[T]) -> Iterator[list[T]]:
    while page := list(itertools.islice(items, PAGE)):
        yield page


def _timestamp(seconds: float | None) -> Timestamp | None:
    if seconds is None:
        return None
    stamp = Timestamp()
    stamp.FromMicroseconds(int(seconds * 1e6))
    return stamp
