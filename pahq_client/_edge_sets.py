"""Edges by number: circuits as bits, one for each edge of a graph, as servers take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pahq.v1 import circuit_pb2

from pahq_client.circuit import Circuit
from pahq_client.errors import InvalidRequest
from pahq_client.graph import Edge, Graph

if TYPE_CHECKING:
    from numpy.typing import NDArray


class EdgeNumbers:
    """Numbers the edges of a graph in the order of `Graph.edge_names`, without listing them.

    An edge's number is that of its receiver's first edge plus the place of its sender among all senders,
    since the senders that feed a receiver are always the earliest ones.

    Raises:
        InvalidRequest: the graph has more edges than can be listed.
    """

    def __init__(self, graph: Graph) -> None:
        graph.edges()  # checks the size
        self._places = {sender: place for place, sender in enumerate(_senders(graph))}
        self._edges: dict[str, range] = {}  # of each receiver
        first = 0
        for receiver in graph.receivers():
            fan_in = self._fan_in(receiver, graph)
            self._edges[receiver] = range(first, first + fan_in)
            first += fan_in

    def _fan_in(self, receiver: str, graph: Graph) -> int:
        if receiver == "logits":
            return len(self._places)
        layer = int(receiver[1:].partition(".")[0])
        below = 1 + layer * (graph.heads + graph.mlps)
        return below + graph.heads if receiver == f"m{layer}" and not graph.parallel else below

    def number(self, edge: Edge) -> int:
        """Returns the number of an edge. Raises KeyError for one that the graph does not have."""
        place, edges = self._places[edge.source], self._edges[edge.target]
        if place >= len(edges):
            raise KeyError(str(edge))
        return edges[place]


def _senders(graph: Graph) -> Iterator[str]:
    yield "input"
    for layer in range(graph.layers):
        yield from (f"a{layer}.h{head}" for head in range(graph.heads))
        if graph.mlps:
            yield f"m{layer}"


# Not more: the names of a large graph take some megabytes.
numbers_of = lru_cache(2)(EdgeNumbers)


def mask(field: str, edges: Iterable[Edge], graph: Graph) -> NDArray[Any]:
    """Returns which edges of a graph are among the given ones: bool, shape [edges of the graph].

    Raises:
        InvalidRequest: the graph does not have an edge, or has too many to be listed.
    """
    import numpy as np

    kept, numbers = np.zeros(graph.num_edges, dtype=bool), numbers_of(graph)
    for edge in edges:
        try:
            kept[numbers.number(edge)] = True
        except KeyError:
            raise InvalidRequest(field, f"has the edge {edge}, which its graph does not have") from None
    return kept


def edge_set_of(field: str, circuit: Circuit) -> circuit_pb2.EdgeSet:
    """Converts a circuit. Raises InvalidRequest as `mask` does."""
    return edge_set(mask(field, circuit.edges, circuit.graph), circuit.graph, circuit.model_revision)


def edge_set(kept: NDArray[Any], graph: Graph, revision: str) -> circuit_pb2.EdgeSet:
    """Converts a mask to a message.

    Args:
        kept: bool, shape [edges of the graph].
        graph: the graph.
        revision: revision of the model that the edges were found in; empty if unknown.
    """
    import numpy as np

    sizes = {name: getattr(graph, name) for name in ("layers", "heads", "kv_heads")}
    message = circuit_pb2.Graph(
        **sizes, kv_receivers=graph.kv_receivers, parallel=graph.parallel, mlps=graph.mlps
    )
    bits = np.packbits(kept, bitorder="little").tobytes()
    return circuit_pb2.EdgeSet(graph=message, model_revision=revision, bits=bits)
