"""The effect of every edge alone: what the metric does when only that edge is ablated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import BaseCircuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.verdict import SearchResult, Verdict
from pahq_server.search.base import SearchProgress, SearchStatistics, Steps, endpoints


class SingleEdgeSearch:
    """Scores each edge of the graph by ablating it in the otherwise full model.

    Args:
        graph: the full graph.
        threshold: edges whose score is below are left out of the circuit; None keeps all.
        window: edges per step.
        verdicts: decided earlier; the sweep goes on after them.
        own_current: see `ResolvedObjective`.
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
        self.statistics = SearchStatistics()
        self._own_current, self._full_metric = baseline_depends_on_promotion, 0.0
        # The heads under investigation for which the full model's metric is known; None if it is not.
        self._measured: tuple[int, ...] | None = None
        self._kept = sum(verdict.kept for verdict in verdicts)

    def run(self) -> Steps:
        full = BaseCircuit(Circuit.full(self.graph))
        while len(self.verdicts) < self.graph.num_edges:
            start = len(self.verdicts)
            edges = range(start, min(start + self.window, self.graph.num_edges))
            rows = [row for edge in edges for row in self._rows(full, edge)]
            scores = yield rows
            for row, score in zip(rows, scores, strict=True):
                self._take(row, score)
            self.statistics.batches += 1
            self.statistics.rows += len(rows)
        return (yield from self._result())

    def progress(self) -> SearchProgress:
        return SearchProgress(len(self.verdicts), self._kept, self._full_metric)

    def _rows(self, full: BaseCircuit, edge: int) -> list[PatchedPass]:
        """What measures an edge: after the full model, where that is not known under the same conditions."""
        receiver = self.graph.edge_ends(edge)[1]
        heads = self.graph.heads_behind(receiver) if self._own_current else ()
        known, self._measured = heads == self._measured, heads
        own = receiver if self._own_current else None
        return (
            [PatchedPass(full, (edge,))]
            if known
            else [PatchedPass(full, (), own), PatchedPass(full, (edge,))]
        )

    def _take(self, row: PatchedPass, score: float) -> None:
        if not row.removed:
            self._full_metric = score
            return
        self.verdicts.append(self._judge(row.removed[0], score))
        self._kept += self.verdicts[-1].kept

    def _judge(self, edge: int, score: float) -> Verdict:
        delta = score - self._full_metric
        kept = self.threshold is None or not delta < self.threshold
        return Verdict(gate=False, index=edge, score=score, delta=delta, kept=kept)

    def _result(self) -> Steps:
        circuit = Circuit(self.graph, np.array([verdict.kept for verdict in self.verdicts], dtype=bool))
        scores = np.array([verdict.delta for verdict in self.verdicts])
        value, full, empty = yield endpoints(self.graph, circuit)
        return SearchResult(circuit, scores, tuple(self.verdicts), value, full, empty)
