"""The only place that turns values into messages and back."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, KeysView, Sequence, Set
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message
from pahq.v1 import circuit_pb2, discovery_pb2, model_pb2, patching_pb2, server_pb2, task_pb2

from pahq_client import checks
from pahq_client import formatting as words
from pahq_client.circuit import Circuit
from pahq_client.circuit_file import parse_json
from pahq_client.elements import CircuitMetric, Edge, Graph, Verdict
from pahq_client.errors import InvalidRequest, ServerFault
from pahq_client.events import Event, EventKind, JobInfo, JobState
from pahq_client._requests import JobRequest as DiscoveryRequest
from pahq_client.request import EvaluationRequest
from pahq_client.request import SessionRequest
from pahq_client.results import Estimate, Evaluation, Limits, MemoryUsage, Model, ServerInfo, TokenizedText
from pahq_client.task import BuiltinTask, Prompt, Task, TaskLike, as_task
from pahq_client.text import printable

V = TypeVar("V")

# Requests: these raise InvalidRequest for arguments of a wrong type.


def spec_message(request: DiscoveryRequest) -> discovery_pb2.DiscoverySpec:
    message = discovery_pb2.DiscoverySpec(
        objective=_measurement(request),
        method=checks.text("method", request.method),
        gates=checks.flag("gates", request.gates),
        include_prompts=checks.flag("include_prompts", request.include_prompts),
    )
    if request.threshold is not None:
        message.threshold = checks.number("threshold", request.threshold)
    return message


def evaluation_message(request: EvaluationRequest) -> discovery_pb2.EvaluateCircuitRequest:
    message = discovery_pb2.EvaluateCircuitRequest(
        objective=_measurement(request), edges=_edge_names(request.edges)
    )
    allowed = checks.flag("allow_other_model", request.allow_other_model)
    if isinstance(request.edges, Circuit) and not allowed:
        message.origin.CopyFrom(_origin(request.edges))
    return message


def _origin(circuit: Circuit) -> discovery_pb2.CircuitOrigin:
    """Where a circuit was found, for the server to compare; a file need not say the revision."""
    g = circuit.graph
    sizes = {name: getattr(g, name) for name in ("layers", "heads", "kv_heads")}
    graph = circuit_pb2.Graph(**sizes, kv_receivers=g.kv_receivers, parallel=g.parallel, mlps=g.mlps)
    return discovery_pb2.CircuitOrigin(graph=graph, model_revision=circuit.model_revision)


def session_message(request: SessionRequest) -> patching_pb2.OpenSessionRequest:
    return patching_pb2.OpenSessionRequest(objective=_measurement(request))


def hypothesis(names: Sequence[str], complete: bool) -> patching_pb2.Hypothesis:
    """A circuit by all of its edges, or by those that the base circuit has beyond it."""
    edges = patching_pb2.EdgeList(names=names)
    return patching_pb2.Hypothesis(edges=edges) if complete else patching_pb2.Hypothesis(removed=edges)


def tokenize_message(
    model: object, texts: str | Iterable[str], prompt: str | None, special_tokens: bool
) -> model_pb2.TokenizeTextsRequest:
    many = (texts,) if isinstance(texts, str) else checks.items("texts", texts)
    return model_pb2.TokenizeTextsRequest(
        model=_model_name(model),
        texts=[checks.text(f"texts[{i}]", text) for i, text in enumerate(many)],
        prompt="" if prompt is None else checks.text("prompt", prompt),
        omit_special_tokens=not checks.flag("special_tokens", special_tokens),
    )


def _model_name(model: object) -> str:
    if isinstance(model, os.PathLike):  # for the server to refuse, like any path
        model = os.fspath(model)
    return checks.text("model", model)


def _measurement(request: DiscoveryRequest | EvaluationRequest | SessionRequest) -> discovery_pb2.Objective:
    return discovery_pb2.Objective(
        model=_model_name(request.model),
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
    """Names of a circuit's edges, in any collection: a circuit has no order."""
    if isinstance(edges, Circuit):
        return [str(edge) for edge in edges.edges]
    if isinstance(edges, Set):
        return edge_set("circuit", edges)
    return [_edge_name(f"circuit[{i}]", edge) for i, edge in enumerate(checks.items("circuit", edges))]


def edge_set(field: str, edges: Circuit | Iterable[str | Edge]) -> list[str]:
    """Names of edges, each once, whatever collection they come in; sets are fine here.

    A set's names are sorted, so that it makes the same request in every process: some precision policies
    go by the last edge that is removed.
    """
    if isinstance(edges, Circuit):
        return [str(edge) for edge in edges.edges]
    if isinstance(edges, Set) and not isinstance(edges, KeysView):
        return sorted({_edge_name(field, edge) for edge in edges})
    items = edges if isinstance(edges, KeysView) else checks.items(field, edges)
    return list(dict.fromkeys(_edge_name(field, edge) for edge in items))


