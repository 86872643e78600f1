"""What receivers read in the rows of a sweep, given the changes of the senders below them.

Every contribution is added one sender at a time in a fixed order, a sender that did not change contributes
an exact zero, and matrix products are row-independent (`precision.products`). So a row's bits do not depend
on the rows beside it.

Shape suffixes: V variants, N packed tokens, D d_model, K d_head, O receiver width; values of variants of
unequal sizes are laid out as in `variants`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.maps import by_token
from pahq_server.engine.sparse.reference import is_head
from pahq_server.engine.sparse.rows import METRIC, WINDOW, Rows
from pahq_server.engine.sparse.terms import Term, plus
from pahq_server.engine.sparse.tokens import Places
from pahq_server.engine.sparse.variants import (
    Index,
    Merged,
    Values,
    as_tensor,
    joined,
    laid_out,
    layout,
    merge,
    pick,
    runs,
    token_index,
)
from pahq_server.engine.sparse.weights import Low
from pahq_server.precision.products import matmul, sums

# Where fewer variants than this share hear a sender, only they are computed.
SPARSE_SHARE = 0.7

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
class NewState:
    """A receiver's state in the variants that change it, as in `State`; ``variant`` as in `Change`."""

    u: Values
    square: Values
    value: Values
    variant: Index


