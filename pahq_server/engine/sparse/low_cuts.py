"""Cuts of rows in low precision: what a removed edge changes goes through the rounded W_O of its sender."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.base import Base, Pattern
from pahq_server.engine.sparse.cuts import Cut, chained, collect, single_cut
from pahq_server.engine.sparse.promotion import Promotion


def collect_low(
    bases: Sequence[Base],
    base_of: NDArray[np.int64],
    removed: Sequence[Sequence[int]],
    promotion: Promotion | None,
) -> dict[int, Cut]:
    """`cuts.collect` of rows that may promote heads.

    The kind of a difference is the set of heads that it has in full precision. Most rows promote heads that
    they do not cut, and share the differences of all rows that promote none.
    """

    def sums(base: Base, receiver: int, patterns: list[Pattern], kind: int) -> Tensor:
        heads = frozenset[int]() if promotion is None or kind < 0 else promotion.heads[kind]
        everything: Callable[[], Tensor] | None = None
        if not heads:
            everything = lambda: base.low_ablation_of_all(receiver)  # noqa: E731

        def alone(sender: int) -> Tensor:
            return single_cut(base, receiver, sender, low=sender not in heads)

        return chained(base, receiver, patterns, heads, alone, everything)

    def kind_of(row: int, pattern: Pattern) -> int:
        assert promotion is not None
        kind = int(promotion.of_row[row])
        return kind if kind >= 0 and not promotion.heads[kind].isdisjoint(pattern) else -1

    return collect(bases, base_of, removed, sums, None if promotion is None else kind_of)
