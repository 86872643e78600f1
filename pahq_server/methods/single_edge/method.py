"""Single-edge scores as a method of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.methods.base import Method, MethodContext, Steps, finite_number
from pahq_server.methods.circuits import (
    SearchSteps,
    endpoints,
    new_counts,
    partial_circuit,
    run_search,
    search_progress,
)
from pahq_server.methods.verdicts import SearchResult, Verdict, unpack_verdicts


@dataclass(frozen=True)
class SingleEdgeParameters:
    """Parameters of single-edge scores.

    Args:
        threshold: edges whose score is below are left out of the circuit; None keeps all.
    """

    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None:
            finite_number("threshold", self.threshold)


class SingleEdge(Method[SingleEdgeParameters]):
    """Scores every edge alone, as a circuit. Its journal records are verdicts (`methods.verdicts`)."""

    name, parameters, unit = "single_edge", SingleEdgeParameters, "edges"

    def total(self, parameters: SingleEdgeParameters, resolved: ResolvedObjective) -> int:
        return resolved.graph.num_edges

    def run(self, context: MethodContext[SingleEdgeParameters]) -> Steps:
        resolved, threshold = context.resolved, context.parameters.threshold
        search = SingleEdgeSearch(
            resolved.graph,
            threshold,
            context.window,
            unpack_verdicts(b"".join(context.journal)),
            resolved.baseline_depends_on_promotion,
        )
        return run_search(context, search)

    def partial(self, context: MethodContext[SingleEdgeParameters]) -> Artifact | None:
        verdicts = unpack_verdicts(b"".join(context.journal))
        graph = context.resolved.graph
        below = [verdict.index for verdict in verdicts if not verdict.kept]
        return partial_circuit(context, verdicts, Circuit.full(graph).without(below))


class SingleEdgeSearch:
    """Scores each edge of the graph by ablating it in the otherwise full model.

    Args:
        graph: the full graph.
        threshold: edges whose score is below are left out of the circuit; None keeps all.
        window: edges per step.
        verdicts: decided earlier; the search goes on after them.
        baseline_depends_on_promotion: see `ResolvedObjective`.
    """

    def __init__(
        self,
        graph: Graph,
        threshold: float | None,
        window: int = 1,
        verdicts: Sequence[Verdict] = (),
        baseline_depends_on_promotion: bool = False,
    ) -> None:
        self.graph, self.threshold, self.window = graph, threshold, window
        self.verdicts = list(verdicts)
        self.counts = new_counts()
        self._baseline_depends_on_promotion, self._full_metric = baseline_depends_on_promotion, 0.0
        # The promoted heads under which the full model's metric is known; None if it is not known.
        self._measured: tuple[int, ...] | None = None
        self._kept = sum(verdict.kept for verdict in verdicts)

    def run(self) -> SearchSteps:
        """Yields passes for so many edges at a time, then those of the endpoints."""
        full = BaseCircuit(Circuit.full(self.graph))
        while len(self.verdicts) < self.graph.num_edges:
            start = len(self.verdicts)
            edges = range(start, min(start + self.window, self.graph.num_edges))
            passes = [each for edge in edges for each in self._passes(full, edge)]
            scores = yield passes
            for each, score in zip(passes, scores, strict=True):
                self._accept(each, score)
            self.counts.update(batches=1, passes=len(passes))
        circuit = Circuit(self.graph, np.array([verdict.kept for verdict in self.verdicts], dtype=bool))
        value, full_metric, empty_metric = yield endpoints(self.graph, circuit)
        return SearchResult(circuit, tuple(self.verdicts), value, full_metric, empty_metric, self.threshold)

    @property
    def records(self) -> list[Verdict]:
        """The verdicts: the journal holds nothing else."""
        return self.verdicts

    def progress(self) -> Progress:
        """Says how many edges have a score; the metric is that of the full model."""
        done = len(self.verdicts)
        return search_progress(done, self._kept, self._full_metric, done)

    def _passes(self, full: BaseCircuit, edge: int) -> list[PatchedPass]:
        """Returns what measures an edge: first the full model, if that is not known under the same heads."""
        promotes = self._baseline_depends_on_promotion
        receiver = self.graph.edge_ends(edge)[1]
        heads = self.graph.heads_behind(receiver) if promotes else ()
        known, self._measured = heads == self._measured, heads
        without = PatchedPass(full, (edge,))
        return [without] if known else [PatchedPass(full, (), receiver if promotes else None), without]

    def _accept(self, each: PatchedPass, score: float) -> None:
        """Takes note of the full model's metric, or of the verdict on an edge."""
        if not each.removed:
            self._full_metric = score
            return
        delta = score - self._full_metric
        kept = self.threshold is None or not delta < self.threshold
        self.verdicts.append(Verdict(gate=False, index=each.removed[0], score=score, delta=delta, kept=kept))
        self._kept += kept