class Receivers:
    """Inputs of receivers in the rows of a sweep.

    Args:
        rows: the rows.
        senders: filled by `add` while the sweep goes up.
    """

    def __init__(self, rows: Rows, senders: dict[int, Change]) -> None:
        self._rows, self._senders = rows, senders
        self._graph, self._weights = rows.graph, rows.weights
        self._rotary = rows.weights.weights.rotary is not None
        # Whether any row of a base changes a sender: bool, [bases, senders].
        self._changed = np.zeros((len(rows.bases), rows.graph.num_senders), dtype=bool)

    def new_state(self, receiver: int, sources: Sources, rows: NDArray[np.bool_] | None) -> NewState | None:
        """The receiver's state in the given rows (bool) or all.

        Each row goes through the residual stream or not by what changes in it alone.
        """
        if not sources and receiver not in self._rows.cuts:
            return None
        projected = self._needs_projection(receiver, sources)
        composed = ~projected
        if rows is not None:
            projected, composed = projected & rows, composed & rows
        parts = []
        if projected.any():
            parts.append(self._projected(receiver, sources, projected))
        if composed.any():
            heads = [(s, np.where(composed, v, -1)) for s, v in sources if is_head(self._graph, s)]
            parts.append(self._composed(receiver, heads))
        states = [self._moved_state(receiver, *part) for part in parts if part is not None]
        if len(states) < 2:
            return states[0] if states else None
        first, second = states
        variant = np.where(second.variant < 0, first.variant, second.variant + len(first.u.sizes))
        pairs = ((first.u, second.u), (first.square, second.square), (first.value, second.value))
        u, square, value = (joined(pair) for pair in pairs)
        return NewState(u, square, value, variant)

    def _needs_projection(self, receiver: int, sources: Sources) -> NDArray[np.bool_]:
        """Per row, whether its change has no short form in the coordinates of heads."""
        cut = self._rows.cuts.get(receiver)
        projected = ~self._rows.composable(receiver)
        if cut is not None:
            projected |= cut.variant >= 0
        for sender, variant in sources:
            if not is_head(self._graph, sender):
                projected |= variant >= 0
        return projected

    def _moved_state(self, receiver: int, du: Tensor, dsquare: Tensor, merged: Merged) -> NewState:
        rows = self._rows
        u = du + rows.of_bases(merged, lambda base: base.state(receiver).u)
        square = dsquare + rows.of_bases(merged, lambda base: base.state(receiver).square)
        positions = rows.of_bases(merged, lambda base: base.positions(receiver)) if self._rotary else None
        value = self._weights.finish(receiver, u, square, positions)
        sizes = rows.sizes(merged, receiver)
        return NewState(Values(u, sizes), Values(square, sizes), Values(value, sizes), merged.variant)

    def sources(self, receiver: int) -> Sources:
        """Changed senders that any row hears, in order, with the variant that each row hears."""
        rows, cut = self._rows, self._rows.cuts.get(receiver)
        start, count = int(self._graph.offsets[receiver]), self._graph.upstream(receiver)
        kept_BS = rows.kept[:, start : start + count] & (rows.receiver_codes[:, receiver, None] > 0)
        heard: Sources = []
        for sender in np.flatnonzero((kept_BS & self._changed[:, :count]).any(0)).tolist():
            variant = self._senders[sender].variant
            if not kept_BS[:, sender].all():
                variant = np.where(kept_BS[rows.base_of, sender], variant, -1)
            if cut is not None:
                cuts_it = np.array([sender in pattern for pattern in cut.patterns] + [False])
                variant = np.where(cuts_it[cut.variant], -1, variant)
            heard.append((sender, variant))
        return heard

    def changed_in(self, layer: int) -> set[int]:
        """The q, k and v receivers of a layer that rows change."""
        graph, rows = self._graph, self._rows
        first, count = graph.receiver_of("q", layer), graph.heads + 2 * graph.kv_units
        senders, start = graph.first_sender(layer), int(graph.offsets[first])
        kept_BRS = rows.kept[:, start : start + count * senders].reshape(-1, count, senders)
        fed_BR = (kept_BRS & self._changed[:, None, :senders]).any(-1)
        fed_BR &= rows.receiver_codes[:, first : first + count] > 0
        fed: list[int] = (np.flatnonzero(fed_BR.any(0)) + first).tolist()
        return {*fed, *(r for r in rows.cuts if first <= r < first + count)}

    def add(self, sender: int, change: Change) -> None:
        """Makes a sender's change known to the receivers above it."""
        self._senders[sender] = change
        self._changed[:, sender] = self._rows.by_base(change.variant >= 0)

    def _composed(self, receiver: int, sources: Sources) -> tuple[Tensor, Tensor, Merged] | None:
        """(du, dsquare, rows) without leaving the heads' coordinates.

        With x' = x + sum of y_s W_s: u' = u + sum of y_s (W_s W_r), and
        |x'|^2 = |x|^2 + sum of y_s . (2 x W_s^T + y_s W_s W_s^T + 2 sum over s' < s of y_s' W_s' W_s^T).
        """
        sources = [(sender, variant) for sender, variant in sources if (variant >= 0).any()]
        merged = self._merged([variant for _, variant in sources])
        if merged is None:
            return None
        heads = [sender for sender, _ in sources]
        total: Tensor | None = None
        shape = layout(self._rows.sizes(merged, receiver))
        for sender, wanted in zip(heads, merged.picks, strict=False):
            for low, term in self._terms(sender, receiver, wanted, merged, receiver):
                total = term.add_to(total, self._weights.composed(sender, receiver, low), shape)
        assert total is not None
        dsquare = total.new_zeros(total.shape[:-1])
        if self._weights.arch.norm is not None:
            for i in range(len(heads)):
                self._add_square(dsquare, receiver, heads, i, merged)
        return total, dsquare, merged

    def _add_square(self, dsquare: Tensor, receiver: int, heads: list[int], i: int, merged: Merged) -> None:
        """Adds the terms of head i in the variants that hear it."""
        sender = heads[i]
        for (low, _), term in self._terms(sender, receiver, merged.picks[i], merged):
            some = merged.some(term.variants)
            products = self._rows.of_bases(some, lambda base, low=low: base.dots(receiver, sender, low))  # type: ignore[misc]
            earlier: Tensor | None = None
            for other, wanted in zip(heads[:i], some.picks, strict=False):
                for (other_low, _), theirs in self._versions(other, wanted, some):
                    z = self._heard(other, receiver, theirs, some)
                    earlier = plus(earlier, z, self._weights.overlap(other, sender, (other_low, low)))
            products = products if earlier is None else products + earlier
            products = 2 * products + matmul(term.y, self._weights.overlap(sender, sender, (low, low)))
            term.scatter(dsquare, sums(term.y * products))

    def _projected(
        self, receiver: int, sources: Sources, rows: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor, Merged] | None:
        """(du, dsquare, rows) through the residual stream, for some rows."""
        moved = self.residual(receiver, sources, rows)
        if moved is None:
            return None
        dx, merged = moved
        x = self._rows.of_bases(merged, lambda base: base.kept_x(receiver))
        du = self._read(receiver, dx, merged)
        return du, sums((2 * x + dx).mul_(dx)), merged

    def residual(
        self, receiver: int, sources: Sources, rows: NDArray[np.bool_] | None
    ) -> tuple[Tensor, Merged] | None:
        """Change of a receiver's input, [V, N, D], in the given rows (bool) or all."""
        cut = self._rows.cuts.get(receiver)
        columns = [variant for _, variant in sources]
        columns += [] if cut is None else [cut.variant]
        if rows is not None:
            columns = [np.where(rows, column, -1) for column in columns]
        merged = self._merged(columns)
        if merged is None:
            return None
        sizes = self._rows.sizes(merged, receiver)
        if cut is None:
            shape, weights = layout(sizes), self._weights
            dx = torch.zeros(*shape, weights.arch.d_model, dtype=weights.dtype, device=weights.device)
        else:
            dx = pick(cut.dx, merged.picks[len(sources)], sizes).data
            # The bases go on using the original.
            dx = dx.clone() if sources and dx is cut.dx.data else dx
        for (sender, _), wanted in zip(sources, merged.picks[: len(sources)], strict=True):
            if not (wanted >= 0).any():
                continue
            if not is_head(self._graph, sender):
                term = self._term(sender, receiver, wanted, merged)
                term.scatter(dx, term.y)
                continue
            for (low, _), term in self._terms(sender, receiver, wanted, merged):
                term.add_to(dx, self._weights.writes(sender, low), layout(sizes))
        return dx, merged

    def _merged(self, columns: list[Index]) -> Merged | None:
        """Merged by these columns, and so that all rows of a variant promote the same."""
        promotion = self._rows.promotion
        return merge(columns if promotion is None or not columns else [*columns, promotion.column(columns)])

    def _read(self, receiver: int, dx: Tensor, merged: Merged) -> Tensor:
        """A change of input through a receiver's projection: [V, N, O]."""
        rows = self._rows
        if rows.maps is None:
            return matmul(dx, self._weights.reads(receiver))
        full = None if rows.promotion is None else rows.promotion.of_receiver(merged, receiver)
        return rows.maps.read(receiver, dx, by_token(full, rows.sizes(merged, receiver), dx.device))

    def _terms(
        self, sender: int, receiver: int, wanted: Index, merged: Merged, reader: int | None = None
    ) -> Iterator[tuple[Low, Term]]:
        """A head's change in the merged variants that hear it, apart by the matrices that these use.

        Args:
            sender, receiver: a head, and where its change is needed.
            wanted: per merged variant, the head's.
            merged: variants.
            reader: the receiver, if its matrix is used too.
        """
        for low, some in self._versions(sender, wanted, merged, reader):
            yield low, self._term(sender, receiver, some, merged)

    def _versions(
        self, sender: int, wanted: Index, merged: Merged, reader: int | None = None
    ) -> list[tuple[Low, Index]]:
        """``wanted`` apart by the matrices of head and reader that variants use, -1 in all others."""
        promotion = self._rows.promotion
        if promotion is None:
            found = [(self._rows.low, wanted)]
        else:
            found = promotion.apart(wanted, merged, sender, reader)
        return [(low, some) for low, some in found if (some >= 0).any()]

    def _term(self, sender: int, receiver: int, wanted: Index, merged: Merged) -> Term:
        """A sender's change in the merged variants that hear it."""
        heard = np.flatnonzero(wanted >= 0)
        if len(heard) > SPARSE_SHARE * len(wanted):
            y = self._heard(sender, receiver, wanted, merged)
            return Term(y, np.arange(len(wanted)), None)
        sizes = self._rows.sizes(merged, receiver)
        y = self._heard(sender, receiver, wanted[heard], merged.some(heard))
        tokens = token_index((np.cumsum(sizes) - sizes)[heard], sizes[heard])
        return Term(y, heard, as_tensor(tokens, y.device))

    def _heard(self, sender: int, receiver: int, wanted: Index, merged: Merged) -> Tensor:
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
        """`_heard` where some variants have other places than others."""
        rows, values = self._rows, self._senders[sender].values
        sizes, base_of = rows.sizes(merged, receiver), rows.base_of[merged.first]
        data = values.data.new_zeros(int(sizes.sum()), *values.data.shape[2:])
        ends = np.cumsum(sizes)
        for begin, end in runs(base_of):
            if (wanted[begin:end] < 0).all():
                continue
            base = rows.bases[base_of[begin]]
            have, want = base.plan.needed[sender], base.plan.receivers[receiver]
            found = pick(values, wanted[begin:end], np.full(end - begin, base.tokens.count(have))).data
            narrowed = base.tokens.narrow(found, have, want).flatten(0, 1)
            data[ends[begin] - sizes[begin] : ends[end - 1]] = narrowed
        return laid_out(data, sizes)
