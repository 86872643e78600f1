"""Conversion of circuits of nodes and their figures; see `conversion`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from pahq.v1 import circuit_pb2, patching_pb2

from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.pruning import MaskFigures, NodeLayout, NodeSet
from pahq_server.jobs.node_evaluation import NodeFigures


def read_node_sets(messages: Iterable[circuit_pb2.NodeSet]) -> list[NodeSet]:
    """Reads the circuits of the field ``circuits`` of an evaluation."""
    return [_read_node_set(f"circuits[{i}]", message) for i, message in enumerate(messages)]


def _read_node_set(field: str, message: circuit_pb2.NodeSet) -> NodeSet:
    if not message.HasField("layout"):
        raise InvalidRequestError(f"{field}.layout", "is missing")
    own = message.layout
    layout = NodeLayout(own.layers, own.heads, own.d_head, own.d_model, own.d_mlp)
    return NodeSet(layout, message.model_revision, message.bits)


def node_evaluation(found: NodeFigures, warnings: Sequence[str]) -> patching_pb2.EvaluateNodesResponse:
    """Returns what was measured, with what may mislead about it."""
    return patching_pb2.EvaluateNodesResponse(
        values=map(_figures, found.values),
        full=_figures(found.full),
        empty=_figures(found.empty),
        warnings=warnings,
    )


def _figures(found: MaskFigures) -> patching_pb2.NodeFigures:
    return patching_pb2.NodeFigures(**asdict(found))
