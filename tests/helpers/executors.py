"""Executors by name, as functions from a circuit to its score."""

from __future__ import annotations

from collections.abc import Callable

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Anchor, Row
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine.engine import EXECUTORS
from pahq_server.models.architecture import Model
from pahq_server.models.folding import fold

Measure = Callable[[Circuit], float]


def measure(
    executor: str, model: Model, graph: Graph, task: TokenTask, metric: str, ablation: str
) -> Measure:
    """A job's metric, each circuit measured from scratch. The model is not folded yet."""
    if executor != "literal":
        model = fold(model)
    job = EXECUTORS[executor](model, graph, task, metric, ablation)
    return lambda circuit: job.score([Row(Anchor(circuit))])[0]
