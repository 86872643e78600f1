"""Grouped ACDC as plainly as it can be said: names of edges, a set of kept ones, recursion."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import groupby

from helpers.topology import edge_names, heads_behind, senders_into, unit_names

from pahq_server.core.graph import Graph


@dataclass
class PlainBisect:
    """Tests all edges into an MLP, into all v, all k or all q receivers of a layer at once, then halves.

    Args:
        graph: gives sizes and kind of the graph, nothing else.
        metric: of a set of kept edges.
        threshold: tau.
        start: the kept edges at the start; None for all.
    """

    graph: Graph
    metric: Callable[[Collection[str]], float]
    threshold: float
    start: Collection[str] | None = None
    # First and last edge, how many, delta, kept.
    verdicts: list[tuple[str, str, int, float, bool]] = field(default_factory=list)

    def run(self) -> None:
        self.kept = set(edge_names(self.graph) if self.start is None else self.start)
        self.current = self.metric(self.kept)
        self._receivers(["logits"])
        for layer in reversed(range(self.graph.layers)):
            if self.graph.mlps:
                self._receivers([f"m{layer}"])
            for kind in "vkq":
                self._receivers(list(reversed(unit_names(self.graph, layer, kind))))

    def _receivers(self, receivers: list[str]) -> None:
        for receiver in receivers:
            if self._dead(receiver):
                self.kept -= set(self._incoming(receiver))
        self._test([edge for receiver in receivers for edge in self._incoming(receiver)])

    def _test(self, edges: list[str]) -> None:
        if not edges:
            return
        new = self.metric(self.kept - set(edges))
        delta = new - self.current
        remove = delta < self.threshold
        self.verdicts.append((edges[0], edges[-1], len(edges), delta, not remove))
        if remove:
            self.kept -= set(edges)
            self.current = new
        elif len(edges) > 1:
            parts = [list(some) for _, some in groupby(edges, key=lambda edge: edge.split("->")[1])]
            if len(parts) == 1:
                parts = [[edge] for edge in edges]
            middle = (len(parts) + 1) // 2
            for half in (parts[:middle], parts[middle:]):
                self._test([edge for part in half for edge in part])

    def _incoming(self, receiver: str) -> list[str]:
        """Kept edges into a receiver, latest sender first."""
        senders = reversed(senders_into(self.graph, receiver))
        return [edge for sender in senders if (edge := f"{sender}->{receiver}") in self.kept]

    def _dead(self, receiver: str) -> bool:
        behind = heads_behind(self.graph, receiver)
        return bool(behind) and not any(edge.startswith(f"{s}->") for s in behind for edge in self.kept)
