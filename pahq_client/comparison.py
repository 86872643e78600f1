"""How much two circuits have in common."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from pahq_client.circuit import Circuit
from pahq_client.elements import Graph
from pahq_client.errors import InvalidRequest, OtherModel

_NO_LIST = "edges alone do not tell which graph they belong to: compare their names, as set(a) & set(b)"


@dataclass(frozen=True)
class Comparison:
    """Names of edges, for example ``a0.h1->a5.h5<q>``, each in the order of its circuit.

    Args:
        shared: in both, in the order of ``a``.
        only_a: in ``a`` only.
        only_b: in ``b`` only.
    """

    shared: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]

    @property
    def jaccard(self) -> float:
        """Shared edges by edges of either; 1 for two empty circuits."""
        union = len(self.shared) + len(self.only_a) + len(self.only_b)
        return len(self.shared) / union if union else 1.0


def check_same_model(circuit: Circuit, graph: Graph, revision: str) -> None:
    """Raises OtherModel for a circuit that was found in another model, where equal names mean other things.

    Raises InvalidRequest for one that names the edges of shared keys and values in another way.

    Args:
        circuit: to be measured.
        graph: of the model that it is to be measured on.
        revision: of that model; empty if unknown, like that of a circuit without provenance.
    """
    other = circuit.model_revision and revision and circuit.model_revision != revision
    if other or replace(circuit.graph, kv_receivers=graph.kv_receivers) != graph:
        found = _describe(circuit.graph, circuit.model_revision)
        raise OtherModel(found, _describe(graph, revision))
    if not circuit.graph.same_as(graph):
        detail = f"the circuit was found with {circuit.graph.kv_receivers!r}, which names other edges"
        raise InvalidRequest("kv_receivers", f"{detail} than {graph.kv_receivers!r} of the session")


def _describe(graph: Graph, revision: str) -> str:
    parts = [f"{graph.layers} layers", f"{graph.heads} heads", f"{graph.kv_heads} key/value heads"]
    parts += ["attention and MLP in parallel"] if graph.parallel else []
    parts += [] if graph.mlps else ["no MLPs"]
    return ", ".join([*parts, f"revision {revision or 'unknown'}"])


def compare(a: Circuit, b: Circuit) -> Comparison:
    """Compares the edges of two circuits.

    Raises:
        InvalidRequest: one is no Circuit, or they belong to different graphs, so that equal names mean
            different things.
    """
    for name, circuit in (("a", a), ("b", b)):
        if not isinstance(circuit, Circuit):
            hint = "read a file with Circuit.load" if isinstance(circuit, str | os.PathLike) else _NO_LIST
            raise InvalidRequest(name, f"must be a Circuit, got {type(circuit).__name__}; {hint}")
    if not a.graph.same_as(b.graph):
        raise InvalidRequest("graph", f"the circuits belong to different graphs: {a.graph} and {b.graph}")
    names_a, names_b = ({str(edge): None for edge in circuit.edges} for circuit in (a, b))
    return Comparison(
        shared=tuple(name for name in names_a if name in names_b),
        only_a=tuple(name for name in names_a if name not in names_b),
        only_b=tuple(name for name in names_b if name not in names_a),
    )
