"""Requests: checks the arguments of calls and converts them to messages.

The classes have the names and defaults of the arguments of `Client` and `AsyncClient`; a test compares them.
Arguments of a wrong type raise InvalidRequest here; the server refuses wrong values.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, KeysView, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypedDict

from google.protobuf.struct_pb2 import Struct
from pahq.v1 import circuit_pb2, jobs_pb2, methods_pb2, model_pb2, patching_pb2, task_pb2

from pahq_client import checks
from pahq_client.circuit import Circuit
from pahq_client.errors import InvalidRequest
from pahq_client.graph import Edge
from pahq_client.task import BuiltinTask, Prompt, Task, TaskLike, as_task


@dataclass(frozen=True)
class JobRequest:
    """What a job is to do; described at `pahq_client.discover`."""

    model: str
    task: TaskLike
    threshold: float | None = None
    method: str = "acdc"
    metric: str = "kl_divergence"
    ablation: str = "resample"
    gates: bool = True
    kv_receivers: str = "group"
    precision: str = "fp32"
    include_prompts: bool = False
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SessionRequest:
    """What a session keeps ready; described at `Client.session`."""

    model: str
    task: TaskLike
    metric: str = "kl_divergence"
    ablation: str = "resample"
    kv_receivers: str = "group"
    precision: str = "fp32"


class EvaluationOptions(TypedDict, total=False):
    """Keyword arguments of an evaluation beyond model, task and circuit; None means the same as absent."""

    metric: str | None
    ablation: str | None
    kv_receivers: str | None
    precision: str | None
    allow_other_model: bool


@dataclass(frozen=True)
class EvaluationRequest:
    """What an evaluation measures; described at `Client.evaluate`."""

    model: str
    task: TaskLike
    edges: Circuit | Iterable[str | Edge]
    metric: str = "kl_divergence"
    ablation: str = "resample"
    kv_receivers: str = "group"
    precision: str = "fp32"
    allow_other_model: bool = False

    @classmethod
    def of(
        cls, model: str, task: TaskLike, edges: Circuit | Iterable[str | Edge], options: EvaluationOptions
    ) -> EvaluationRequest:
        """Takes what the options leave open from the circuit, so that it is measured as it was found."""
        known = _found_with(edges) if isinstance(edges, Circuit) else {}
        given = {key: value for key, value in options.items() if value is not None}
        return cls(model, task, edges, **{**known, **given})  # type: ignore[arg-type]


def _found_with(circuit: Circuit) -> dict[str, str]:
    asked = {
        "ablation": circuit.parameters.get("ablation"),
        "precision": circuit.provenance.get("request", {}).get("policy"),
        "metric": circuit.metric.name,
        "kv_receivers": circuit.graph.kv_receivers,
    }
    return {key: value for key, value in asked.items() if isinstance(value, str)}


# Conversion to messages.

# Methods whose parameters are arguments of `discover`.
OWN_ARGUMENTS = ("acdc", "single_edge", "eap")


def job_spec(request: JobRequest) -> jobs_pb2.JobSpec:
    """Converts a JobRequest. Arguments that the method does not have are left out of its message."""
    spec = jobs_pb2.JobSpec(
        objective=_objective(request), include_prompts=checks.flag("include_prompts", request.include_prompts)
    )
    method = checks.text("method", request.method)
    threshold = None if request.threshold is None else checks.number("threshold", request.threshold)
    gates = checks.flag("gates", request.gates)
    if method in OWN_ARGUMENTS and request.parameters is not None:
        detail = f"is for methods without arguments of their own; {method!r} is set by threshold and gates"
        raise InvalidRequest("parameters", detail)
    match method:
        case "acdc":
            spec.acdc.CopyFrom(methods_pb2.AcdcParameters(threshold=threshold, gates=gates))
        case "single_edge":
            spec.single_edge.CopyFrom(methods_pb2.SingleEdgeParameters(threshold=threshold))
        case "eap":
            if threshold is not None:
                detail = "is not for method 'eap', which scores every edge: choose edges by their scores"
                raise InvalidRequest("threshold", detail)
            spec.eap.SetInParent()
        case _:
            given = {} if threshold is None else {"threshold": threshold}
            parameters = _struct({**given, **_mapping("parameters", request.parameters)})
            spec.extension.CopyFrom(methods_pb2.ExtensionParameters(method=method, parameters=parameters))
    return spec


def argument_of(field: str) -> str:
    """Returns the argument of `discover` for a field of a request: ``threshold`` for ``acdc.threshold``.

    Arguments have the names of the methods' parameters. Other fields are returned unchanged.
    """
    method, dot, parameter = field.partition(".")
    if not dot or method not in (*OWN_ARGUMENTS, "extension"):
        return field
    return parameter


def _mapping(field: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidRequest(field, f"must be a dictionary with names as keys, got {type(value).__name__}")
    return value


def _struct(parameters: Mapping[str, Any]) -> Struct:
    struct = Struct()
    try:
        struct.update(parameters)
    except (ValueError, TypeError, AttributeError, RecursionError, UnicodeError) as error:
        detail = f"must hold numbers, text, booleans, None, and lists and dictionaries of these: {error}"
        raise InvalidRequest("parameters", detail) from None
    return struct


def evaluation_message(request: EvaluationRequest) -> patching_pb2.EvaluateCircuitRequest:
    """Converts an EvaluationRequest."""
    message = patching_pb2.EvaluateCircuitRequest(
        objective=_objective(request), edges=_edge_names(request.edges)
    )
    allowed = checks.flag("allow_other_model", request.allow_other_model)
    if isinstance(request.edges, Circuit) and not allowed:
        message.origin.CopyFrom(_origin(request.edges))
    return message


def _origin(circuit: Circuit) -> patching_pb2.CircuitOrigin:
    """Returns the model that a circuit was found in, for the server to compare; the revision may be empty."""
    g = circuit.graph
    sizes = {name: getattr(g, name) for name in ("layers", "heads", "kv_heads")}
    graph = circuit_pb2.Graph(**sizes, kv_receivers=g.kv_receivers, parallel=g.parallel, mlps=g.mlps)
    return patching_pb2.CircuitOrigin(graph=graph, model_revision=circuit.model_revision)


def session_message(request: SessionRequest) -> patching_pb2.OpenSessionRequest:
    """Converts a SessionRequest."""
    return patching_pb2.OpenSessionRequest(objective=_objective(request))


def circuit(names: Sequence[str], complete: bool) -> patching_pb2.SessionCircuit:
    """Describes a circuit by all of its edges (``complete``), or by the edges that the base circuit loses."""
    edges = patching_pb2.EdgeList(names=names)
    return (
        patching_pb2.SessionCircuit(edges=edges) if complete else patching_pb2.SessionCircuit(removed=edges)
    )


def tokenize_message(
    model: object, texts: str | Iterable[str], prompt: str | None, special_tokens: bool
) -> model_pb2.TokenizeTextsRequest:
    """Converts the arguments of `Client.tokenize`."""
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


def _objective(request: JobRequest | EvaluationRequest | SessionRequest) -> jobs_pb2.Objective:
    return jobs_pb2.Objective(
        model=_model_name(request.model),
        task=task_message(request.task),
        metric=checks.text("metric", request.metric),
        ablation=checks.text("ablation", request.ablation),
        kv_receivers=checks.text("kv_receivers", request.kv_receivers),
        precision=checks.text("precision", request.precision),
    )


def task_message(task: TaskLike) -> task_pb2.Task:
    """Converts a task, or the name of a built-in one."""
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
    """Returns the names of a circuit's edges from any collection: a circuit has no order."""
    if isinstance(edges, Circuit):
        return [str(edge) for edge in edges.edges]
    if isinstance(edges, Set):
        return edge_set("circuit", edges)
    return [_edge_name(f"circuit[{i}]", edge) for i, edge in enumerate(checks.items("circuit", edges))]


def edge_set(field: str, edges: Circuit | Iterable[str | Edge]) -> list[str]:
    """Returns names of edges, each once, from any collection, sets too.

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
