"""Executors by name, and as functions from a circuit to its score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.sparse.executor import SharedModel, SparseExecutor
from pahq_server.engine.sparse.memory import DeviceMemory
from pahq_server.models.architecture import Model
from pahq_server.models.folding import fold

Measure = Callable[[Circuit], float]
MEMORY_BYTES = 1 << 30


class Executor(Protocol):
    def score(self, passes: Sequence[PatchedPass]) -> list[float]: ...


def sparse_executor(
    model: Model,
    graph: Graph,
    task: TokenTask,
    metric: str,
    ablation: str,
    memory: DeviceMemory | None = None,
) -> SparseExecutor:
    """A job of its own on a model that is not folded yet."""
    memory = DeviceMemory(MEMORY_BYTES) if memory is None else memory
    return SparseExecutor(SharedModel(fold(model), memory, b"test"), graph, task, metric, ablation)


EXECUTORS: dict[str, Callable[[Model, Graph, TokenTask, str, str], Executor]] = {
    "sparse": sparse_executor,
    "literal": LiteralExecutor,
}


def measure(
    executor: str, model: Model, graph: Graph, task: TokenTask, metric: str, ablation: str
) -> Measure:
    """A job's metric, each circuit measured from scratch. The model is not folded yet."""
    job = EXECUTORS[executor](model, graph, task, metric, ablation)
    return lambda circuit: job.score([PatchedPass(BaseCircuit(circuit))])[0]
