"""The effect of every edge alone: what the metric does when only that edge is ablated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Anchor, Row
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
    """

    def __init__(
        self, graph: Graph, threshold: float | None, window: int = 1, verdicts: Sequence[Verdict] = ()
    ) -> None:
        self.graph, self.threshold, self.window = graph, threshold, window
        self.verdicts = list(verdicts)
        self.statistics = SearchStatistics()
        self._full_metric = 0.0
        self._kept = sum(verdict.kept for verdict in verdicts)

    def run(self) -> Steps:
        full = Anchor(Circuit.full(self.graph))
        (self._full_metric,) = yield [Row(full)]
        while len(self.verdicts) < self.graph.num_edges:
            start = len(self.verdicts)
            edges = range(start, min(start + self.window, self.graph.num_edges))
            scores = yield [Row(full, (edge,)) for edge in edges]
            found = [self._judge(edge, score) for edge, score in zip(edges, scores, strict=True)]
            self.verdicts += found
            self._kept += sum(verdict.kept for verdict in found)
            self.statistics.batches += 1
            self.statistics.rows += len(edges)
        return (yield from self._result())

    def progress(self) -> SearchProgress:
        return SearchProgress(len(self.verdicts), self._kept, self._full_metric)

    def _judge(self, edge: int, score: float) -> Verdict:
        delta = score - self._full_metric
        kept = self.threshold is None or not delta < self.threshold
        return Verdict(gate=False, index=edge, score=score, delta=delta, kept=kept)

    def _result(self) -> Steps:
        circuit = Circuit(self.graph, np.array([verdict.kept for verdict in self.verdicts], dtype=bool))
        scores = np.array([verdict.delta for verdict in self.verdicts])
        value, full, empty = yield endpoints(self.graph, circuit)
        return SearchResult(circuit, scores, tuple(self.verdicts), value, full, empty)
