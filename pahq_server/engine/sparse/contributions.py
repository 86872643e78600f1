"""What receivers hear of single senders, in the variants that hear it.

Shape suffixes as in `receivers`.


Changes of the residual stream at receivers, in the rows of a sweep.

Shape suffixes as in `receivers`; S senders, B bases.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.base_activations import Base
from pahq_server.engine.sparse.batch import METRIC, WINDOW, Rows
from pahq_server.engine.sparse.positions import Places
from pahq_server.engine.sparse.unpatched import is_head
from pahq_server.engine.sparse.variants import (
    Index,
    Merged,
    Values,
    as_tensor,
    is_identity,
    laid_out,
    layout,
    pick,
    runs,
    token_index,
)
from pahq_server.engine.sparse.weights import Low
from pahq_server.precision.products import add_matmul, matmul, sums

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


# A sum of fewer terms is made again as quickly, and not worth its memory.
REMEMBERED_TERMS = 6
# So many sums are remembered, of receivers that are needed at different places.
REMEMBERED_SUMS = 2


@dataclass(eq=False)
class _Sum:
    """What senders change together.

    Args:
        codes: per base, where it is needed: `Plan.receiver_codes`, [B].
        heard: whether any row of a base hears a sender: bool, [S, B].
        variant: per row, as in `Merged`, but counted from the first one of its base.
        bounds: where a base's tokens begin in ``dx``: [B + 1].
        dx: [V, N, D].
        squares: changes of sums of squares, [V, N], by the inputs that dx is added to.
    """

    codes: NDArray[np.int8]
    heard: NDArray[np.bool_]
    variant: Index
    bounds: Index
    dx: Tensor
    squares: dict[Hashable, Tensor] = field(default_factory=dict)

    def of_base(self, base: int) -> Tensor:
        """Tokens of a base's variants: [N, D]."""
        return self.dx.flatten(0, 1)[self.bounds[base] : self.bounds[base + 1]]

    def begins(self, other: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Per base, whether the sum of other senders goes on from this one, all in order."""
        earlier = np.arange(len(other))[:, None] < len(other) - self.heard[::-1].argmax(0)
        found: NDArray[np.bool_] = self.heard.any(0) & ~((other != self.heard) & earlier).any(0)
        return found


class Residual:
    """Sums of what senders write.

    Receivers of a circuit with many edges hear nearly the same, and those of the next layer a little more. So
    the last sums are remembered, but for those at cuts; rows of a base go on from them where what they hear
    begins alike.

    Args:
        rows: the rows of the sweep.
        terms: of its senders.
    """

    def __init__(self, rows: Rows, terms: Terms) -> None:
        self._rows, self._terms = rows, terms
        # Of different codes.
        self._last: list[_Sum] = []

    def change(
        self, receiver: int, sources: Sources, mask: NDArray[np.bool_] | None = None
    ) -> tuple[Tensor, Merged] | None:
        """Change of a receiver's input, [V, N, D], in the given rows (bool) or all.

        Not to be written to, and good until the next call, which may go on in the same memory.
        """
        rows, cut = self._rows, self._rows.cuts.get(receiver)
        columns = [variant for _, variant in sources]
        columns += [] if cut is None else [cut.variant]
        if mask is not None and not mask.all():
            columns = [np.where(mask, column, -1) for column in columns]
        merged = rows.merged(columns)
        if merged is None:
            return None
        senders = [sender for sender, _ in sources]
        if len(senders) >= REMEMBERED_TERMS:
            heard = np.zeros((rows.graph.num_senders, len(rows.bases)), dtype=bool)
            heard[senders] = rows.by_base(np.stack(columns[: len(senders)]) >= 0)
            return self._sum(receiver, senders, merged, heard), merged
        dx = self._cuts(receiver, len(senders), merged)
        for sender, wanted in zip(senders, merged.picks, strict=False):
            if (wanted >= 0).any():
                self._add(dx, sender, receiver, wanted, merged)
        return dx, merged

    def _sum(self, receiver: int, senders: list[int], merged: Merged, heard: NDArray[np.bool_]) -> Tensor:
        """The change, on from the last sums; ``heard`` as in `_Sum`."""
        rows, cut, codes = self._rows, self._rows.cuts.get(receiver), self._rows.receiver_codes[:, receiver]
        base_of = rows.base_of[merged.first]
        first = np.searchsorted(base_of, np.arange(len(codes) + 1))
        bounds = np.cumsum([0, *rows.sizes(merged, receiver)])[first]
        variant = np.where(merged.variant < 0, -1, merged.variant - first[rows.base_of])
        known, missing = self._known(receiver, heard, variant)
        old = next((last for last in self._last if np.array_equal(codes, last.codes)), None)
        in_place = old is not None and cut is None and np.array_equal(variant, old.variant)
        if old is not None and in_place:
            dx = old.dx
            for base in np.flatnonzero((missing == heard).all(0)).tolist():
                old.of_base(base).zero_()
        else:
            if old is not None and cut is None and all(last is not old for last, _ in known):
                self._last.remove(old)
                old = None  # before the next one takes as much
            dx = self._cuts(receiver, len(senders), merged)
        elsewhere = [(last, bases) for last, bases in known if last.dx is not dx]
        _copy(elsewhere, dx, bounds)
        if in_place and not elsewhere and not missing.any():
            return dx
        if cut is None:
            self._last = [last for last in self._last if last is not old]
        del known, elsewhere, old  # their memory is wanted below
        whole = (missing == heard).all(1)
        for sender, wanted in zip(senders, merged.picks, strict=False):
            if missing[sender].any():
                some = wanted if whole[sender] else np.where(missing[sender, base_of], wanted, -1)
                self._add(dx, sender, receiver, some, merged)
        if cut is None:
            self._last = [*self._last[1 - REMEMBERED_SUMS :], _Sum(codes, heard, variant, bounds, dx)]
        return dx

    def _known(
        self, receiver: int, heard: NDArray[np.bool_], variant: Index
    ) -> tuple[list[tuple[_Sum, NDArray[np.bool_]]], NDArray[np.bool_]]:
        """Sums that go on, each with the bases whose rows go on from it, bool [B]; and what is missing."""
        rows, cut, known = self._rows, self._rows.cuts.get(receiver), []
        codes, missing = rows.receiver_codes[:, receiver], heard
        free = np.full(len(codes), True) if cut is None else ~rows.by_base(cut.variant >= 0)
        for last in self._last:
            bases = free & (codes == last.codes) & ~rows.by_base(variant != last.variant)
            if bases.any() and (bases := bases & last.begins(heard)).any():
                known.append((last, bases))
                free, missing = free & ~bases, missing & ~(last.heard & bases)
        return known, missing

    def _cuts(self, receiver: int, senders: int, merged: Merged) -> Tensor:
        """What cuts at a receiver change, zeros without any.

        Args:
            receiver: where.
            senders: how many are added afterwards, in place; picks of cuts come after theirs.
            merged: variants.
        """
        weights, cut = self._rows.weights, self._rows.cuts.get(receiver)
        sizes = self._rows.sizes(merged, receiver)
        if cut is None:
            shape = (*layout(sizes), weights.arch.d_model)
            return torch.zeros(shape, dtype=weights.dtype, device=weights.device)
        dx = pick(cut.dx, merged.picks[senders], sizes).data
        # The bases go on using the original.
        shared = dx.untyped_storage().data_ptr() == cut.dx.data.untyped_storage().data_ptr()
        return dx.clone() if senders and shared else dx

    def _add(self, dx: Tensor, sender: int, receiver: int, wanted: Index, merged: Merged) -> None:
        if not is_head(self._rows.graph, sender):
            term = self._terms.one(sender, receiver, wanted, merged)
            term.scatter(dx, term.y)
            return
        shape = layout(self._rows.sizes(merged, receiver))
        for (low, _), term in self._terms.apart(sender, receiver, wanted, merged):
            term.add_to(dx, self._rows.weights.writes(sender, low), shape)

    def squares(self, receiver: int, dx: Tensor, merged: Merged) -> Tensor:
        """What `change`, ``dx``, does to the input's sum of squares: [V, N]."""
        inputs = self._rows.inputs(receiver, merged)
        known = next((last.squares for last in self._last if last.dx is dx), {})
        if inputs not in known:
            twice = self._rows.add_of_bases(dx.clone(), merged, lambda base: base.kept_x(receiver), alpha=2)
            known[inputs] = sums(twice.mul_(dx))
        return known[inputs]


def _copy(known: list[tuple[_Sum, NDArray[np.bool_]]], dx: Tensor, bounds: Index) -> None:
    """Writes what is known of bases to where their tokens begin in ``dx``."""
    for last, bases in known:
        for base in np.flatnonzero(bases).tolist():
            dx.flatten(0, 1)[bounds[base] : bounds[base + 1]] = last.of_base(base)
