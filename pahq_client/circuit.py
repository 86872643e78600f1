"""A circuit: the edges that a job kept, the verdicts that led to them, and comparisons of circuits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pahq_client import circuit_file, files
from pahq_client.display import circuits
from pahq_client.errors import InvalidCircuitFile, InvalidRequest, OtherModel
from pahq_client.graph import CircuitMetric, Edge, Extra, Graph, Verdict, edges_on_paths
from pahq_client.results import WithProvenance

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(WithProvenance):
    """The circuit that a job found. Two circuits are equal when their canonical bytes are.

    Args:
        edges: kept edges in order of decision.
        graph: the graph that they belong to.
        metric: metric of the circuit, the full model and the empty circuit.
        num_evaluations: tested edges, groups and gates.
        num_edges_total: edges of the graph.
        gates_kept: receivers whose gate was tested and kept, in order of decision.
        verdicts: one per evaluation, in order.
        provenance: ``request`` is what determines the result (model revision, task hash, parameters,
            policy, version); ``run`` is what happened this time (model name, task, times, hardware, counts,
            warnings and, on request, prompts).
        extra: unknown keys of the file that the circuit was loaded from.
        partial: whether the job was cancelled or failed before its end. Edges that it had not tested yet are
            then still in the circuit, after those that it had decided to keep; see `undecided`.
        threshold: below which edges were removed; None where that is not known.
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
    partial: bool = False
    threshold: float | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, allow_partial: bool = False) -> Circuit:
        """Reads a circuit file.

        Args:
            path: path of the file.
            allow_partial: whether to read the partial circuit of a job that did not come to its end.

        Raises:
            InvalidCircuitFile: it is not a circuit file, is damaged or too large, has an unknown version, or
                holds a partial circuit that was not asked for.
            InvalidRequest: the path is none.
            OSError: it cannot be read.
        """
        name = files.path_text("path", path)
        circuit = cls(**circuit_file.decode(files.read(path), name))
        if circuit.partial and not allow_partial:
            raise InvalidCircuitFile(
                name,
                "holds a partial circuit: its job did not come to its end, so that some edges are undecided. "
                "Pass allow_partial=True (pahq --allow-partial) to use it anyway",
            )
        return circuit

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a circuit file, whole or not at all. Devices and pipes are written to, not replaced.

        Raises:
            InvalidCircuitFile: the circuit holds NaN, infinity or what JSON cannot express.
            InvalidRequest: the path is none.
            OSError: it cannot be written.
        """
        files.write(path, circuit_file.encode(self, files.path_text("path", path)) + b"\n")

    def canonical_bytes(self) -> bytes:
        """The circuit file without ``provenance.run``: equal for two equal jobs.

        Raises:
            InvalidCircuitFile: the circuit holds NaN, infinity or what JSON cannot express.
        """
        return circuit_file.encode(self, "circuit", run=False)

    @property
    def metric_value(self) -> float:
        """The metric of the circuit. Lower is better."""
        return self.metric.value

    @property
    def faithfulness(self) -> float | None:
        """How much of the way from the empty circuit (0) to the full model (1) the circuit goes.

        None where these two measure the same; see `CircuitMetric.faithfulness`.
        """
        return self.metric.faithfulness

    @cached_property
    def on_paths(self) -> tuple[Edge, ...]:
        """The edges on a path from ``input`` to ``logits``, in order; the others carry nothing to the output.

        A path goes on from a query to its head, and from a key or value of a group to all of its heads.
        """
        return edges_on_paths(self.edges, self.graph)

    @property
    def removed_without_test(self) -> int:
        """How many edges were removed without a test of their own: with others at once, or with a dead node.

        Those that a search within another circuit did not begin with count, too.
        """
        tested = sum(verdict.of_one_edge for verdict in self.verdicts)
        return self.num_edges_total - tested - len(self.undecided)

    @property
    def undecided(self) -> tuple[Edge, ...]:
        """The edges of a partial circuit that the job had not tested yet; none for a whole circuit."""
        if not self.partial:
            return ()
        decided = {verdict.subject for verdict in self.verdicts if verdict.of_one_edge}
        return tuple(edge for edge in self.edges if str(edge) not in decided)

    def pruned(self) -> Circuit:
        """The circuit without the edges that lie on no path from ``input`` to ``logits``.

        ``metric`` stays that of the whole circuit. Under ``resample`` ablation the pruned one has the same up
        to rounding. Under ``zero`` and ``mean`` it may have another, since an edge from a node that reads
        nothing still carries a constant: then a warning is added, and `Client.evaluate` measures it.
        ``verdicts`` and their counts stay as well; ``provenance.run.pruned`` counts the edges that went.
        """
        edges = self.on_paths
        if len(edges) == len(self.edges):
            return self
        receivers = {edge.target for edge in edges}
        gone = self._pruned_before + len(self.edges) - len(edges)
        run: dict[str, Any] = {**self._run, "pruned": gone}
        if self.parameters.get("ablation") != "resample":
            run["warnings"] = [
                *self.warnings,
                f"The metric is that of the circuit before it was pruned of {gone} edge{'s'[: gone > 1]}; "
                "without what was on no path it may differ unless the ablation is resample. Measure the "
                "circuit with evaluate().",
            ]
        return replace(
            self,
            edges=edges,
            gates_kept=tuple(gate for gate in self.gates_kept if gate in receivers),
            provenance={**self.provenance, "run": run},
        )

    @property
    def _pruned_before(self) -> int:
        before = self._run.get("pruned", 0)
        return before if isinstance(before, int) else 0

    def to_networkx(self) -> networkx.MultiDiGraph[str]:
        """The circuit as a graph of nodes; see `pahq_client.display.circuits.to_networkx`."""
        return circuits.to_networkx(self)

    def to_dot(self) -> str:
        """The circuit in Graphviz's language; the same text for the same circuit."""
        return circuits.to_dot(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def __repr__(self) -> str:
        return f"Circuit({circuits.summary(self)})"

    def _repr_html_(self) -> str:
        return circuits.to_html(self)


_NO_LIST = "edges alone do not tell which graph they belong to: compare their names, as set(a) & set(b)"


@dataclass(frozen=True)
class Comparison:
    """Names of edges, for example ``a0.h1->a5.h5<q>``, each in the order of its circuit.

    Args:
        shared: edges of both circuits, in the order of ``a``.
        only_a: edges of ``a`` only.
        only_b: edges of ``b`` only.
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
    """Refuses a circuit that was found in another model, where edges of the same names do other things.

    Args:
        circuit: the circuit that is to be measured.
        graph: graph of the model that it is to be measured on.
        revision: revision of that model; empty if unknown.

    Raises:
        OtherModel: the circuit was found in another model.
        InvalidRequest: it names the edges of shared keys and values in another way.
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
