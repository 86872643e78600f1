"""A circuit: the edges that a job kept, the verdicts that led to them, and sets of edges made of others."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

from pahq_client import checks, circuit_file, eap_ig, files, scores_file
from pahq_client.display import circuits
from pahq_client.edge_index import edge_index
from pahq_client.errors import InvalidCircuitFile, InvalidRequest, OtherModel
from pahq_client.graph import CircuitMetric, Edge, Extra, Graph, Verdict, edges_on_paths, node_order
from pahq_client.nodes import NodeTotal, node_totals
from pahq_client.results import SHORT_REVISION, WithProvenance, check_same_revision

if TYPE_CHECKING:
    import networkx

    from pahq_client.scores import EdgeScores


@dataclass(frozen=True, eq=False, repr=False)
class Circuit(WithProvenance):
    """Edges of a graph: what a job found, what scores gave, or what was made of other circuits.

    Its length is the number of its edges, and it is a collection of them: ``for edge in circuit``,
    ``"a0.h1->logits" in circuit``. ``&``, ``|``, ``-`` and ``^`` combine circuits of one graph and model. Two
    circuits are equal when their canonical bytes are.

    Args:
        edges: kept edges in order of decision.
        graph: the graph that they belong to.
        metric: metric of the circuit, the full model and the empty circuit; its value is NaN if it was not
            measured.
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
    @checks.known_arguments
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
        data = files.read(path)
        if scores_file.is_scores_file(data):
            raise InvalidCircuitFile(name, "holds edge scores: read it with EdgeScores.load")
        circuit = cls(**circuit_file.decode(data, name))
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
        """The metric of the circuit; NaN if it was not measured. Lower is better."""
        return self.metric.value

    @property
    def is_measured(self) -> bool:
        """Whether the metric of the circuit is known. ``Client.evaluate`` measures it."""
        return not math.isnan(self.metric.value)

    @property
    def faithfulness(self) -> float | None:
        """How much of the way from the empty circuit (0) to the full model (1) the circuit goes.

        None where these two measure the same, or where one of the three was not measured; see
        `CircuitMetric.faithfulness`.
        """
        return self.metric.faithfulness

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that the edges join, in the order in which the model computes them.

        They are senders and ``logits``; an edge into a key or value that heads share joins all of these.
        """
        targets = (self.graph.senders_behind(edge.target) or (edge.target,) for edge in self.edges)
        names = {edge.source for edge in self.edges}.union(*targets)
        return tuple(sorted(names, key=node_order))

    def by_node(self) -> tuple[NodeTotal, ...]:
        """The scores of the edges summed by node, from the largest total down; untested ones count as 0.

        Raises:
            InvalidRequest: an edge is none of the graph.
        """
        import numpy as np

        index = edge_index(self.graph)
        scores = np.array([edge.score or 0.0 for edge in self.edges])
        return node_totals(index, index.numbers(self.edges), scores)

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
        run: dict[str, Any] = {**self.run, "pruned": gone}
        if self.is_measured and self.parameters.get("ablation") != "resample":
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
        before = self.run.get("pruned", 0)
        return before if isinstance(before, int) else 0

    @overload
    def to_eap_ig(self, path: None = None, *, d_model: int | None = None) -> dict[str, Any]: ...
    @overload
    def to_eap_ig(self, path: str | os.PathLike[str], *, d_model: int | None = None) -> None: ...
    @checks.known_arguments
    def to_eap_ig(
        self, path: str | os.PathLike[str] | None = None, *, d_model: int | None = None
    ) -> dict[str, Any] | None:
        """Writes the circuit as EAP-IG does, for its tools and the evaluation of the MIB benchmark.

        An edge that is not in the circuit, or was not tested, has score 0 there. Edges into keys and values
        that heads share are written as one per head; see `pahq_client.eap_ig`.

        Args:
            path: where to write; ``.pt`` for tensors, which needs torch, any other name for JSON.
            d_model: width of the model's residual stream, which the file tells; `Client.models` shows it.

        Returns:
            The JSON object if there is no path, else None.

        Raises:
            InvalidRequest: d_model is not known, the graph has no MLPs or lacks an edge, or torch is missing.
            OSError: it cannot be written.
        """
        import numpy as np

        index = edge_index(self.graph)
        numbers, scores = index.numbers(self.edges), np.zeros(index.num_edges)
        scores[numbers] = [edge.score or 0.0 for edge in self.edges]
        width = eap_ig.d_model_of(d_model, self.request.get("d_model"))
        content = eap_ig.Content(self.graph, width, scores, index.kept(self.edges))
        return eap_ig.export(content, path)

    @classmethod
    @checks.known_arguments
    def from_eap_ig(
        cls, source: str | os.PathLike[str] | Mapping[str, Any], *, graph: Graph | None = None
    ) -> Circuit:
        """Reads the circuit of a file of EAP-IG: the edges that are in it, in the order of ACDC's tests.

        Args:
            source: path of a file, ``.pt`` for tensors, which needs torch; or a JSON object.
            graph: the graph of the model, as another circuit of it has: needed where heads share keys and
                values, since the file does not tell. By default every head has its own.

        Returns:
            A circuit that is not measured, with the scores of the file.

        Raises:
            InvalidCircuitFile: it is no file of EAP-IG, is damaged, has neurons, is of another graph, or
                heads that share a key or value differ in what is in the circuit.
            InvalidRequest: torch is missing.
            OSError: it cannot be read.
        """
        content = eap_ig.read(source, graph)
        return cls(
            edges=edge_index(content.graph).scored(content.kept, content.scores),
            graph=content.graph,
            metric=CircuitMetric("", math.nan, math.nan, math.nan),
            num_evaluations=0,
            num_edges_total=content.graph.num_edges,
            provenance=eap_ig.provenance_of(content),
        )

    def to_networkx(self) -> networkx.MultiDiGraph[str]:
        """The circuit as a graph of nodes; see `pahq_client.display.circuits.to_networkx`."""
        return circuits.to_networkx(self)

    def to_graphml(self) -> str:
        """The circuit as GraphML, with the nodes, arrows and attributes of `to_networkx`."""
        return circuits.to_graphml(self)

    def to_dot(self) -> str:
        """The circuit in Graphviz's language; the same text for the same circuit."""
        return circuits.to_dot(self)

    @overload
    def to_svg(self, path: None = None, *, edges: int | None = None) -> str: ...
    @overload
    def to_svg(self, path: str | os.PathLike[str], *, edges: int | None = None) -> None: ...
    @checks.known_arguments
    def to_svg(self, path: str | os.PathLike[str] | None = None, *, edges: int | None = None) -> str | None:
        """The circuit as a picture, for papers; the same text for the same circuit.

        Args:
            path: where to write.
            edges: how many edges to draw, those with the largest scores; by default all of them, up to the
                2,000 that a picture takes.

        Returns:
            The text if there is no path, else None.

        Raises:
            InvalidRequest: the number of edges is none, heads share keys in such numbers that the edges
                cannot be drawn, or the path cannot be written to.
            OSError: the file cannot be written.
        """
        from pahq_client.display.picture import MOST_EDGES, picture
        from pahq_client.display.svg import to_svg

        most = MOST_EDGES if edges is None else checks.integer("edges", edges)
        if not 0 < most <= MOST_EDGES:
            raise InvalidRequest("edges", f"must be from 1 to {MOST_EDGES}, got {most}")
        return files.text_or_file(to_svg(picture(self, most=most)), path)

    @checks.known_arguments
    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        other: Circuit | EdgeScores | None = None,
        names: Iterable[str] = (),
    ) -> None:
        """Writes a page that shows the circuit, to be looked at in a browser: one file, without any network.

        Args:
            path: where to write.
            other: what to compare with, of the same graph.
            names: what to call this one and the other; by default their task and model, and their method
                where these are the same.

        Raises:
            InvalidRequest: the path is none, is that of a folder, or cannot be written to; the other is
                neither circuit nor scores, or belongs to another graph; there is not one name for each.
            OSError: the file cannot be written.
        """
        from pahq_client.display import page

        page.write(path, self, other, names=names)

    def __len__(self) -> int:
        return len(self.edges)

    def __bool__(self) -> bool:
        return True  # there is a circuit, even where it has no edges

    def __iter__(self) -> Iterator[Edge]:
        return iter(self.edges)

    def __contains__(self, edge: object) -> bool:
        """Whether an edge, or the edge of a name, is in the circuit; scores make no difference.

        Raises:
            InvalidRequest: it is neither an Edge nor the name of one.
        """
        if isinstance(edge, str):
            edge = Edge.parse(edge)
        if not isinstance(edge, Edge):
            raise InvalidRequest("edge", f"must be an Edge or its name, got {type(edge).__name__}")
        return str(edge) in self._names

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(map(str, self.edges))

    def __and__(self, other: Circuit) -> Circuit:
        """The edges of both, with the scores of the first."""
        return _combined(self, other, "&")

    def __or__(self, other: Circuit) -> Circuit:
        """The edges of either: those of the first, then those of the second only."""
        return _combined(self, other, "|")

    def __sub__(self, other: Circuit) -> Circuit:
        """The edges of the first that the second does not have."""
        return _combined(self, other, "-")

    def __xor__(self, other: Circuit) -> Circuit:
        """The edges that one of the two has, not both."""
        return _combined(self, other, "^")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return self.canonical_bytes() == other.canonical_bytes()

    def __hash__(self) -> int:
        return hash(self.canonical_bytes())

    def __repr__(self) -> str:
        return f"Circuit({circuits.summary(self)})"

    def _repr_html_(self) -> str:
        from pahq_client.display.notebook import circuit_html

        return circuit_html(self)


