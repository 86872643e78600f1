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
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.base import Base
from pahq_server.engine.sparse.maps import by_token
from pahq_server.engine.sparse.reference import is_head
from pahq_server.engine.sparse.residual import Residual
from pahq_server.engine.sparse.rows import Rows
from pahq_server.engine.sparse.terms import Change, Sources, Terms, plus
from pahq_server.engine.sparse.variants import Index, Merged, Values, joined, layout, part_of
from pahq_server.precision.products import matmul, sums


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
        self._terms = Terms(rows, senders)
        self.residual = Residual(rows, self._terms)
        self._graph, self._weights = rows.graph, rows.weights
        self._rotary = rows.weights.weights.rotary is not None
        # Whether any row of a base changes a sender: bool, [bases, senders].
        self._changed = np.zeros((len(rows.bases), rows.graph.num_senders), dtype=bool)

    def new_state(self, receiver: int, sources: Sources) -> NewState | None:
        """The receiver's state in all rows."""
        states = [state for state, _ in self.new_states(receiver, sources)]
        if len(states) < 2:
            return states[0] if states else None
        first, second = states
        variant = np.where(second.variant < 0, first.variant, second.variant + len(first.u.sizes))
        pairs = ((first.u, second.u), (first.square, second.square), (first.value, second.value))
        u, square, value = (joined(pair) for pair in pairs)
        return NewState(u, square, value, variant)

    def new_states(
        self, receiver: int, sources: Sources, most: int | None = None
    ) -> Iterator[tuple[NewState, Merged]]:
        """The receiver's state in disjoint sets of rows.

        Each row goes through the residual stream or not by what changes in it alone.

        Args:
            receiver: q, k, v or MLP receiver.
            sources: `sources` of the receiver.
            most: variants of one set. Without it there are two sets at most.
        """
        if not sources and receiver not in self._rows.cuts:
            return
        projected = self._needs_projection(receiver, sources)
        if projected.any():
            yield from self._projected(receiver, sources, projected, most)
        if not projected.all():
            heads = [(s, np.where(projected, -1, v)) for s, v in sources if is_head(self._graph, s)]
            yield from self._composed(receiver, heads, most)

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
        u = rows.add_of_bases(du, merged, lambda base: base.state(receiver).u)
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

    def _composed(
        self, receiver: int, sources: Sources, most: int | None
    ) -> Iterator[tuple[NewState, Merged]]:
        """States without leaving the heads' coordinates.

        With x' = x + sum of y_s W_s: u' = u + sum of y_s (W_s W_r), and
        |x'|^2 = |x|^2 + sum of y_s . (2 x W_s^T + y_s W_s W_s^T + 2 sum over s' < s of y_s' W_s' W_s^T).
        """
        sources = [(sender, variant) for sender, variant in sources if (variant >= 0).any()]
        merged = self._rows.merged([variant for _, variant in sources])
        if merged is None:
            return
        heads = [sender for sender, _ in sources]
        for _, part in merged.parts(most):
            total: Tensor | None = None
            shape = layout(self._rows.sizes(part, receiver))
            for sender, wanted in zip(heads, part.picks, strict=False):
                for low, term in self._terms.apart(sender, receiver, wanted, part, receiver):
                    total = term.add_to(total, self._weights.composed(sender, receiver, low), shape)
            assert total is not None
            dsquare = total.new_zeros(total.shape[:-1])
            if self._weights.arch.norm is not None:
                for i in range(len(heads)):
                    self._add_square(dsquare, receiver, heads, i, part)
            yield self._moved_state(receiver, total, dsquare, part), part

    def _add_square(self, dsquare: Tensor, receiver: int, heads: list[int], i: int, merged: Merged) -> None:
        """Adds the terms of head i in the variants that hear it."""
        sender = heads[i]
        for (low, _), term in self._terms.apart(sender, receiver, merged.picks[i], merged):
            some = merged.some(term.variants)
            earlier: Tensor | None = None
            for other, wanted in zip(heads[:i], some.picks, strict=False):
                for (other_low, _), theirs in self._terms.versions(other, wanted, some):
                    z = self._terms.heard(other, receiver, theirs, some)
                    earlier = plus(earlier, z, self._weights.overlap(other, sender, (other_low, low)))
            products = matmul(term.y, self._weights.overlap(sender, sender, (low, low)))
            dots = partial(Base.dots, receiver=receiver, head=sender, low=low)
            if earlier is None:
                self._rows.add_of_bases(products, some, dots, alpha=2)
            else:
                products.add_(self._rows.add_of_bases(earlier, some, dots), alpha=2)
            term.scatter(dsquare, sums(products.mul_(term.y)))

    def _projected(
        self, receiver: int, sources: Sources, rows: NDArray[np.bool_], most: int | None
    ) -> Iterator[tuple[NewState, Merged]]:
        """States through the residual stream, for some rows."""
        moved = self.residual.change(receiver, sources, rows)
        if moved is None:
            return
        dx, merged = moved
        dsquare, sizes = self.residual.squares(receiver, dx, merged), self._rows.sizes(merged, receiver)
        for begin, part in merged.parts(most):
            some, squares = (part_of(Values(x, sizes), begin, begin + part.count) for x in (dx, dsquare))
            yield self._moved_state(receiver, self._read(receiver, some, part), squares, part), part

    def _read(self, receiver: int, dx: Tensor, merged: Merged) -> Tensor:
        """A change of input through a receiver's projection: [V, N, O]."""
        rows = self._rows
        if rows.maps is None:
            return matmul(dx, self._weights.reads(receiver))
        full = None if rows.promotion is None else rows.promotion.of_receiver(merged, receiver)
        return rows.maps.read(receiver, dx, by_token(full, rows.sizes(merged, receiver), dx.device))