def _edge_name(field: str, edge: object) -> str:
    if not isinstance(edge, str | Edge):
        raise InvalidRequest(field, f"must be an Edge or its name, got {type(edge).__name__}")
    return checks.text(field, str(edge))


# Responses: these raise ServerFault for messages that break the protocol. A server is not believed further
# than it has to be: names are checked like those of a file, numbers for their range, text for what a terminal
# would obey.

# Of one answer: models, or names of metrics. No server has as many.
MOST_LISTED = 10_000
# Edges of one circuit; its verdicts are at most twice as many, since gates are tested, too.
MOST_EDGES = 5_000_000
MOST_EMPTY_PAGES = 1000
# Of a circuit that holds its prompts: more than a request could have brought.
MOST_PROMPT_BYTES = 64 << 20
MOST_NAME = 1000
MOST_TEXT = 10_000
# Times before and after these cannot be shown on every machine's clock.
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def event(message: discovery_pb2.Event) -> Event:
    return Event(
        sequence=_count("sequence", message.sequence),
        kind=EventKind(_enum_name(discovery_pb2.EventKind, message.kind, "EVENT_KIND_")),
        state=job_state(message.state),
        **_progress(message.progress),
        metric=message.progress.metric,
        error=_text(message.error_message),
        queue_position=_place(message),
        estimated_start=_time(message, "estimated_start_time"),
    )


def job_info(message: discovery_pb2.Discovery) -> JobInfo:
    spec, progress = message.spec, message.progress
    measured = metric(message.metric) if message.HasField("metric") else None
    return JobInfo(
        name=resource_name(message.name),
        state=job_state(message.state),
        model=_text(spec.objective.model),
        method=_text(spec.method),
        metric=_text(spec.objective.metric),
        threshold=spec.threshold if spec.HasField("threshold") else None,
        task=_text(words.task(_task_facts(message))),
        num_prompts=_count("num_prompts", message.num_prompts),
        **_progress(progress),
        # The search's own value is another one: of a sweep over single edges, that of the full model.
        metric_value=measured.value if measured else progress.metric,
        metric_full=measured.full if measured else None,
        metric_empty=measured.empty if measured else None,
        queue_position=_place(message),
        estimated_start=_time(message, "estimated_start_time"),
        charged_s=message.charged_seconds if math.isfinite(message.charged_seconds) else 0.0,
        created=_time(message, "create_time"),
        started=_time(message, "start_time"),
        ended=_time(message, "end_time"),
        error=_text(message.error_message),
        warnings=warnings(message.warnings),
    )


def _task_facts(message: discovery_pb2.Discovery) -> dict[str, object]:
    task = message.spec.objective.task
    facts: dict[str, object] = {"num_prompts": message.num_prompts}
    if not task.HasField("builtin"):
        return facts
    return facts | {"name": task.builtin.name, "seed": task.builtin.seed}


def warnings(texts: Sequence[str]) -> tuple[str, ...]:
    """Warnings of an answer, as text for people."""
    return tuple(map(_text, _few("warnings", texts)))


def _progress(message: discovery_pb2.Progress) -> dict[str, Any]:
    """What an event and a JobInfo tell alike. A time left that is none is not known."""
    eta_s = message.eta_seconds if message.HasField("eta_seconds") else math.nan
    names = ("decided", "total", "kept", "evaluations")
    counts = {name: _count(name, getattr(message, name)) for name in names}
    return {**counts, "eta_s": eta_s if math.isfinite(eta_s) and eta_s >= 0 else None}


def _place(message: discovery_pb2.Event | discovery_pb2.Discovery) -> int | None:
    return message.queue_position if message.HasField("queue_position") else None


def _count(name: str, value: int) -> int:
    if value < 0:
        raise ServerFault(f"the server sent a negative number as {name}: {value}")
    return value


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise ServerFault(f"the server sent {value} as {name}, which must be a finite number")
    return value


def _text(value: str) -> str:
    """Text for people. What a terminal would obey is escaped, what is endless is cut off."""
    return printable(value[:MOST_TEXT])


def resource_name(value: str) -> str:
    """A name by which the server is to be asked again, so one that must not be changed."""
    if not value or len(value) > MOST_NAME or not value.isprintable():
        raise ServerFault(f"the server sent a name that cannot be one: {value[:100]!r}")
    return value


