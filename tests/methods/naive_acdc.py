"""ACDC a second time, as plainly as it can be said: names, a set of kept edges, one test after another."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from helpers.topology import edge_names, heads_behind, senders_into, unit_names

from pahq_server.core.graph import Graph


@dataclass
class NaiveAcdc:
    """The search of the design, section 3.

    Args:
        graph: gives sizes and kind of the graph, nothing else.
        metric: of a set of kept edges.
        threshold: tau.
        gates: whether gates are tested.
    """

    graph: Graph
    metric: Callable[[Collection[str]], float]
    threshold: float
    gates: bool
    start: Collection[str] | None = None  # the kept edges at the start; None for all
    verdicts: list[tuple[str, float, bool, bool]] = field(default_factory=list)  # subject, delta, kept, gate

    def run(self) -> None:
        self.kept = set(edge_names(self.graph) if self.start is None else self.start)
        self.current = self.metric(self.kept)
        self._receiver("logits")
        for layer in reversed(range(self.graph.layers)):
            if self.graph.mlps:
                self._receiver(f"m{layer}")
            names = [name for kind in "vkq" for name in reversed(unit_names(self.graph, layer, kind))]
            if self.gates:
                for name in names:
                    self._gate(name)
            for name in names:
                self._receiver(name)

    @property
    def gates_kept(self) -> list[str]:
        return [subject for subject, _, kept, gate in self.verdicts if gate and kept]

    def _gate(self, receiver: str) -> None:
        if not self._dead(receiver):
            self._test(receiver, self._incoming(receiver), gate=True)

    def _receiver(self, receiver: str) -> None:
        if self._dead(receiver):
            self.kept -= set(self._incoming(receiver))
        for edge in self._incoming(receiver):
            self._test(edge, [edge], gate=False)

    def _test(self, subject: str, edges: list[str], gate: bool) -> None:
        if not edges:
            return
        new = self.metric(self.kept - set(edges))
        delta = new - self.current
        remove = delta < self.threshold
        self.verdicts.append((subject, delta, not remove, gate))
        if remove:
            self.kept -= set(edges)
            self.current = new

    def _incoming(self, receiver: str) -> list[str]:
        """Kept edges into a receiver, latest sender first."""
        senders = reversed(senders_into(self.graph, receiver))
        return [edge for sender in senders if (edge := f"{sender}->{receiver}") in self.kept]

    def _dead(self, receiver: str) -> bool:
        behind = heads_behind(self.graph, receiver)
        return bool(behind) and not any(edge.startswith(f"{s}->") for s in behind for edge in self.kept)
