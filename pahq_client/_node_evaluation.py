"""Evaluations of circuits of nodes: the request, and what is read of the answer."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pahq.v1 import circuit_pb2, patching_pb2

from pahq_client import _responses as responses
from pahq_client import checks
from pahq_client._requests import EvaluationOptions, SessionRequest, objective_message
from pahq_client.errors import InvalidRequest, ServerFault
from pahq_client.node_circuit import NodeCircuit, NodeEvaluation, NodeFigures
from pahq_client.node_circuit_file import checked_figures, packed

if TYPE_CHECKING:
    from pahq_client.task import TaskLike


def evaluation_message(
    model: str, task: TaskLike, circuit: NodeCircuit, options: EvaluationOptions
) -> patching_pb2.EvaluateNodesRequest:
    """Converts an evaluation of a circuit of nodes.

    What the options leave open is taken from the circuit, so that it is measured as it was found.

    Raises:
        InvalidRequest: an argument has a wrong type, or is for circuits of edges.
    """
    metric = options.get("metric")
    if metric not in (None, "kl_divergence"):
        detail = f"must be 'kl_divergence' for a circuit of nodes, got {metric!r:.60}; logit difference and "
        raise InvalidRequest("metric", f"{detail}accuracy are measured as well")
    if options.get("kv_receivers") is not None:
        raise InvalidRequest("kv_receivers", "is for circuits of edges: leave it out for one of nodes")
    found = {"ablation": circuit.parameters.get("ablation"), "precision": circuit.request.get("policy")}
    how = {name: value for name, value in found.items() if isinstance(value, str) and value}
    how |= {name: value for name in found if (value := options.get(name)) is not None}  # type: ignore[misc]
    allowed = checks.flag("allow_other_model", options.get("allow_other_model") or False)
    nodes = circuit_pb2.NodeSet(
        layout=circuit_pb2.NodeLayout(**asdict(circuit.layout)),
        model_revision="" if allowed else circuit.model_revision,
        bits=packed(circuit.kept),
    )
    objective = objective_message(SessionRequest(model, task, **how), "kl_divergence")
    return patching_pb2.EvaluateNodesRequest(objective=objective, circuits=[nodes])


def evaluation(
    asked: patching_pb2.EvaluateNodesRequest, message: patching_pb2.EvaluateNodesResponse
) -> NodeEvaluation:
    """Reads the evaluation of one circuit. What was asked for becomes part of it."""
    if len(message.values) != 1:
        raise ServerFault(f"the server sent figures of {len(message.values)} circuits, asked for 1")
    objective = asked.objective
    return NodeEvaluation(
        figures=_figures("figures", message.values[0]),
        full=_figures("figures of the full model", message.full),
        empty=_figures("figures of the empty circuit", message.empty),
        model=objective.model,
        ablation=objective.ablation,
        precision=objective.precision,
        warnings=responses.warnings(message.warnings),
    )


def _figures(name: str, message: patching_pb2.NodeFigures) -> NodeFigures:
    optional = (
        getattr(message, field) if message.HasField(field) else None
        for field in ("logit_difference", "accuracy")
    )
    try:
        return checked_figures(name, NodeFigures(message.kl, message.exact_match, *optional))
    except ValueError as error:
        raise ServerFault(f"the server sent an evaluation that cannot be right: {error}") from None