def _time(message: Message, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    try:
        time: datetime = getattr(message, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise ServerFault(f"the server sent a {field} that is no time: {error}") from None
    if not EARLIEST <= time < LATEST:
        raise ServerFault(f"the server sent a {field} that cannot be right: {time:%Y-%m-%d}")
    return time


def job_state(value: int) -> JobState:
    return JobState(_enum_name(discovery_pb2.DiscoveryState, value, "DISCOVERY_STATE_"))


def _enum_name(enum: Any, value: int, prefix: str) -> str:
    # 0 is UNSPECIFIED in every enum; a number beyond the known ones comes from a newer server.
    if value not in enum.values() or value == 0:
        raise ServerFault(f"the server sent {prefix}{value}, which this client does not know")
    name: str = enum.Name(value)
    return name.removeprefix(prefix)


def evaluation(asked: discovery_pb2.Objective, message: discovery_pb2.EvaluateCircuitResponse) -> Evaluation:
    """The answer, with what was asked for: a server measures that, or refuses."""
    measured = metric(message.metric)
    return Evaluation(
        metric=measured.name,
        value=measured.value,
        full=measured.full,
        empty=measured.empty,
        num_edges_total=_count("num_edges_total", message.num_edges_total),
        model=asked.model,
        ablation=asked.ablation,
        kv_receivers=asked.kv_receivers,
        precision=asked.precision,
        warnings=warnings(message.warnings),
    )


def metric(message: circuit_pb2.Metric) -> CircuitMetric:
    value, full, empty = (_finite(f"metric.{n}", getattr(message, n)) for n in ("value", "full", "empty"))
    return CircuitMetric(_text(message.name), value, full, empty)


def scores(values: Iterable[float]) -> list[float]:
    return [_finite("a metric", value) for value in values]


def estimate(message: discovery_pb2.Estimate) -> Estimate:
    _count("memory_bytes", message.memory_bytes)
    for name in ("least_seconds", "most_seconds"):
        _finite(name, getattr(message, name))
    return _same_fields(Estimate, message)


def models(message: model_pb2.ListModelsResponse) -> list[Model]:
    return [model(each) for each in _few("models", message.models)]


def model(message: model_pb2.Model) -> Model:
    resource_name(message.name)
    return _same_fields(Model, message)


def tokenized_texts(
    request: model_pb2.TokenizeTextsRequest, message: model_pb2.TokenizeTextsResponse
) -> list[TokenizedText]:
    """One for each text of the request. Tokens are as the vocabulary has them, for programs to compare."""
    if [each.text for each in message.texts] != list(request.texts):
        raise ServerFault("the server sent the tokens of other texts than those that were asked for")
    return [_tokenized_text(each) for each in message.texts]


def _tokenized_text(message: model_pb2.TokenizedText) -> TokenizedText:
    if len(message.ids) != len(message.tokens):
        raise ServerFault(f"the server sent {len(message.tokens)} tokens for {len(message.ids)} token ids")
    return TokenizedText(
        text=message.text,
        ids=tuple(message.ids),
        tokens=tuple(message.tokens),
        answer_id=message.answer_id if message.HasField("answer_id") else None,
        answer_token=message.answer_token,
        answer_note=printable(message.answer_note),
    )


def server_info(message: server_pb2.ServerInfo) -> ServerInfo:
    memory = _same_fields(MemoryUsage, message.memory) if message.HasField("memory") else None
    limits = Limits(**{field.name: value for field, value in message.limits.ListFields()})
    return _same_fields(ServerInfo, message, memory=memory, limits=limits)


def _same_fields(cls: type[V], message: Message, **given: object) -> V:
    """Copies a message into a dataclass with the same field names; repeated fields become tuples.

    Fields that are messages themselves are ``given``.
    """
    names = [field.name for field in dataclasses.fields(cls) if field.name not in given]  # type: ignore[arg-type]
    return cls(**{name: _plain(name, getattr(message, name)) for name in names}, **given)


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int | float):
        return value
    return tuple(_plain(name, item) for item in _few(name, value))


def _few(name: str, items: Sequence[V]) -> Sequence[V]:
    if len(items) > MOST_LISTED:
        raise ServerFault(f"the server sent {len(items)} {name}; more than {MOST_LISTED} cannot be right")
    return items


class CircuitPages:
    """Puts the pages of GetCircuit together as they come: what is wrong is refused before more is read."""

    def __init__(self) -> None:
        self._summary: circuit_pb2.CircuitSummary | None = None
        self._provenance: dict[str, Any] = {}
        self._graph: Graph | None = None
        self._edges: list[Edge] = []
        self._verdicts: list[Verdict] = []
        self._seen: set[tuple[str, str]] = set()
        self._names: dict[str, str] = {}  # each node's name once, though many edges bear it
        self._empty_pages = 0
        self._prompts: list[str] = []  # JSON, in parts
        self._prompt_bytes = 0

    def add(self, page: discovery_pb2.GetCircuitResponse) -> None:
        """Takes in the next page."""
        if page.HasField("summary"):
            if self._summary is not None:
                raise ServerFault("the server sent a circuit with two summaries")
            self._summary = page.summary
            self._provenance = {
                "request": _json_object("a provenance", page.summary.provenance_request_json),
                "run": _json_object("a provenance", page.summary.provenance_run_json),
            }
            if page.summary.warnings:
                self._provenance["run"]["warnings"] = list(warnings(page.summary.warnings))
            self._graph = graph(page.summary.graph)
        elif not page.edges and not page.verdicts and not page.prompts_json:
            self._empty_pages += 1
        if self._graph is None:
            raise ServerFault("the server sent a circuit without a summary")
        if len(self._edges) + len(page.edges) > MOST_EDGES:
            raise ServerFault(f"the server sent a circuit of more than {MOST_EDGES} edges")
        if len(self._verdicts) + len(page.verdicts) > 2 * MOST_EDGES:
            raise ServerFault(f"the server sent a circuit with more than {2 * MOST_EDGES} verdicts")
        self._prompt_bytes += len(page.prompts_json)
        if self._prompt_bytes > MOST_PROMPT_BYTES:
            raise ServerFault(f"the server sent more than {MOST_PROMPT_BYTES} bytes of prompts")
        self._prompts.append(page.prompts_json)
        if self._empty_pages > MOST_EMPTY_PAGES:
            raise ServerFault("the server sends pages of a circuit that hold nothing")
        self._edges += (self._edge(edge, self._graph) for edge in page.edges)
        self._verdicts += (_verdict(verdict, self._graph) for verdict in page.verdicts)

    def result(self) -> Circuit:
        """The circuit, after the last page."""
        if self._summary is None or self._graph is None:
            raise ServerFault("the server sent a circuit without a summary")
        summary = self._summary
        if summary.num_evaluations != len(self._verdicts):
            raise ServerFault(
                f"the server sent {len(self._verdicts)} verdicts of {summary.num_evaluations} evaluations: "
                "the circuit did not arrive whole"
            )
        for gate in summary.gates_kept:
            if not self._graph.has_receiver(gate):
                raise ServerFault(f"the server sent {gate[:100]!r} as a gate, which is not in its graph")
        if self._prompt_bytes:
            self._provenance["run"]["prompts"] = _json_object("a list of prompts", "".join(self._prompts))
        return Circuit(
            edges=tuple(self._edges),
            verdicts=tuple(self._verdicts),
            gates_kept=tuple(summary.gates_kept),
            graph=self._graph,
            metric=metric(summary.metric),
            num_evaluations=_count("num_evaluations", summary.num_evaluations),
            num_edges_total=_count("num_edges_total", summary.num_edges_total),
            provenance=self._provenance,
        )

    def _edge(self, message: circuit_pb2.Edge, graph: Graph) -> Edge:
        if not graph.has_edge(message.source, message.target):
            raise ServerFault(
                f"the server sent an edge that is not in its graph: {message.source[:100]!r} to "
                f"{message.target[:100]!r}"
            )
        source, target = (self._names.setdefault(name, name) for name in (message.source, message.target))
        if (source, target) in self._seen:
            raise ServerFault(f"the server sent the edge {source}->{target} twice")
        self._seen.add((source, target))
        return Edge(source, target, _finite("a score", message.score) if message.HasField("score") else None)


def circuit(pages: Iterable[discovery_pb2.GetCircuitResponse]) -> Circuit:
    """Puts the pages of GetCircuit together."""
    read = CircuitPages()
    for page in pages:
        read.add(page)
    return read.result()


def graph(g: circuit_pb2.Graph) -> Graph:
    if g.kv_receivers not in ("group", "query"):
        raise ServerFault(f"the server sent a graph whose kv_receivers are {g.kv_receivers[:100]!r}")
    try:
        return Graph(g.layers, g.heads, g.kv_heads, g.kv_receivers, g.parallel, g.mlps)
    except InvalidRequest as error:
        raise ServerFault(f"the server sent a graph that no model has: {error}") from None


def _verdict(message: circuit_pb2.Verdict, graph: Graph) -> Verdict:
    subject = message.subject
    known = graph.has_receiver(subject) if message.gate else graph.has_edge(*subject.partition("->")[::2])
    if not known:
        raise ServerFault(f"the server sent a verdict on {subject[:100]!r}, which is not in its graph")
    return Verdict(subject, _finite("a verdict's delta", message.delta), message.kept, message.gate)


def _json_object(what: str, text: str) -> dict[str, Any]:
    try:
        value = parse_json(text or "{}")
    except ValueError as error:
        raise ServerFault(f"the server sent {what} that is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ServerFault(f"the server sent {what} that is not a JSON object")
    return value
