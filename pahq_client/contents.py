"""What a circuit is made of, without what can be done with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pahq_client.elements import CircuitMetric, Edge, Extra, Graph, Verdict


@dataclass(frozen=True, eq=False, repr=False)
class CircuitContents:
    """The fields of a `Circuit`.

    Args:
        edges: kept edges in order of decision.
        graph: the graph that they belong to.
        metric: of the circuit, the full model and the empty circuit.
        num_evaluations: tested edges plus tested gates.
        num_edges_total: edges of the graph.
        gates_kept: receivers whose gate was tested and kept, in order of decision.
        verdicts: one per evaluation, in order.
        provenance: ``request`` is what determines the result (model revision, task hash, parameters,
            policy, version); ``run`` is what happened this time (model name, times, hardware, counts).
        extra: unknown keys of the file that the circuit was loaded from.
    """

    edges: tuple[Edge, ...]
    graph: Graph
    metric: CircuitMetric
    num_evaluations: int
    num_edges_total: int
    gates_kept: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    extra: Extra = ()

    @property
    def metric_value(self) -> float:
        """The metric of the circuit. Lower is better."""
        return self.metric.value

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What the discovery was asked for (method, threshold, ablation, ...), as far as it is known."""
        parameters = self.provenance.get("request", {}).get("parameters", {})
        return parameters if isinstance(parameters, Mapping) else {}

    @property
    def removed_without_test(self) -> int:
        """How many edges went without an evaluation of their own: cut by a gate, or into a dead node."""
        return self.num_edges_total - sum(not verdict.gate for verdict in self.verdicts)
