"""A circuit: which edges of the graph are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.graph import Graph


@dataclass(frozen=True, eq=False)
class Circuit:
    """A set of kept edges.

    Args:
        graph: the graph that the edges belong to.
        kept: bool, shape [graph.num_edges]; never written to after construction.
    """

    graph: Graph
    kept: NDArray[np.bool_]

    @classmethod
    def full(cls, graph: Graph) -> Circuit:
        return cls(graph, np.ones(graph.num_edges, dtype=bool))

    @classmethod
    def empty(cls, graph: Graph) -> Circuit:
        return cls(graph, np.zeros(graph.num_edges, dtype=bool))

    @classmethod
    def from_names(cls, graph: Graph, names: Iterable[str]) -> Circuit:
        """The circuit of the named edges. Raises InvalidRequestError for a name not in the graph."""
        kept = np.zeros(graph.num_edges, dtype=bool)
        kept[[graph.parse_edge(name) for name in names]] = True
        return cls(graph, kept)

    @cached_property
    def key(self) -> bytes:
        """Equal for equal sets of edges of one graph."""
        return np.packbits(self.kept).tobytes()

    @property
    def num_kept(self) -> int:
        return int(np.count_nonzero(self.kept))

    def without(self, edges: Sequence[int]) -> Circuit:
        if not len(edges):
            return self
        kept = self.kept.copy()
        kept[list(edges)] = False
        return Circuit(self.graph, kept)

    def incoming(self, receiver: int) -> NDArray[np.bool_]:
        """Kept flags of the receiver's edges by sender: bool, shape [upstream(receiver)]."""
        offsets = self.graph.offsets
        return self.kept[offsets[receiver] : offsets[receiver + 1]]

    def is_dead(self, sender: int) -> bool:
        """Whether no outgoing edge of the sender is kept, so that it cannot change anything."""
        return not self.kept[self.graph.outgoing(sender)].any()
