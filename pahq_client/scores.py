"""Edge scores: the result of attribution methods, and the circuits that are made from them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

from pahq_client import checks, comparison, eap_ig, files, scores_file, selection
from pahq_client.circuit import Circuit
from pahq_client.comparison import Roc, ScoreComparison
from pahq_client.display import circuits
from pahq_client.edge_index import EdgeIndex, edge_index
from pahq_client.errors import InvalidCircuitFile, InvalidRequest, InvalidScoresFile
from pahq_client.graph import CircuitMetric, Graph
from pahq_client.nodes import NodeTotal, node_totals
from pahq_client.results import WithProvenance, check_same_revision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pahq_client.curve import Curve


# What to do where a circuit is wanted and scores are given.
CIRCUIT_OF_SCORES = "choose a circuit by the scores, such as scores.top(fraction=0.1)"


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(WithProvenance):
    """A score for every edge of a graph, for example from edge attribution patching (``method="eap"``).

    Two are equal when they would be the same in a file, apart from ``provenance.run``.

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
            scores = np.array(self.scores, np.float64)  # a copy: what is checked here stays as it is
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

    @checks.known_arguments
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
        return self._circuits([count], rank, greedy=False)[0]

    @checks.known_arguments
    def greedy(
        self, *, edges: int | None = None, fraction: float | None = None, rank: str = "absolute"
    ) -> Circuit:
        """The circuit that grows from ``logits``: of the edges into nodes that are in, always the largest.

        Arguments, result and errors are those of `top`. More of its edges are on paths than those of `top`;
        those that are not go here, too.
        """
        count = selection.count_of(len(self.scores), edges, fraction)
        return self._circuits([count], rank, greedy=True)[0]

    @checks.known_arguments
    def curve_circuits(
        self, fractions: Iterable[float] | None = None, *, rank: str = "absolute", greedy: bool = False
    ) -> tuple[Circuit, ...]:
        """The circuits that a faithfulness curve measures, one per fraction of the graph's edges.

        Args:
            fractions: above 0, at most 1; by default those of the MIB benchmark, `curve.FRACTIONS`. One that
                is less than an edge gives the empty circuit.
            rank, greedy: how the edges are chosen, see `top` and `greedy`.

        Raises:
            InvalidRequest: as `top`.
        """
        from pahq_client.curve import FRACTIONS

        shares = FRACTIONS if fractions is None else fractions
        checked = [selection.checked_fraction(share, f"fractions[{i}]") for i, share in enumerate(shares)]
        counts = [selection.share(len(self.scores), share) for share in checked]
        return tuple(self._circuits(counts, rank, greedy))

    def selections(
        self, counts: Sequence[int], *, rank: str = "absolute", greedy: bool = False
    ) -> list[NDArray[np.bool_]]:
        """For each number of edges the set of those that are left on paths: bool, shape [edges].

        Arguments beside the counts, and errors, are those of `curve_circuits`.
        """
        order = selection.ranking(self.scores, rank)
        if greedy:
            sets = [selection.greedy(self.index, order, count) for count in counts]
        else:
            sets = [selection.top(order, count) for count in counts]
        return list(map(self.index.on_paths, sets))

    def _circuits(self, counts: Sequence[int], rank: str, greedy: bool) -> list[Circuit]:
        chosen = zip(counts, self.selections(counts, rank=rank, greedy=greedy), strict=True)
        how = {"selection": "greedy" if greedy else "top", "rank": rank}
        return [self.circuit(kept, {**how, "edges": count}) for count, kept in chosen]

    def circuit(self, kept: NDArray[np.bool_], request: Mapping[str, Any] | None = None) -> Circuit:
        """A circuit of given edges, with their scores, in the order of ACDC's tests.

        Args:
            kept: bool, shape [edges].
            request: what to add to ``provenance.request``: how the edges were chosen.
        """
        provenance = {**self.provenance, "request": {**self.request, **(request or {})}}
        if self.partial:
            provenance["run"] = {**self.run, "warnings": list(self.warnings_of_choices)}
        return Circuit(
            edges=self.index.scored(kept, self.scores),
            graph=self.graph,
            metric=CircuitMetric(self.metric, math.nan, self.full, self.empty),
            num_evaluations=0,
            num_edges_total=len(self.scores),
            provenance=provenance,
        )

    @property
    def warnings_of_choices(self) -> tuple[str, ...]:
        """What may mislead about circuits that are chosen by these scores, each with what to do."""
        if not self.partial:
            return self.warnings
        text = "The scores are those of a job that did not come to its end. Run it again for all of them."
        return (*self.warnings, text)

    @checks.known_arguments
    def compare(self, other: EdgeScores, *, allow_other_model: bool = False) -> ScoreComparison:
        """Compares with other scores of the same graph, edge by edge.

        Args:
            other: the other scores.
            allow_other_model: whether they may be of another model with this graph.

        Raises:
            InvalidRequest: the other is no EdgeScores, or belongs to another graph.
            OtherModel: it is of another model, and that is not allowed.
        """
        if not isinstance(other, EdgeScores):
            hint = (
                "; scores.roc(circuit) compares scores with a circuit" if isinstance(other, Circuit) else ""
            )
            raise InvalidRequest("other", f"must be EdgeScores, got {type(other).__name__}{hint}")
        if not self.graph.same_as(other.graph):
            detail = f"belongs to another graph ({other.graph}) than these scores ({self.graph})"
            raise InvalidRequest("other", detail)
        check_same_revision(self, other, allow_other_model)
        return comparison.ScoreComparison(self.scores, other.scores, self.method, other.method)

    @checks.known_arguments
    def roc(self, reference: Circuit, *, rank: str = "absolute", allow_other_model: bool = False) -> Roc:
        """How well the scores tell the edges of a circuit from the others, for example of an exact search.

        Args:
            reference: a circuit of the same graph, with some but not all of its edges.
            rank: ``absolute`` or ``harm``, as in `top`.
            allow_other_model: whether the circuit may be of another model with this graph.

        Raises:
            InvalidRequest: the reference is no Circuit, is a partial one, belongs to another graph, or has no
                edge or all of them; or there is no such rank.
            OtherModel: it is of another model, and that is not allowed.
        """
        if not isinstance(reference, Circuit):
            hint = f"; {CIRCUIT_OF_SCORES}" if isinstance(reference, EdgeScores) else ""
            raise InvalidRequest("reference", f"must be a Circuit, got {type(reference).__name__}{hint}")
        if reference.partial:
            raise InvalidRequest("reference", "is a partial circuit, whose undecided edges tell nothing")
        if not self.graph.same_as(reference.graph):
            detail = f"belongs to another graph ({reference.graph}) than the scores ({self.graph})"
            raise InvalidRequest("reference", detail)
        check_same_revision(self, reference, allow_other_model, "roc")
        keys = selection.sort_keys(self.scores, rank)
        return comparison.roc(keys, self.index.kept(reference.edges), self.method)

    @classmethod
    @checks.known_arguments
    def load(cls, path: str | os.PathLike[str], *, allow_partial: bool = False) -> EdgeScores:
        """Reads a file of edge scores.

        Args:
            path: path of the file.
            allow_partial: whether to read the scores of a job that did not come to its end.

        Raises:
            InvalidScoresFile: it is not a file of edge scores, is damaged or too large, has an unknown
                version, or holds partial scores that were not asked for.
            InvalidRequest: the path is none.
            OSError: it cannot be read.
        """
        name = files.path_text("path", path)
        scores = scores_file.decode(files.read(path), name)
        if scores.partial and not allow_partial:
            raise InvalidScoresFile(
                name,
                "holds partial scores: their job did not come to its end. Pass allow_partial=True to use "
                "them anyway",
            )
        return scores

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file of edge scores, whole or not at all: a safetensors file with their provenance.

        Raises:
            InvalidScoresFile: the provenance holds what JSON cannot express.
            InvalidRequest: the path is none.
            OSError: it cannot be written.
        """
        files.write(path, scores_file.encode(self, files.path_text("path", path)))

    @overload
    def to_eap_ig(self, path: None = None, *, d_model: int | None = None) -> dict[str, Any]: ...
    @overload
    def to_eap_ig(self, path: str | os.PathLike[str], *, d_model: int | None = None) -> None: ...
    @checks.known_arguments
    def to_eap_ig(
        self, path: str | os.PathLike[str] | None = None, *, d_model: int | None = None
    ) -> dict[str, Any] | None:
        """Writes the scores as EAP-IG does: every edge with its score, none in the circuit.

        Arguments, result and errors are those of `Circuit.to_eap_ig`. EAP-IG's own scores have the same sign
        where it is given a loss, as it says: they are estimates of what ablating an edge adds to it.
        """
        import numpy as np

        width = eap_ig.d_model_of(d_model, self.request.get("d_model"))
        content = eap_ig.Content(self.graph, width, self.scores, np.zeros(len(self.scores), bool))
        return eap_ig.export(content, path)

    @classmethod
    @checks.known_arguments
    def from_eap_ig(
        cls,
        source: str | os.PathLike[str] | Mapping[str, Any],
        *,
        graph: Graph | None = None,
        method: str = "eap_ig",
        metric: str = "",
    ) -> EdgeScores:
        """Reads the scores of a file of EAP-IG.

        Args:
            source: path of a file, ``.pt`` for tensors, which needs torch; or a JSON object.
            graph: the graph of the model, needed where heads share keys and values: then the scores of the
                heads are summed. By default every head has its own.
            method, metric: what the scores were made with, which the file does not tell.

        Raises:
            InvalidCircuitFile: it is no file of EAP-IG, is damaged, has neurons, is of another graph, or has
                no score for some edge.
            InvalidRequest: torch is missing.
            OSError: it cannot be read.
        """
        import numpy as np

        content = eap_ig.read(source, graph)
        missing = np.flatnonzero(~np.isfinite(content.scores))
        if len(missing):
            origin = "source" if isinstance(source, Mapping) else files.path_text("source", source)
            name = edge_index(content.graph).name(int(missing[0]))
            detail = f"has no score for {len(missing)} of its edges, for example {name}"
            raise InvalidCircuitFile(origin, f"{detail}. Read the circuit in it with Circuit.from_eap_ig")
        provenance = eap_ig.provenance_of(content)
        return cls(content.scores, content.graph, method, metric, provenance=provenance)

    def by_node(self) -> tuple[NodeTotal, ...]:
        """The scores summed by node, from the largest total down."""
        import numpy as np

        return node_totals(self.index, np.arange(len(self.scores)), self.scores)

    @checks.known_arguments
    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        other: Circuit | EdgeScores | None = None,
        names: Iterable[str] = (),
        curve: Curve | None = None,
    ) -> None:
        """Writes a page that shows the 2,000 largest scores, as `Circuit.to_html` does.

        Args:
            path: where to write.
            other: what to compare with, of the same graph.
            names: as of `Circuit.to_html`.
            curve: what the metric is for growing numbers of these edges, to be shown beside them.

        Raises:
            InvalidRequest: as `Circuit.to_html`.
            OSError: the file cannot be written.
        """
        from pahq_client.display import page

        page.write(path, self, other, names=names, curve=curve)

    def _repr_html_(self) -> str:
        from pahq_client.display.notebook import scores_html

        return scores_html(self)

    def _canonical_bytes(self) -> bytes:
        """The file without ``provenance.run``: equal for two equal jobs."""
        kept = {key: value for key, value in self.provenance.items() if key != "run"}
        return scores_file.encode(replace(self, provenance=kept), "scores")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EdgeScores):
            return NotImplemented
        return self._canonical_bytes() == other._canonical_bytes()

    def __hash__(self) -> int:
        return hash(self._canonical_bytes())

    def __repr__(self) -> str:
        return f"EdgeScores({circuits.summarize_scores(self)})"
