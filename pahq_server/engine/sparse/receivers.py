"""What receivers read in the rows of a sweep, given the changes of the senders below them.

Every contribution is added one sender at a time in a fixed order, a sender that did not change contributes
an exact zero, and matrix products are row-independent (`engine.products`). So a row's bits do not depend on
the rows beside it.

Shape suffixes: V variants, P prompts, C places, D d_model, K d_head, O receiver width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.products import add_matmul, matmul
from pahq_server.engine.sparse.rows import Rows
from pahq_server.engine.sparse.tokens import Places
from pahq_server.engine.sparse.variants import Index, Merged, merge, pick

# Changed senders, in order, each with the variant that every row hears; -1 where it hears no change.
Sources = list[tuple[int, Index]]


@dataclass(frozen=True)
class Change:
    """A node's change in the rows that change it.

    Args:
        values: [V, ...]: difference from the base.
        variant: per row, index into V; -1 for rows that leave the node as it is.
    """

    values: Tensor
    variant: Index


@dataclass(frozen=True)
class NewState:
    """A receiver's state in the variants that change it; all tensors [V, ...] as in `State`."""

    u: Tensor
    square: Tensor
    value: Tensor
    variant: Index


class Receivers:
    """Inputs of receivers in the rows of a sweep.

    Args:
        rows: the rows.
        senders: changes of the senders so far, in order; grows while the sweep goes up.
    """

    def __init__(self, rows: Rows, senders: dict[int, Change]) -> None:
        self._rows, self._senders = rows, senders
        self._base, self._plan, self._graph = rows.base, rows.plan, rows.graph
        self._weights, self._tokens = rows.base.weights, rows.base.tokens
        self._is_head = rows.base.reference.is_head

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
            heads = [(s, np.where(composed, v, -1)) for s, v in sources if self._is_head(s)]
            parts.append(self._composed(receiver, heads))
        states = [self._moved_state(receiver, *part) for part in parts if part is not None]
        if len(states) < 2:
            return states[0] if states else None
        first, second = states
        variant = np.where(second.variant < 0, first.variant, second.variant + len(first.u))
        u, square, value = (
            torch.cat(pair)
            for pair in zip(
                (first.u, first.square, first.value), (second.u, second.square, second.value), strict=True
            )
        )
        return NewState(u, square, value, variant)

    def _needs_projection(self, receiver: int, sources: Sources) -> NDArray[np.bool_]:
        """Per row, whether its change has no short form in the coordinates of heads."""
        cut = self._rows.cuts.get(receiver)
        projected = np.full(len(self._rows.base_of), not self._base.composable(receiver))
        if cut is not None:
            projected |= cut.variant >= 0
        for sender, variant in sources:
            if not self._is_head(sender):
                projected |= variant >= 0
        return projected

    def _moved_state(self, receiver: int, du: Tensor, dsquare: Tensor, merged: Merged) -> NewState:
        u = du + self._rows.of_bases(merged, lambda base: base.state(receiver).u)
        square = dsquare + self._rows.of_bases(merged, lambda base: base.state(receiver).square)
        return NewState(u, square, self._base.finish(receiver, u, square), merged.variant)

    def sources(self, receiver: int) -> Sources:
        """Changed senders that any row hears, in order, with the variant that each row hears."""
        upstream = self._graph.upstream(receiver)
        senders = np.array([sender for sender in self._senders if sender < upstream], dtype=np.int64)
        # bool, [bases, senders]: which of them each base hears.
        kept_BS = self._rows.kept[:, self._graph.offsets[receiver] + senders]
        cut, heard = self._rows.cuts.get(receiver), []
        for column in np.flatnonzero(kept_BS.any(0)).tolist():
            sender = int(senders[column])
            variant = self._senders[sender].variant
            if not kept_BS[:, column].all():
                variant = np.where(kept_BS[self._rows.base_of, column], variant, -1)
            if cut is not None:
                cuts_it = np.array([sender in pattern for pattern in cut.patterns] + [False])
                variant = np.where(cuts_it[cut.variant], -1, variant)
            heard.append((sender, variant))
        return heard

    def _composed(self, receiver: int, sources: Sources) -> tuple[Tensor, Tensor, Merged] | None:
        """(du, dsquare, rows) without leaving the heads' coordinates.

        With x' = x + sum of y_s W_s: u' = u + sum of y_s (W_s W_r), and
        |x'|^2 = |x|^2 + sum of y_s . (2 x W_s^T + y_s W_s W_s^T + 2 sum over s' < s of y_s' W_s' W_s^T).
        """
        merged = merge([variant for _, variant in sources], self._rows.groups(receiver))
        if merged is None:
            return None
        places = self._plan.receivers[receiver]
        ys = [
            (sender, self._heard(sender, wanted, places))
            for (sender, _), wanted in zip(sources, merged.picks, strict=True)
        ]
        du = sum_products([(y, self._weights.composed(sender, receiver)) for sender, y in ys])
        dsquare = torch.zeros(merged.count, *self._base.shape(receiver), dtype=du.dtype)
        if self._weights.arch.norm is not None:
            for i, (sender, y) in enumerate(ys):
                earlier = [(z, self._weights.overlap(s, sender)) for s, z in ys[:i]]
                inner = self._rows.of_bases(merged, lambda base, s=sender: base.dots(receiver, s))  # type: ignore[misc]
                inner = inner + sum_products(earlier) if earlier else inner
                inner = 2 * inner + matmul(y, self._weights.overlap(sender, sender))
                dsquare += (y * inner).sum(-1)
        return du, dsquare, merged

    def _projected(
        self, receiver: int, sources: Sources, rows: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor, Merged] | None:
        """(du, dsquare, rows) through the residual stream, for some rows."""
        moved = self.residual(receiver, sources, rows)
        if moved is None:
            return None
        dx, merged = moved
        x = self._rows.of_bases(merged, lambda base: base.kept_x(receiver))
        du = matmul(dx, self._weights.reads(receiver))
        return du, 2 * torch.linalg.vecdot(x, dx) + torch.linalg.vecdot(dx, dx), merged

    def residual(
        self, receiver: int, sources: Sources, rows: NDArray[np.bool_] | None
    ) -> tuple[Tensor, Merged] | None:
        """Change of a receiver's input, [V, P, C, D], in the given rows (bool) or all."""
        cut = self._rows.cuts.get(receiver)
        columns = [variant for _, variant in sources]
        columns += [] if cut is None else [cut.variant]
        if rows is not None:
            columns = [np.where(rows, column, -1) for column in columns]
        merged = merge(columns, self._rows.groups(receiver))
        if merged is None:
            return None
        places, picks = self._plan.receivers[receiver], merged.picks
        if cut is None:
            shape = (merged.count, *self._base.shape(receiver), self._weights.arch.d_model)
            dx = torch.zeros(shape, dtype=self._weights.dtype)
        else:
            dx = pick(cut.dx, picks[-1])
            # The bases go on using the original.
            dx = dx.clone() if sources and dx is cut.dx else dx
        for (sender, _), wanted in zip(sources, picks[: len(sources)], strict=True):
            y = self._heard(sender, wanted, places)
            if self._is_head(sender):
                add_matmul(dx, y, self._weights.writes(sender))
            else:
                dx += y
        return dx, merged

    def _heard(self, sender: int, wanted: Index, places: Places) -> Tensor:
        """A sender's change in merged variants, at some places: [V, P, C, K or D]."""
        values = self._tokens.narrow(self._senders[sender].values, self._plan.needed[sender], places)
        return pick(values, wanted)


def sum_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of y @ w, one term after the other: [..., O]."""
    (first, w), *rest = pairs
    total = matmul(first, w)
    for y, w in rest:
        add_matmul(total, y, w)
    return total
