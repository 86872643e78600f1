"""Circuits of nodes, measured on a task: as a message, and what the server answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from pahq.v1 import circuit_pb2, patching_pb2

from pahq_client import checks, node_circuit_file
from pahq_client._requests import EvaluationOptions, EvaluationRequest, objective_message
from pahq_client._responses import warnings
from pahq_client.errors import InvalidRequest, ServerFault
from pahq_client.graph import CircuitMetric
from pahq_client.node_circuit import NodeCircuit, NodeFigures
from pahq_client.task import TaskLike

METRIC = "kl_divergence"


@dataclass(frozen=True)
class NodeEvaluation:
    """How a circuit of nodes does on a task, beside the full model and the empty circuit.

    Args:
        figures: of the circuit.
        full: of the full model under the same precision.
        empty: of the empty circuit.
        model: name of the model that it was measured on.
        ablation, precision: how it was measured, also where the caller left it open.
        warnings: what may mislead about the figures, each with what to do.
    """

    figures: NodeFigures
    full: NodeFigures
    empty: NodeFigures
    model: str = ""
    ablation: str = ""
    precision: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def faithfulness(self) -> float | None:
        """How much of the way of the KL from the empty circuit (0) to the full model (1) the circuit goes.

        None if the two measure the same, so that there is no way to go.
        """
        return CircuitMetric(METRIC, self.figures.kl, self.full.kl, self.empty.kl).faithfulness


def node_evaluation_message(
    model: str, task: TaskLike, circuit: NodeCircuit, options: EvaluationOptions
) -> patching_pb2.EvaluateNodesRequest:
    """Converts an evaluation of a circuit of nodes. What the options leave open is as it was found.

    Raises:
        InvalidRequest: an argument is wrong.
    """
    metric = options.get("metric")
    if metric not in (None, METRIC):
        detail = f"circuits of nodes are measured by {METRIC!r}, with all other figures, got {metric!r}"
        raise InvalidRequest("metric", f"{detail}. Leave it out")
    if options.get("kv_receivers") is not None:
        raise InvalidRequest("kv_receivers", "means nothing for circuits of nodes: leave it out")
    allowed = checks.flag("allow_other_model", options.get("allow_other_model", False))
    asked = EvaluationRequest(
        *(model, task, (), METRIC),
        ablation=_chosen(options.get("ablation"), circuit.parameters.get("ablation"), "resample"),
        kv_receivers="group",  # which has no effect on nodes
        precision=_chosen(options.get("precision"), circuit.request.get("policy"), "fp32"),
    )
    nodes = circuit_pb2.NodeSet(
        layout=circuit_pb2.NodeLayout(**asdict(circuit.layout)),
        model_revision="" if allowed else circuit.model_revision,
        bits=node_circuit_file.packed(circuit.kept).tobytes(),
    )
    return patching_pb2.EvaluateNodesRequest(objective=objective_message(asked, METRIC), circuits=[nodes])


def _chosen(given: str | None, found: object, usual: str) -> str:
    if given is not None:
        return given
    return found if isinstance(found, str) and found else usual


def read_node_evaluation(
    asked: patching_pb2.EvaluateNodesRequest, message: patching_pb2.EvaluateNodesResponse
) -> NodeEvaluation:
    """Reads the evaluation of the one circuit of a request."""
    if len(message.values) != 1:
        raise ServerFault(f"the server sent the figures of {len(message.values)} circuits, asked for 1")
    objective = asked.objective
    return NodeEvaluation(
        _figures("the circuit", message.values[0]),
        _figures("the full model", message.full),
        _figures("the empty circuit", message.empty),
        objective.model,
        objective.ablation,
        objective.precision,
        warnings(message.warnings),
    )


def _figures(whose: str, message: patching_pb2.NodeFigures) -> NodeFigures:
    values: Mapping[str, float] = {field.name: value for field, value in message.ListFields()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise ServerFault(f"the server sent {value} as {name} of {whose}, which must be a finite number")
    optional = {name: values.get(name) for name in ("logit_difference", "accuracy")}
    try:
        figures = NodeFigures(message.kl, message.exact_match, **optional)
        return node_circuit_file.checked_figures(f"figures of {whose}", figures)
    except ValueError as error:
        raise ServerFault(f"the server sent an evaluation that cannot be right: {error}") from None
