"""The only place that turns values into messages and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence, Set
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message
from pahq.v1 import circuit_pb2, discovery_pb2, model_pb2, patching_pb2, server_pb2, task_pb2

from pahq_client import checks, words
from pahq_client.circuit import Circuit
from pahq_client.circuit_file import parse_json
from pahq_client.elements import CircuitMetric, Edge, Graph, Verdict
from pahq_client.errors import InvalidRequest, ServerFault
from pahq_client.events import Event, EventKind, JobInfo, JobState
from pahq_client.request import DiscoveryRequest, EvaluationRequest, SessionRequest
from pahq_client.results import Estimate, Evaluation, Limits, MemoryUsage, Model, ServerInfo
from pahq_client.task import BuiltinTask, Prompt, Task, TaskLike, as_task

V = TypeVar("V")

# Requests: these raise InvalidRequest for arguments of a wrong type.


def spec_message(request: DiscoveryRequest) -> discovery_pb2.DiscoverySpec:
    message = discovery_pb2.DiscoverySpec(
        measurement=_measurement(request),
        method=checks.text("method", request.method),
        gates=checks.flag("gates", request.gates),
        include_prompts=checks.flag("include_prompts", request.include_prompts),
    )
    if request.threshold is not None:
        message.threshold = checks.number("threshold", request.threshold)
    return message


def evaluation_message(request: EvaluationRequest) -> discovery_pb2.EvaluateCircuitRequest:
    message = discovery_pb2.EvaluateCircuitRequest(
        measurement=_measurement(request), edges=_edge_names(request.edges)
    )
    allowed = checks.flag("allow_other_model", request.allow_other_model)
    if isinstance(request.edges, Circuit) and not allowed:
        message.origin.CopyFrom(_origin(request.edges))
    return message


def _origin(circuit: Circuit) -> discovery_pb2.CircuitOrigin:
    """Where a circuit was found, for the server to compare; a file need not say the revision."""
    g = circuit.graph
    sizes = {name: getattr(g, name) for name in ("layers", "heads", "kv_heads")}
    for name, size in sizes.items():
        checks.integer(f"circuit.graph.{name}", size, bits=32)
    graph = circuit_pb2.Graph(**sizes, kv_receivers=g.kv_receivers, parallel=g.parallel, mlps=g.mlps)
    return discovery_pb2.CircuitOrigin(graph=graph, model_revision=circuit.model_revision)


def session_message(request: SessionRequest) -> patching_pb2.OpenSessionRequest:
    return patching_pb2.OpenSessionRequest(measurement=_measurement(request))


def hypothesis(names: Sequence[str], complete: bool) -> patching_pb2.Hypothesis:
    """A circuit by all of its edges, or by those that the base circuit has beyond it."""
    edges = patching_pb2.EdgeList(names=names)
    return patching_pb2.Hypothesis(edges=edges) if complete else patching_pb2.Hypothesis(removed=edges)


def _measurement(request: DiscoveryRequest | EvaluationRequest | SessionRequest) -> discovery_pb2.Measurement:
    model: object = request.model
    if isinstance(model, os.PathLike):  # for the server to refuse, like any path
        model = os.fspath(model)
    return discovery_pb2.Measurement(
        model=checks.text("model", model),
        task=task_message(request.task),
        metric=checks.text("metric", request.metric),
        ablation=checks.text("ablation", request.ablation),
        kv_receivers=checks.text("kv_receivers", request.kv_receivers),
        precision=checks.text("precision", request.precision),
    )


def task_message(task: TaskLike) -> task_pb2.Task:
    task = as_task(task)
    if isinstance(task, BuiltinTask):
        return task_pb2.Task(builtin=task_pb2.BuiltinTask(**dataclasses.asdict(task)))
    return task_pb2.Task(prompts=_prompt_task(task))


def _prompt_task(task: Task) -> task_pb2.PromptTask:
    message = task_pb2.PromptTask()
    for name in ("clean", "corrupted", "answers", "wrong_answers"):
        prompts: Iterable[Prompt] = getattr(task, name) or ()
        getattr(message, name).extend(_prompt(prompt) for prompt in prompts)
    if not isinstance(task.positions, str):
        message.positions.SetInParent()  # an empty list is not the same as none
        message.positions.indices.extend(task.positions)
    return message


def _prompt(prompt: Prompt) -> task_pb2.Prompt:
    if isinstance(prompt, str):
        return task_pb2.Prompt(text=prompt)
    return task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=prompt))


def _edge_names(edges: Circuit | Iterable[str | Edge]) -> list[str]:
    if isinstance(edges, Circuit):
        return [str(edge) for edge in edges.edges]
    return [_edge_name(f"circuit[{i}]", edge) for i, edge in enumerate(checks.items("circuit", edges))]


def edge_set(field: str, edges: Circuit | Iterable[str | Edge]) -> list[str]:
    """Names of edges, each once, whatever collection they come in; sets are fine here."""
    if isinstance(edges, Circuit):
        return [str(edge) for edge in edges.edges]
    items = edges if isinstance(edges, Set) else checks.items(field, edges)
    return list(dict.fromkeys(_edge_name(field, edge) for edge in items))


def _edge_name(field: str, edge: object) -> str:
    if not isinstance(edge, str | Edge):
        raise InvalidRequest(field, f"must be an Edge or its name, got {type(edge).__name__}")
    return checks.text(field, str(edge))


# Responses: these raise ServerFault for messages that break the protocol.


def event(message: discovery_pb2.Event) -> Event:
    progress = message.progress
    return Event(
        sequence=message.sequence,
        kind=EventKind(_enum_name(discovery_pb2.EventKind, message.kind, "EVENT_KIND_")),
        state=job_state(message.state),
        decided=progress.decided,
        total=progress.total,
        kept=progress.kept,
        metric=progress.metric,
        evaluations=progress.evaluations,
        eta_s=progress.eta_seconds if progress.HasField("eta_seconds") else None,
        error=message.error_message,
        queue_position=message.queue_position if message.HasField("queue_position") else None,
        estimated_start=_time(message, "estimated_start_time"),
    )


def job_info(message: discovery_pb2.Discovery) -> JobInfo:
    spec, progress = message.spec, message.progress
    return JobInfo(
        name=message.name,
        state=job_state(message.state),
        model=spec.measurement.model,
        method=spec.method,
        metric=spec.measurement.metric,
        threshold=spec.threshold if spec.HasField("threshold") else None,
        task=words.task(_task_facts(message)),
        num_prompts=message.num_prompts,
        decided=progress.decided,
        total=progress.total,
        kept=progress.kept,
        # The search's own value is another one: of a sweep over single edges, that of the full model.
        metric_value=message.metric.value if message.HasField("metric") else progress.metric,
        metric_full=message.metric.full if message.HasField("metric") else None,
        metric_empty=message.metric.empty if message.HasField("metric") else None,
        evaluations=progress.evaluations,
        eta_s=progress.eta_seconds if progress.HasField("eta_seconds") else None,
        queue_position=message.queue_position if message.HasField("queue_position") else None,
        estimated_start=_time(message, "estimated_start_time"),
        charged_s=message.charged_seconds,
        created=_time(message, "create_time"),
        started=_time(message, "start_time"),
        ended=_time(message, "end_time"),
        error=message.error_message,
        warnings=tuple(message.warnings),
    )


def _task_facts(message: discovery_pb2.Discovery) -> dict[str, object]:
    task = message.spec.measurement.task
    facts: dict[str, object] = {"num_prompts": message.num_prompts}
    if not task.HasField("builtin"):
        return facts
    return facts | {"name": task.builtin.name, "seed": task.builtin.seed}


def _time(message: Message, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    try:
        time: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ServerFault(f"the server sent a {field} that is no time: {error}") from None
    return time


def job_state(value: int) -> JobState:
    return JobState(_enum_name(discovery_pb2.DiscoveryState, value, "DISCOVERY_STATE_"))


def _enum_name(enum: Any, value: int, prefix: str) -> str:
    # 0 is UNSPECIFIED in every enum; a number beyond the known ones comes from a newer server.
    if value not in enum.values() or value == 0:
        raise ServerFault(f"the server sent {prefix}{value}, which this client does not know")
    name: str = enum.Name(value)
    return name.removeprefix(prefix)


def evaluation(
    asked: discovery_pb2.Measurement, message: discovery_pb2.EvaluateCircuitResponse
) -> Evaluation:
    """The answer, with what was asked for: a server measures that, or refuses."""
    metric = message.metric
    return Evaluation(
        metric=metric.name,
        value=metric.value,
        full=metric.full,
        empty=metric.empty,
        num_edges_total=message.num_edges_total,
        model=asked.model,
        ablation=asked.ablation,
        kv_receivers=asked.kv_receivers,
        precision=asked.precision,
        warnings=tuple(message.warnings),
    )


def estimate(message: discovery_pb2.Estimate) -> Estimate:
    return _same_fields(Estimate, message)


def model(message: model_pb2.Model) -> Model:
    return _same_fields(Model, message)


def server_info(message: server_pb2.ServerInfo) -> ServerInfo:
    memory = _same_fields(MemoryUsage, message.memory) if message.HasField("memory") else None
    limits = Limits(**{field.name: value for field, value in message.limits.ListFields()})
    return _same_fields(ServerInfo, message, memory=memory, limits=limits)


def _same_fields(cls: type[V], message: Message, **given: object) -> V:
    """Copies a message into a dataclass with the same field names; repeated fields become tuples.

    Fields that are messages themselves are ``given``.
    """
    names = [field.name for field in dataclasses.fields(cls) if field.name not in given]  # type: ignore[arg-type]
    values = {name: getattr(message, name) for name in names}
    scalars = (str, int, float)
    return cls(**{name: v if isinstance(v, scalars) else tuple(v) for name, v in values.items()}, **given)


def circuit(pages: Iterable[discovery_pb2.GetCircuitResponse]) -> Circuit:
    """Puts the pages of GetCircuit together."""
    summary: circuit_pb2.CircuitSummary | None = None
    edges: list[Edge] = []
    verdicts: list[Verdict] = []
    prompts: list[str] = []
    for page in pages:
        if page.HasField("summary"):
            summary = page.summary
        edges += (_edge(edge) for edge in page.edges)
        verdicts += (Verdict(v.subject, v.delta, v.kept, v.gate) for v in page.verdicts)
        prompts.append(page.prompts_json)
    if summary is None:
        raise ServerFault("the server sent a circuit without a summary")
    return _circuit(summary, tuple(edges), tuple(verdicts), "".join(prompts))


def _circuit(
    summary: circuit_pb2.CircuitSummary, edges: tuple[Edge, ...], verdicts: tuple[Verdict, ...], prompts: str
) -> Circuit:
    metric, run = summary.metric, _json_object("a provenance", summary.provenance_run_json)
    if summary.warnings:
        run["warnings"] = list(summary.warnings)
    if prompts:
        run["prompts"] = _json_object("a list of prompts", prompts)
    return Circuit(
        edges=edges,
        verdicts=verdicts,
        gates_kept=tuple(summary.gates_kept),
        graph=graph(summary.graph),
        metric=CircuitMetric(metric.name, metric.value, metric.full, metric.empty),
        num_evaluations=summary.num_evaluations,
        num_edges_total=summary.num_edges_total,
        provenance={
            "request": _json_object("a provenance", summary.provenance_request_json),
            "run": run,
        },
    )


def graph(g: circuit_pb2.Graph) -> Graph:
    return Graph(g.layers, g.heads, g.kv_heads, g.kv_receivers, g.parallel, g.mlps)


def _edge(message: circuit_pb2.Edge) -> Edge:
    return Edge(message.source, message.target, message.score if message.HasField("score") else None)


def _json_object(what: str, text: str) -> dict[str, Any]:
    try:
        value = parse_json(text or "{}")
    except ValueError as error:
        raise ServerFault(f"the server sent {what} that is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ServerFault(f"the server sent {what} that is not a JSON object")
    return value
