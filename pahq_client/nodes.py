"""What nodes are worth: the scores of the edges into and out of each, summed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pahq_client.edge_index import EdgeIndex
from pahq_client.graph import head_of, layer_of, node_kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class NodeTotal:
    """What the edges of one node add up to.

    Args:
        node: its name, for example ``a5.h5``, ``m0``, ``input`` or ``logits``.
        incoming: sum of the scores of its incoming edges.
        outgoing: sum of the scores of its outgoing edges.
        num_incoming: how many edges lead into it.
        num_outgoing: how many edges lead out of it.
        total: sum of the scores of both kinds, without their signs.

    An edge into a key or value that several heads share counts for each of them.
    """

    node: str
    incoming: float
    outgoing: float
    num_incoming: int
    num_outgoing: int
    total: float

    @property
    def kind(self) -> str:
        """``input``, ``head``, ``mlp`` or ``logits``."""
        return node_kind(self.node)

    @property
    def layer(self) -> int | None:
        """Its layer; None for ``input`` and ``logits``."""
        return layer_of(self.node)

    @property
    def head(self) -> int | None:
        """Its head; None for all but heads."""
        return head_of(self.node)


def node_totals(
    index: EdgeIndex, edges: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NodeTotal, ...]:
    """Sums scores by node; from the largest total down, nodes without an edge left out.

    Args:
        index: of the graph.
        edges: numbers of the edges, int64, shape [n].
        scores: their scores, float64, shape [n].
    """
    import numpy as np

    names = [*index.senders, "logits"]
    senders, receivers = index.sender_of[edges], index.receiver_of[edges]
    incoming, outgoing = np.zeros((2, 3, len(names)))  # sum, sum without signs, number
    for row, weights in enumerate((scores, np.abs(scores), np.ones(len(scores)))):
        outgoing[row] = np.bincount(senders, weights, minlength=len(names))
        by_receiver = np.bincount(receivers, weights, minlength=len(index.receivers))
        for sum_, nodes in zip(by_receiver.tolist(), index.feeds, strict=True):
            incoming[row, list(nodes) or -1] += sum_
    total = incoming[1] + outgoing[1]
    counts = incoming[2] + outgoing[2]
    order = np.argsort(-total, kind="stable")
    return tuple(
        NodeTotal(
            node=names[node],
            incoming=float(incoming[0, node]),
            outgoing=float(outgoing[0, node]),
            num_incoming=int(incoming[2, node]),
            num_outgoing=int(outgoing[2, node]),
            total=float(total[node]),
        )
        for node in order.tolist()
        if counts[node]
    )