def _combined(a: Circuit, b: Circuit, operation: str) -> Circuit:
    """The circuit that an operation on sets gives of two; not measured, without verdicts.

    Its provenance keeps what the two have in common, and the warnings of both.

    Raises:
        InvalidRequest: the circuits belong to different graphs.
        OtherModel: they were found in different models.
    """
    if not isinstance(b, Circuit):
        return NotImplemented
    check_comparable(a, b)
    first = tuple(edge for edge in a.edges if operation == "|" or (edge in b) == (operation == "&"))
    second = tuple(edge for edge in b.edges if operation in "|^" and edge not in a)
    request = {**_shared(a.request, b.request), "operation": operation}
    request["parameters"] = _shared(a.parameters, b.parameters)
    revision = a.model_revision or b.model_revision
    told = list(dict.fromkeys([*a.warnings, *b.warnings]))
    if a.partial or b.partial:
        told.append(
            "A partial circuit is one of those that this one is made of: edges that its job had not tested "
            "count as kept there. Run the job again to its end."
        )
    run = {key: value for key, value in _shared(a.run, b.run).items() if key in ("model", "task", "prompts")}
    name, full, empty = a.metric.name, a.metric.full, a.metric.empty
    if (name, full, empty) != (b.metric.name, b.metric.full, b.metric.empty):  # or one of them is unknown
        full = empty = math.nan
        name = name if name == b.metric.name else ""
    return Circuit(
        edges=first + second,
        graph=a.graph,
        metric=CircuitMetric(name, math.nan, full, empty),
        num_evaluations=0,
        num_edges_total=a.num_edges_total,
        provenance={
            "request": request | ({"model_revision": revision} if revision else {}),
            "run": run | ({"warnings": told} if told else {}),
        },
    )


def _shared(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """What two mappings have in common."""
    return {key: value for key, value in a.items() if key in b and b[key] == value}


def check_comparable(a: Circuit, b: Circuit, allow_other_model: bool = False) -> None:
    """Raises InvalidRequest if the graphs of two circuits differ, OtherModel if their models do."""
    if not a.graph.same_as(b.graph):
        detail = f"the circuits belong to different graphs: one of {a.graph}, one of {b.graph}"
        raise InvalidRequest("graph", detail)
    check_same_revision(a, b, allow_other_model)


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
    return f"{graph}, revision {revision[:SHORT_REVISION] or 'unknown'}"
