"""Which nodes are live under a circuit, and at which positions they are needed.

A sender is live if a path of kept edges leads from it to the logits; nothing else is ever scheduled.
A live node is needed at the metric places only, unless a key or a value is computed from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.circuit import Circuit
from pahq_server.core.graph import INPUT, Graph
from pahq_server.engine.sparse.tokens import Places

# Places as numbers, for arrays; 0 stands for none.
CODES = {Places.METRIC: 1, Places.WINDOW: 2}


@dataclass(frozen=True)
class Plan:
    """Live nodes of a circuit.

    Args:
        circuit: what is planned for.
        needed: per live sender, where its output is needed.
        receivers: per live receiver, where its input is needed.
    """

    circuit: Circuit
    needed: dict[int, Places]
    receivers: dict[int, Places]

    @classmethod
    def of(cls, circuit: Circuit) -> Plan:
        graph = circuit.graph
        plan = cls(circuit, {}, {graph.logits: Places.METRIC})
        for layer in reversed(range(graph.layers)):
            if graph.mlps:
                plan._visit(graph.mlp(layer))
            for head in range(graph.heads):
                plan._visit(graph.head(layer, head))
        plan._visit(INPUT)
        return plan

    def _visit(self, sender: int) -> None:
        """Decides one sender. All its readers have been decided before."""
        first = self.graph.first_receiver(sender)
        readers = np.flatnonzero(self.circuit.kept[self.graph.outgoing(sender)]) + first
        places = {self.receivers[r] for r in readers.tolist() if r in self.receivers}
        if places:
            self.needed[sender] = Places.WINDOW if Places.WINDOW in places else Places.METRIC
            self.receivers.update(self._inputs(sender))

    def _inputs(self, sender: int) -> dict[int, Places]:
        """The receivers that feed a live sender."""
        graph = self.graph
        if sender == INPUT:
            return {}
        layer, unit = divmod(sender - 1, graph.senders_per_layer)
        if unit == graph.heads:
            return {graph.receiver_of("mlp", layer): self.needed[sender]}
        kv = unit * graph.kv_units // graph.heads
        return {
            graph.receiver_of("q", layer, unit): self.needed[sender],
            graph.receiver_of("k", layer, kv): Places.WINDOW,
            graph.receiver_of("v", layer, kv): Places.WINDOW,
        }

    @property
    def graph(self) -> Graph:
        return self.circuit.graph

    @cached_property
    def sender_codes(self) -> NDArray[np.int8]:
        """Per sender, 0 if it is not live, else where it is needed: see `CODES`."""
        return _codes(self.needed, self.graph.num_senders)

    @cached_property
    def receiver_codes(self) -> NDArray[np.int8]:
        """Per receiver, 0 if it is not live, else where it is needed: see `CODES`."""
        return _codes(self.receivers, self.graph.num_receivers)

    @cached_property
    def kept_heads(self) -> NDArray[np.int64]:
        """Per receiver, how many heads feed it along kept edges."""
        kept = self.circuit.kept & self.graph.head_edges
        # Every receiver has an edge from `input`, so no segment is empty.
        return np.add.reduceat(kept, self.graph.offsets[:-1], dtype=np.int64)

    def heads(self, layer: int) -> list[int]:
        """Live heads of a layer."""
        return [h for h in range(self.graph.heads) if self.graph.head(layer, h) in self.needed]

    def __str__(self) -> str:
        """One line per layer: live nodes, with * where they are needed at the metric places only."""
        lines = []
        for layer in range(self.graph.layers):
            senders = [self.graph.head(layer, h) for h in self.heads(layer)]
            if self.graph.mlps and self.graph.mlp(layer) in self.needed:
                senders.append(self.graph.mlp(layer))
            names = [
                self.graph.sender_name(s) + ("*" if self.needed[s] is Places.METRIC else "") for s in senders
            ]
            lines.append(f"layer {layer}: {' '.join(names) or '-'}")
        return "\n".join(lines)


def _codes(places: dict[int, Places], count: int) -> NDArray[np.int8]:
    codes = np.zeros(count, dtype=np.int8)
    for index, where in places.items():
        codes[index] = CODES[where]
    return codes
