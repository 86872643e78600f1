"""From messages to values. Raises InvalidRequestError for what a message cannot mean."""

from __future__ import annotations

from collections.abc import Iterable

from pahq.v1 import discovery_pb2, patching_pb2, task_pb2

from pahq_server.core.engine import Objective
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.graph import Graph
from pahq_server.core.task import BuiltinTask, Prompt, PromptTask, TaskSpec
from pahq_server.jobs.evaluation import CircuitOrigin
from pahq_server.jobs.session_calls import Hypothesis
from pahq_server.jobs.spec import DiscoverySpec


def discovery_spec(message: discovery_pb2.DiscoverySpec) -> DiscoverySpec:
    return DiscoverySpec(
        objective=objective(message.objective),
        method=message.method,
        threshold=message.threshold if message.HasField("threshold") else None,
        gates=message.gates,
        include_prompts=message.include_prompts,
    )


def origin(message: discovery_pb2.EvaluateCircuitRequest) -> CircuitOrigin | None:
    """Where the circuit of a request was found; None if the client does not tell, or does not mind."""
    if not message.HasField("origin"):
        return None
    g = message.origin.graph
    graph = Graph(g.layers, g.heads, g.kv_heads, g.kv_receivers, g.parallel, g.mlps)  # type: ignore[arg-type]
    return CircuitOrigin(graph, message.origin.model_revision)


def objective(message: discovery_pb2.Objective) -> Objective:
    return Objective(
        model=message.model,
        task=task(message.task),
        metric=message.metric,
        ablation=message.ablation,
        kv_receivers=message.kv_receivers,
        precision=message.precision,
    )


def task(message: task_pb2.Task) -> TaskSpec:
    if message.HasField("builtin"):
        builtin = message.builtin
        return BuiltinTask(builtin.name, builtin.num_prompts, builtin.seed)
    if not message.HasField("prompts"):
        raise InvalidRequestError("task", "is missing")
    prompts = message.prompts
    return PromptTask(
        clean=_prompts("task.clean", prompts.clean),
        corrupted=_prompts("task.corrupted", prompts.corrupted),
        answers=_prompts("task.answers", prompts.answers),
        wrong_answers=_prompts("task.wrong_answers", prompts.wrong_answers),
        positions=tuple(prompts.positions.indices) if prompts.HasField("positions") else None,
    )


def hypothesis(field: str, message: patching_pb2.Hypothesis) -> Hypothesis:
    kind = message.WhichOneof("circuit")
    if kind is None:
        raise InvalidRequestError(field, "has neither removed nor edges")
    edges = message.edges if kind == "edges" else message.removed
    return Hypothesis(edges.names, complete=kind == "edges")


def hypotheses(messages: Iterable[patching_pb2.Hypothesis]) -> list[Hypothesis]:
    return [hypothesis(f"hypotheses[{i}]", message) for i, message in enumerate(messages)]


def _prompts(field: str, messages: Iterable[task_pb2.Prompt]) -> tuple[Prompt, ...]:
    return tuple(_prompt(f"{field}[{i}]", message) for i, message in enumerate(messages))


def _prompt(field: str, message: task_pb2.Prompt) -> Prompt:
    kind = message.WhichOneof("content")
    if kind is None:
        raise InvalidRequestError(field, "has neither text nor token ids")
    return message.text if kind == "text" else tuple(message.token_ids.ids)
