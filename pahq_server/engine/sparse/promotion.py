"""Which heads run in full precision in which rows.

A row under a policy that promotes runs the head that its last removed edge leads into in full precision:
Q, K, V and O, wherever they act in the row. With grouped keys and values these are all heads of the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.graph import Graph
from pahq_server.engine.sparse.variants import Index, Merged


@dataclass(frozen=True)
class Promotion:
    """The promoted heads of the rows of a sweep.

    Args:
        heads: senders of each set of heads that some row promotes.
        receivers: the receivers of each.
        of_row: per row, the number of its set; -1 where it promotes nothing.
    """

    heads: tuple[frozenset[int], ...]
    receivers: tuple[frozenset[int], ...]
    of_row: Index

    def column(self, columns: Sequence[Index]) -> Index:
        """A further column to merge by, so that rows of one variant promote the same.

        Rows that no column changes stay unchanged.
        """
        active = np.logical_or.reduce([column >= 0 for column in columns])
        column: Index = np.where(active, self.of_row, -1)
        return column

    def of_sender(self, merged: Merged, sender: int) -> NDArray[np.bool_] | None:
        """Per merged variant, whether it promotes this sender; None if none does."""
        return self._flags(merged.first, [sender in heads for heads in self.heads])

    def of_receiver(self, merged: Merged, receiver: int) -> NDArray[np.bool_] | None:
        """Per merged variant, whether it promotes this receiver; None if none does."""
        return self._flags(merged.first, [receiver in receivers for receivers in self.receivers])

    def _flags(self, rows: Index, promoted: list[bool]) -> NDArray[np.bool_] | None:
        if not any(promoted):
            return None
        flags: NDArray[np.bool_] = np.array([*promoted, False])[self.of_row[rows]]
        return flags if flags.any() else None


def promotion_of(graph: Graph, removed: Sequence[Sequence[int]]) -> Promotion:
    """The promotion of rows that lack these edges, each row's last one leading into its own receiver."""
    sets: dict[frozenset[int], int] = {}
    of_row = np.full(len(removed), -1)
    for row, edges in enumerate(removed):
        heads = promoted_heads(graph, graph.edge_ends(edges[-1])[1]) if len(edges) else frozenset()
        if heads:
            of_row[row] = sets.setdefault(heads, len(sets))
    receivers = [frozenset(r for head in heads for r in graph.head_receivers(head)) for heads in sets]
    return Promotion(tuple(sets), tuple(receivers), of_row)


def promoted_heads(graph: Graph, receiver: int) -> frozenset[int]:
    """The heads that read a receiver's value, as senders; none unless it is a query, key or value."""
    if graph.receiver(receiver).kind == "mlp":
        return frozenset()
    return frozenset(graph.senders_behind(receiver))
