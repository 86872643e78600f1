"""Edge scores: the result of attribution methods, and the circuits that are made from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pahq_client import selection
from pahq_client.circuit import Circuit
from pahq_client.display import circuits
from pahq_client.edge_index import EdgeIndex, edge_index
from pahq_client.errors import InvalidRequest
from pahq_client.graph import CircuitMetric, Edge, Graph
from pahq_client.nodes import NodeTotal, node_totals
from pahq_client.results import WithProvenance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(WithProvenance):
    """A score for every edge of a graph, for example from edge attribution patching (``method="eap"``).

    Args:
        scores: float64, shape [edges], in the order of ``graph.edge_names()``: how much ablating an edge is
            estimated to change the metric.
        graph: the graph that the edges belong to.
        method: the method that gave the scores.
        metric: name of the metric. Lower is better.
        full: the metric of the full model; NaN if it is not known.
        empty: the metric of the empty circuit; NaN if it is not known.
        provenance: as that of a `Circuit`.
        partial: whether the job was cancelled or failed before its end.

    Raises:
        InvalidRequest: there is not one finite score per edge of the graph.
    """

    scores: NDArray[np.float64]
    graph: Graph
    method: str
    metric: str
    full: float = math.nan
    empty: float = math.nan
    provenance: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False

    def __post_init__(self) -> None:
        import numpy as np

        try:
            scores = np.asarray(self.scores, np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidRequest("scores", f"must be numbers: {error}") from None
        if scores.shape != (self.graph.num_edges,):
            expected = f"one number per edge of the graph, shape [{self.graph.num_edges}]"
            raise InvalidRequest("scores", f"must be {expected}, got shape {list(scores.shape)}")
        if not np.isfinite(scores).all():
            number = int(np.flatnonzero(~np.isfinite(scores))[0])
            name = self.index.name(number)
            raise InvalidRequest("scores", f"must be finite, got {scores[number]} for {name}")
        object.__setattr__(self, "scores", scores)

    @property
    def index(self) -> EdgeIndex:
        """Edges, senders and receivers of the graph by number."""
        return edge_index(self.graph)

    def top(
        self, *, edges: int | None = None, fraction: float | None = None, rank: str = "absolute"
    ) -> Circuit:
        """The circuit of the edges with the largest scores, without those on no path from input to logits.

        Args:
            edges: how many edges to take, before those on no path go.
            fraction: the same as a share of the graph's edges, rounded down. Exactly one of the two.
            rank: ``absolute`` takes the largest scores without regard to sign, ``harm`` those that raise the
                metric most when they are ablated. Of equal scores, what ACDC tests first comes first.

        Returns:
            A circuit in the order of ACDC's tests, whose edges have their scores. Its metric is not measured;
            ``Client.evaluate`` does that.

        Raises:
            InvalidRequest: not exactly one of edges and fraction is given, it is out of range, or there is no
                such rank.
        """
        count = selection.count_of(len(self.scores), edges, fraction)
        kept = selection.top(selection.ranking(self.scores, rank), count)
        return self.circuit(self.index.on_paths(kept), {"selection": "top", "rank": rank, "edges": count})

    def greedy(
        self, *, edges: int | None = None, fraction: float | None = None, rank: str = "absolute"
    ) -> Circuit:
        """The circuit that grows from ``logits``: of the edges into nodes that are in, always the largest.

        Arguments, result and errors are those of `top`. More of its edges are on paths than those of `top`;
        those that are not go here, too.
        """
        count = selection.count_of(len(self.scores), edges, fraction)
        kept = selection.greedy(self.index, selection.ranking(self.scores, rank), count)
        return self.circuit(self.index.on_paths(kept), {"selection": "greedy", "rank": rank, "edges": count})

    def curve_circuits(
        self, fractions: Iterable[float] | None = None, *, rank: str = "absolute", greedy: bool = False
    ) -> tuple[Circuit, ...]:
        """The circuits that a faithfulness curve measures, one per fraction of the graph's edges.

        Args:
            fractions: above 0, at most 1; by default those of the MIB benchmark, `curve.FRACTIONS`. A fraction
                that is less than one edge gives the empty circuit.
            rank, greedy: how the edges are chosen, see `top` and `greedy`.

        Raises:
            InvalidRequest: as `top`.
        """
        from pahq_client.curve import FRACTIONS

        how = "greedy" if greedy else "top"
        chosen = self.selections(FRACTIONS if fractions is None else fractions, rank=rank, greedy=greedy)
        return tuple(
            self.circuit(kept, {"selection": how, "rank": rank, "edges": count}) for count, kept in chosen
        )

    def selections(
        self, fractions: Iterable[float], *, rank: str = "absolute", greedy: bool = False
    ) -> list[tuple[int, NDArray[np.bool_]]]:
        """For each fraction how many edges it is, and the set of those left on paths: bool, shape [edges]."""
        counts = [selection.share(len(self.scores), fraction) for fraction in fractions]
        order = selection.ranking(self.scores, rank)
        if greedy:
            sets = [selection.greedy(self.index, order, count) for count in counts]
        else:
            sets = [selection.top(order, count) for count in counts]
        return [(count, self.index.on_paths(kept)) for count, kept in zip(counts, sets, strict=True)]

    def circuit(self, kept: NDArray[np.bool_], request: Mapping[str, Any] | None = None) -> Circuit:
        """A circuit of given edges, with their scores, in the order of ACDC's tests.

        Args:
            kept: bool, shape [edges].
            request: what to add to ``provenance.request``: how the edges were chosen.
        """
        import numpy as np

        numbers = np.flatnonzero(kept)[::-1]
        ends = zip(self.index.edges(numbers), self.scores[numbers].tolist(), strict=True)
        provenance = dict(self.provenance)
        if request:
            provenance["request"] = {**_mapping(provenance.get("request")), **request}
        if self.partial:
            text = "The scores are those of a job that did not come to its end. Run it again for all of them."
            run = {**self._run, "warnings": [*self.warnings, text]}
            provenance["run"] = run
        return Circuit(
            edges=tuple(Edge(source, target, score) for (source, target), score in ends),
            graph=self.graph,
            metric=CircuitMetric(self.metric, math.nan, self.full, self.empty),
            num_evaluations=0,
            num_edges_total=len(self.scores),
            provenance=provenance,
        )

    def by_node(self) -> tuple[NodeTotal, ...]:
        """The scores summed by node, from the largest total down."""
        import numpy as np

        return node_totals(self.index, np.arange(len(self.scores)), self.scores)

    def __repr__(self) -> str:
        return f"EdgeScores({circuits.summarize_scores(self)})"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
