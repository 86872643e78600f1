"""A circuit: the edges that a discovery kept, and how it came to keep them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pahq_client import circuit_file, render
from pahq_client.elements import CircuitMetric, Edge, Extra, Graph, Verdict
from pahq_client.files import write_atomically

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """The result of a discovery. Two circuits are equal when their canonical bytes are.

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

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Circuit:
        """Reads a circuit file.

        Raises:
            InvalidCircuitFile: it is not one, is damaged, or has a version that is not known here.
            OSError: it cannot be read.
        """
        return cls(**circuit_file.decode(Path(path).read_bytes(), os.fspath(path)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a circuit file, whole or not at all.

        Raises:
            InvalidCircuitFile: the circuit holds NaN, infinity or what JSON cannot express.
            OSError: it cannot be written.
        """
        write_atomically(path, circuit_file.encode(self, os.fspath(path)) + b"\n")

    def canonical_bytes(self) -> bytes:
        """The circuit without ``provenance.run``: equal for two equal discoveries.

        Raises:
            InvalidCircuitFile: the circuit holds NaN, infinity or what JSON cannot express.
        """
        return circuit_file.encode(self, "circuit", run=False)

    def to_networkx(self) -> networkx.MultiDiGraph[str]:
        """The circuit as a graph of nodes; see `pahq_client.render.to_networkx`."""
        return render.to_networkx(self)

    def to_dot(self) -> str:
        """The circuit in Graphviz's language; the same text for the same circuit."""
        return render.to_dot(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def __repr__(self) -> str:
        return f"Circuit({render.summary(self)})"

    def _repr_html_(self) -> str:
        return render.to_html(self)
