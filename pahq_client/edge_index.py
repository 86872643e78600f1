"""Edges of a graph by number: what makes selections quick on graphs with a million edges.

Edges are numbered in the order of `Graph.edge_names`: receivers from first to last, into each the earliest
sender first. The senders into a receiver are the first ones of the graph, so that an edge's number is its
receiver's offset plus its sender's number. A set of edges is a boolean array with one element per edge.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pahq_client.errors import InvalidRequest
from pahq_client.graph import Edge, Graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@functools.lru_cache(maxsize=4)
def edge_index(graph: Graph) -> EdgeIndex:
    """Returns the index of a graph, made once for as long as only a few graphs are in use.

    Raises:
        InvalidRequest: the graph has too many edges to be listed.
    """
    return EdgeIndex(graph)


class EdgeIndex:
    """Numbers of the edges, senders and receivers of a graph.

    Args:
        graph: the graph.

    Attributes:
        senders: names of the senders, in the order in which the model computes them.
        receivers: names of the receivers, in that order.
        offsets: int64, shape [receivers + 1]: edges from ``offsets[r]`` to ``offsets[r + 1]`` lead into
            receiver ``r``, from senders 0, 1, 2 and so on.
        sender_of: int32, shape [edges]: the number of each edge's sender.
        receiver_of: int32, shape [edges]: the number of each edge's receiver.
        read_by: for each sender the numbers of the receivers that it reads: those of a head's q, k and v
            (shared ones included), that of an MLP, none for ``input``.
        feeds: for each receiver the numbers of the senders that read it; none for ``logits``.
    """

    def __init__(self, graph: Graph) -> None:
        import numpy as np

        graph.check_listable()
        self.graph = graph
        self.senders: list[str] = list(graph.senders())
        self.receivers: list[str] = list(graph.receivers())
        counts = np.array(list(graph.sender_counts()), np.int64)
        self.offsets: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._bounds: list[int] = self.offsets.tolist()
        numbers = np.arange(len(self.receivers), dtype=np.int32)
        self.receiver_of: NDArray[np.int32] = np.repeat(numbers, counts)
        edges = np.arange(self.num_edges)
        self.sender_of: NDArray[np.int32] = (edges - self.offsets[self.receiver_of]).astype(np.int32)
        self._sender_numbers = {name: number for number, name in enumerate(self.senders)}
        self._receiver_numbers = {name: number for number, name in enumerate(self.receivers)}
        self.feeds = [
            tuple(self._sender_numbers[sender] for sender in graph.senders_behind(receiver))
            for receiver in self.receivers
        ]
        read_by: list[list[int]] = [[] for _ in self.senders]
        for receiver, senders in enumerate(self.feeds):
            for sender in senders:
                read_by[sender].append(receiver)
        self.read_by: list[tuple[int, ...]] = [tuple(receivers) for receivers in read_by]

    @property
    def num_edges(self) -> int:
        """Edges of the graph."""
        return int(self.offsets[-1])

    def name(self, edge: int) -> str:
        """The name of an edge."""
        return f"{self.senders[self.sender_of[edge]]}->{self.receivers[self.receiver_of[edge]]}"

    def edges(self, numbers: Sequence[int] | NDArray[np.int64]) -> list[tuple[str, str]]:
        """The sender and receiver of each of these edges."""
        import numpy as np

        chosen = np.asarray(numbers, np.int64)
        pairs = zip(self.sender_of[chosen].tolist(), self.receiver_of[chosen].tolist(), strict=True)
        return [(self.senders[sender], self.receivers[receiver]) for sender, receiver in pairs]

    def scored(self, kept: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[Edge, ...]:
        """The edges of a set with their scores, in the order of ACDC's tests.

        Args:
            kept: bool, shape [edges].
            scores: float64, shape [edges]; NaN for an edge that has none.
        """
        import numpy as np

        numbers = np.flatnonzero(kept)[::-1]
        ends = zip(self.edges(numbers), scores[numbers].tolist(), strict=True)
        return tuple(Edge(a, b, None if math.isnan(score) else score) for (a, b), score in ends)

    def numbers(self, edges: Iterable[Edge]) -> NDArray[np.int64]:
        """The number of each of these edges, int64, shape [edges].

        Raises:
            InvalidRequest: the graph has no such edge.
        """
        import numpy as np

        return np.array([self._number(edge.source, edge.target) for edge in edges], np.int64)

    def kept(self, edges: Iterable[Edge]) -> NDArray[np.bool_]:
        """These edges as a set: bool, shape [edges of the graph]. Raises as `numbers`."""
        import numpy as np

        kept = np.zeros(self.num_edges, bool)
        kept[self.numbers(edges)] = True
        return kept

    def on_paths(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The edges of a set that are on a path from ``input`` to ``logits``.

        A path goes on from a receiver to each sender that reads it, as in `graph.edges_on_paths`.

        Args:
            kept: bool, shape [edges].

        Returns:
            bool, shape [edges].
        """
        import numpy as np

        # Senders that a path from the input reaches. Receivers come in the order of computation.
        reached = np.zeros(len(self.senders), bool)
        reached[0] = True
        bounds = self._bounds
        for receiver, senders in enumerate(self.feeds):
            start, end = bounds[receiver], bounds[receiver + 1]
            if senders and (kept[start:end] & reached[: end - start]).any():
                reached[list(senders)] = True
        # Senders that lead to the logits, and receivers of these.
        leading = np.zeros(len(self.senders), bool)
        used = np.zeros(len(self.receivers), bool)
        for receiver in reversed(range(len(self.receivers))):
            senders = self.feeds[receiver]
            if not senders or leading[list(senders)].any():
                used[receiver] = True
                start, end = bounds[receiver], bounds[receiver + 1]
                leading[: end - start] |= kept[start:end]
        return kept & reached[self.sender_of] & used[self.receiver_of]

    def find(self, source: str, target: str) -> int | None:
        """The number of the edge from a sender to a receiver; None if the graph has none."""
        sender, receiver = self._sender_numbers.get(source), self._receiver_numbers.get(target)
        if sender is None or receiver is None:
            return None
        number = self._bounds[receiver] + sender
        return number if number < self._bounds[receiver + 1] else None

    def _number(self, source: str, target: str) -> int:
        number = self.find(source, target)
        if number is None:
            raise InvalidRequest("edges", f"the graph has no edge {source}->{target}: {self.graph}")
        return number


def pack(kept: NDArray[np.bool_]) -> bytes:
    """A set of edges as bits, the lowest bit of the first byte first, as `EdgeSet` messages hold them."""
    import numpy as np

    return np.packbits(kept, bitorder="little").tobytes()
