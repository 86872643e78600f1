"""What receivers hear of single senders, in the variants that hear it.

Shape suffixes as in `receivers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pahq_server.engine.sparse.base import Base
from pahq_server.engine.sparse.rows import METRIC, WINDOW, Rows
from pahq_server.engine.sparse.tokens import Places
from pahq_server.engine.sparse.variants import (
    Index,
    Merged,
    Values,
    as_tensor,
    is_identity,
    laid_out,
    pick,
    runs,
    token_index,
)
from pahq_server.engine.sparse.weights import Low
from pahq_server.precision.products import add_matmul, matmul

# Where fewer variants than this share hear a sender, only they are computed.
SPARSE_SHARE = 0.7
# On CPUs so many runs of tokens are added one by one faster than by index.
MOST_RUNS = 12

# Changed senders, in order, each with the variant that every row hears; -1 where it hears no change.
Sources = list[tuple[int, Index]]


@dataclass(frozen=True)
class Change:
    """A node's change in the rows that change it.

    Args:
        values: difference from the base.
        variant: per row, index into V; -1 for rows that leave the node as it is.
    """

    values: Values
    variant: Index


@dataclass(frozen=True)
class Term:
    """A sender's change in some of the merged variants.

    Args:
        y: [V, N, K or D] of these variants.
        variants: their numbers.
        tokens: where their tokens are among those of all merged variants, as begins and ends of runs, or as
            an index where there are many; None if they are all.
    """

    y: Tensor
    variants: Index
    tokens: list[tuple[int, int]] | Tensor | None

    def add_to(self, total: Tensor | None, w: Tensor, shape: tuple[int, int]) -> Tensor:
        """Adds y @ w in place; ``total`` has the variants' layout ``shape``, None stands for zeros."""
        if self.tokens is None:
            return plus(total, self.y, w)
        if total is None:
            total = self.y.new_zeros(*shape, w.shape[-1])
        self.scatter(total, matmul(self.y, w))
        return total

    def scatter(self, total: Tensor, values: Tensor) -> None:
        """Adds values of these variants in place."""
        if self.tokens is None:
            total += values
            return
        flat, some = total.flatten(0, 1), values.flatten(0, 1)
        if isinstance(self.tokens, Tensor):
            flat.index_add_(0, self.tokens, some)
            return
        first = 0
        for begin, end in self.tokens:
            flat[begin:end] += some[first : first + end - begin]
            first += end - begin


def plus(total: Tensor | None, y: Tensor, w: Tensor) -> Tensor:
    """``total += y @ w`` in place; None stands for zeros."""
    return matmul(y, w) if total is None else add_matmul(total, y, w)


class Terms:
    """The terms of a sweep's senders.

    Args:
        rows: the rows.
        senders: what changes, filled while the sweep goes up.
    """

    def __init__(self, rows: Rows, senders: Mapping[int, Change]) -> None:
        self._rows, self._senders = rows, senders

    def apart(
        self, sender: int, receiver: int, wanted: Index, merged: Merged, reader: int | None = None
    ) -> Iterator[tuple[Low, Term]]:
        """A head's change in the merged variants that hear it, apart by the matrices that these use.

        Args:
            sender, receiver: a head, and where its change is needed.
            wanted: per merged variant, the head's.
            merged: variants.
            reader: the receiver, if its matrix is used too.
        """
        for low, some in self.versions(sender, wanted, merged, reader):
            yield low, self.one(sender, receiver, some, merged)

    def versions(
        self, sender: int, wanted: Index, merged: Merged, reader: int | None = None
    ) -> list[tuple[Low, Index]]:
        """``wanted`` apart by the matrices of head and reader that variants use, -1 in all others."""
        promotion = self._rows.promotion
        if promotion is None:
            found = [(self._rows.low, wanted)]
        else:
            found = promotion.apart(wanted, merged, sender, reader)
        return [(low, some) for low, some in found if (some >= 0).any()]

    def one(self, sender: int, receiver: int, wanted: Index, merged: Merged) -> Term:
        """A sender's change in the merged variants that hear it."""
        heard = np.flatnonzero(wanted >= 0)
        as_it_is = is_identity(wanted[heard], len(self._senders[sender].values.sizes))
        if len(heard) == len(wanted) or (len(heard) > SPARSE_SHARE * len(wanted) and not as_it_is):
            y = self.heard(sender, receiver, wanted, merged)
            return Term(y, np.arange(len(wanted)), None)
        sizes = self._rows.sizes(merged, receiver)
        y = self.heard(sender, receiver, wanted[heard], merged.some(heard))
        return Term(y, heard, _places(heard, sizes, y.device))

    def heard(self, sender: int, receiver: int, wanted: Index, merged: Merged) -> Tensor:
        """A sender's change in merged variants, where a receiver needs it: [V, N, K or D]."""
        rows, values = self._rows, self._senders[sender].values
        sizes = rows.sizes(merged, receiver)
        have, want = rows.sender_codes[:, sender], rows.receiver_codes[:, receiver]
        narrowed = ((have == WINDOW) & (want == METRIC))[(have > 0) & (want > 0)]
        if not narrowed.any():
            return pick(values, wanted, sizes).data
        if narrowed.all() and rows.one_job and values.even:
            data = rows.bases[0].tokens.narrow(values.data, Places.WINDOW, Places.METRIC)
            return pick(Values(data, np.full(len(values.sizes), data.shape[1])), wanted, sizes).data
        return self._gathered(sender, receiver, wanted, merged)

    def _gathered(self, sender: int, receiver: int, wanted: Index, merged: Merged) -> Tensor:
        """`heard` where some variants have other places than others."""
        rows, values = self._rows, self._senders[sender].values
        sizes, base_of = rows.sizes(merged, receiver), rows.base_of[merged.first]
        if base_of[0] == base_of[-1]:
            return self._heard_in(rows.bases[base_of[0]], sender, receiver, wanted)
        data = values.data.new_zeros(int(sizes.sum()), *values.data.shape[2:])
        ends = np.cumsum(sizes)
        for begin, end in runs(base_of):
            if (wanted[begin:end] < 0).all():
                continue
            found = self._heard_in(rows.bases[base_of[begin]], sender, receiver, wanted[begin:end])
            data[ends[begin] - sizes[begin] : ends[end - 1]] = found.flatten(0, 1)
        return laid_out(data, sizes)

    def _heard_in(self, base: Base, sender: int, receiver: int, wanted: Index) -> Tensor:
        """`heard` in variants of one base."""
        have, want = base.plan.needed[sender], base.plan.receivers[receiver]
        sizes = np.full(len(wanted), base.tokens.count(have))
        return base.tokens.narrow(pick(self._senders[sender].values, wanted, sizes).data, have, want)


def _places(variants: Index, sizes: Index, device: torch.device) -> list[tuple[int, int]] | Tensor:
    """Where the tokens of some variants are: `Term.tokens`."""
    ends = np.cumsum(sizes)
    begins = ends - sizes
    last = np.append(np.flatnonzero(variants[1:] - variants[:-1] > 1), len(variants) - 1)
    if device.type != "cpu" or len(last) > MOST_RUNS:
        return as_tensor(token_index(begins[variants], sizes[variants]), device)
    first = [0, *(last[:-1] + 1).tolist()]
    return list(zip(begins[variants[first]].tolist(), ends[variants[last]].tolist(), strict=True))
