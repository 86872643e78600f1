"""Chooses the edges of a circuit by their scores: the largest ones, or greedily from the logits.

Ranks are an order of all edges, the best first: int64, shape [edges], numbers of edges as in
`pahq_client.edge_index`. Of equal scores the edge comes first that ACDC tests first (grouping "none"), which
is the one with the higher number.
"""

from __future__ import annotations

import heapq
import math
from typing import TYPE_CHECKING

from pahq_client import checks
from pahq_client.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pahq_client.edge_index import EdgeIndex

RANKS = ("absolute", "harm")


def sort_keys(scores: NDArray[np.float64], rank: str) -> NDArray[np.float64]:
    """What edges are ranked by, the largest first: their scores, for ``absolute`` without their signs.

    Raises:
        InvalidRequest: there is no such rank.
    """
    import numpy as np

    if rank not in RANKS:
        raise InvalidRequest("rank", f"must be one of {', '.join(map(repr, RANKS))}, got {rank!r}")
    return np.abs(scores) if rank == "absolute" else np.asarray(scores)


def ranking(scores: NDArray[np.float64], rank: str) -> NDArray[np.int64]:
    """All edges, from the one with the largest score down; see `sort_keys`."""
    import numpy as np

    # Negated and reversed, so that a stable sort puts the higher number first among equals.
    backwards = np.argsort(-sort_keys(scores, rank)[::-1], kind="stable")
    return (len(scores) - 1 - backwards).astype(np.int64)


def count_of(num_edges: int, edges: object, fraction: object) -> int:
    """How many edges to choose.

    Args:
        num_edges: edges of the graph.
        edges: their number, or None.
        fraction: their share of the graph, or None.

    Raises:
        InvalidRequest: not exactly one of the two is given, or it is out of range.
    """
    if (edges is None) == (fraction is None):
        given = "neither" if edges is None else "both"
        raise InvalidRequest("edges", f"give either edges= or fraction=, got {given}")
    if edges is None:
        return share(num_edges, fraction)
    number = checks.integer("edges", edges)
    if not 1 <= number <= num_edges:
        raise InvalidRequest("edges", f"must be from 1 to {num_edges}, the edges of the graph, got {number}")
    return number


def share(num_edges: int, fraction: object) -> int:
    """How many edges a fraction of the graph is: rounded down, possibly 0. Raises as `checked_fraction`."""
    return math.floor(checked_fraction(fraction) * num_edges)


def checked_fraction(fraction: object, field: str = "fraction") -> float:
    """Returns a share of a graph's edges. Raises InvalidRequest unless it is above 0 and at most 1."""
    value = checks.number(field, fraction)
    if not 0 < value <= 1:  # also refuses NaN
        hint = f"; {value:g} % is {value / 100:g}" if 1 < value <= 100 else ""
        raise InvalidRequest(field, f"must be above 0 and at most 1, got {value:g}{hint}")
    return value


def top(order: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """The first edges of an order, as a set: bool, shape [edges]."""
    import numpy as np

    kept = np.zeros(len(order), bool)
    kept[order[:count]] = True
    return kept


def greedy(index: EdgeIndex, order: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """Grows a set from ``logits``: of all edges into nodes that are in, always the first one of the order.

    The sender of a chosen edge is in from then on. A k or v receiver that heads share is in with the first
    of its heads. `EAP-IG's greedy search <https://arxiv.org/abs/2403.17806>`_ does the same.

    Args:
        index: of the graph.
        order: all edges, the best first.
        count: how many edges to choose; fewer are chosen where no more lead into the nodes.

    Returns:
        bool, shape [edges].
    """
    import numpy as np

    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    bounds = index.offsets.tolist()
    is_in = [False] * len(index.receivers)
    # For each receiver that is in, its edges by their places in the order. The heap holds the best of each
    # that is left, as (place, receiver).
    waiting: dict[int, list[int]] = {}
    heap: list[tuple[int, int]] = []

    def enter(receiver: int) -> None:
        if not is_in[receiver]:
            is_in[receiver] = True
            incoming = np.sort(places[bounds[receiver] : bounds[receiver + 1]])
            waiting[receiver] = incoming[::-1].tolist()
            heapq.heappush(heap, (waiting[receiver].pop(), receiver))

    enter(len(index.receivers) - 1)
    chosen: list[int] = []
    while heap and len(chosen) < count:
        place, receiver = heap[0]
        chosen.append(place)
        if waiting[receiver]:
            heapq.heapreplace(heap, (waiting[receiver].pop(), receiver))
        else:
            heapq.heappop(heap)
        for behind in index.read_by[index.sender_of[order[place]]]:
            enter(behind)
    kept = np.zeros(len(order), bool)
    kept[order[np.array(chosen, np.int64)]] = True
    return kept
