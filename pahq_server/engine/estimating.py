"""How long a discovery will take, between bounds, and how much memory."""

from __future__ import annotations

import time
from dataclasses import fields

from torch import Tensor

from pahq_server.core.engine import Estimate, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine.operations import (
    BOOKKEEPING_S,
    least_operations,
    measured_gflops,
    most_operations,
    slowdown,
    whole_operations,
)
from pahq_server.engine.sizing import BYTES, job_bytes
from pahq_server.models.architecture import Architecture
from pahq_server.models.loading import LoadedModel
from pahq_server.models.streaming import ResidentModel
from pahq_server.precision.policy import POLICIES


def slow_policy(arch: Architecture, task: TokenTask, graph: Graph, precision: str) -> tuple[str, ...]:
    """A warning for a policy under which every circuit is computed from scratch; none for others."""
    if POLICIES[precision].operand != "activations":
        return ()
    least, most = slowdown(arch, graph, len(task.clean), max(map(len, task.clean)))
    times = f"{_factor(least)} to {_factor(most)} times"
    return (
        f"Precision {precision!r} computes every circuit from scratch: {times} the operations that 'fp32' "
        "needs in a search. It is there for comparison; 'bf16' and 'pahq-int8' are about as fast as 'fp32', "
        "or faster.",
    )


def _factor(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


class Estimator:
    """Estimates discoveries on models of one device, by rates that are measured when first needed."""

    def __init__(self) -> None:
        self._operations_s: float | None = None
        self._bytes_s: dict[str, float] = {}

    def estimate(self, loaded: LoadedModel, resolved: ResolvedObjective) -> Estimate:
        """What a discovery on a model will take."""
        arch, task, graph = loaded.model.architecture, resolved.task, resolved.graph
        prompts, tokens = len(task.clean), max(map(len, task.clean))
        if self._operations_s is None:
            self._operations_s = measured_gflops(device=loaded.model.device) * 1e9
        rate = self._operations_s
        least = least_operations(arch, prompts, tokens) * graph.num_edges / rate
        most = most_operations(arch, graph, prompts, tokens) / rate + BOOKKEEPING_S * graph.num_edges
        if POLICIES[resolved.objective.precision].operand == "activations":
            least = whole_operations(arch, graph, prompts, tokens) * graph.num_edges / rate
            most = least + BOOKKEEPING_S * graph.num_edges
        streams = isinstance(loaded, ResidentModel) and resolved.objective.precision == "fp32"
        if isinstance(loaded, ResidentModel) and streams:
            # At worst, every evaluation is a batch of its own and reaches every layer.
            most += graph.num_edges * self._reading_s(resolved.objective.model, loaded)
        return Estimate(job_bytes(arch, task), least, most, streams)

    def _reading_s(self, name: str, loaded: ResidentModel) -> float:
        """Seconds to read all weights of a model from its files."""
        if name not in self._bytes_s:
            begin = time.perf_counter()
            layer = loaded.resident.checkpoint.layer(0)
            values = (getattr(layer, field.name) for field in fields(layer))
            size = sum(value.nbytes for value in values if isinstance(value, Tensor))
            self._bytes_s[name] = size / (time.perf_counter() - begin)
        return loaded.model.parameters * BYTES / self._bytes_s[name]
