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
from pahq_server.engine.sparse.weights import ALL_LOW, Low


@dataclass(frozen=True)
class Promotion:
    """The promoted heads of the rows of a sweep.

    Args:
        heads: senders of each set of heads that some row promotes.
        senders: whether a set promotes a sender: bool, [sets + 1, senders]. The last set is empty.
        receivers: the same for receivers.
        of_row: per row, the number of its set; -1 where it promotes nothing.
    """

    heads: tuple[frozenset[int], ...]
    senders: NDArray[np.bool_]
    receivers: NDArray[np.bool_]
    of_row: Index

    def column(self, columns: Sequence[Index]) -> Index:
        """A further column to merge by, so that rows of one variant promote the same.

        Rows that no column changes stay unchanged.
        """
        active = np.logical_or.reduce([column >= 0 for column in columns])
        column: Index = np.where(active, self.of_row, -1)
        return column

    def of_receiver(self, merged: Merged, receiver: int) -> NDArray[np.bool_] | None:
        """Per merged variant, whether it promotes this receiver; None if none does."""
        return self._flags(merged, self.receivers, receiver)

    def apart(
        self, wanted: Index, merged: Merged, sender: int, reader: int | None
    ) -> list[tuple[Low, Index]]:
        """Variants of a head apart by what is promoted: which matrices are rounded, and who wants it then.

        Args:
            wanted: per merged variant, the head's, or -1.
            merged: variants.
            sender: the head.
            reader: the receiver whose matrix follows on the head's, if one does.
        """
        heads = self._flags(merged, self.senders, sender)
        readers = None if reader is None else self._flags(merged, self.receivers, reader)
        parts, rest = [], wanted
        # Nobody promotes both: promoted heads are of one layer, and do not read each other.
        for low, flags in (((False, True), heads), ((True, False), readers)):
            if flags is not None:
                parts.append((low, np.where(flags, wanted, -1)))
                rest = np.where(flags, -1, rest)
        return [*parts, (ALL_LOW, rest)]

    def _flags(self, merged: Merged, promoted: NDArray[np.bool_], node: int) -> NDArray[np.bool_] | None:
        flags: NDArray[np.bool_] = promoted[self.of_row[merged.first], node]
        return flags if flags.any() else None


def promotion_of(graph: Graph, removed: Sequence[Sequence[int]]) -> Promotion:
    """The promotion of rows that lack these edges, each row's last one leading into its own receiver."""
    sets: dict[frozenset[int], int] = {}
    of_row = np.full(len(removed), -1)
    rows = np.array([row for row, edges in enumerate(removed) if len(edges)], dtype=np.int64)
    last = np.array([removed[row][-1] for row in rows.tolist()], dtype=np.int64)
    receivers_of, place = np.unique(
        np.searchsorted(graph.offsets, last, side="right") - 1, return_inverse=True
    )
    for number, receiver in enumerate(receivers_of.tolist()):
        heads = frozenset(graph.heads_behind(receiver))
        if heads:
            of_row[rows[place == number]] = sets.setdefault(heads, len(sets))
    senders = np.zeros((len(sets) + 1, graph.num_senders), dtype=bool)
    receivers = np.zeros((len(sets) + 1, graph.num_receivers), dtype=bool)
    for heads, number in sets.items():
        senders[number, list(heads)] = True
        receivers[number, [r for head in heads for r in graph.head_receivers(head)]] = True
    return Promotion(tuple(sets), senders, receivers, of_row)
