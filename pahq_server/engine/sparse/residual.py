"""Changes of the residual stream at receivers, in the rows of a sweep.

Shape suffixes as in `receivers`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.reference import is_head
from pahq_server.engine.sparse.rows import Rows
from pahq_server.engine.sparse.terms import Sources, Terms
from pahq_server.engine.sparse.variants import Index, Merged, layout, pick
from pahq_server.precision.products import sums

# A sum of fewer terms is made again as quickly, and not worth its memory.
REMEMBERED_TERMS = 6


@dataclass
class _Sum:
    """What some senders change together.

    Args:
        sources: the senders, in order.
        merged: variants.
        dx: [V, N, D].
        squares: changes of sums of squares, [V, N], by the inputs that dx is added to.
    """

    sources: Sources
    merged: Merged
    dx: Tensor
    squares: dict[Hashable, Tensor] = field(default_factory=dict)

    def begins(self, sources: Sources, merged: Merged) -> bool:
        """Whether the sum of these sources goes on from this one."""
        return (
            len(self.sources) <= len(sources)
            and all(
                mine == sender and ours is variant
                for (mine, ours), (sender, variant) in zip(self.sources, sources, strict=False)
            )
            and np.array_equal(self.merged.variant, merged.variant)
        )


class Residual:
    """Sums of what senders write.

    Receivers of a circuit with many edges hear nearly the same, and those of the next layer a little more. So
    the last sum at the same places is remembered; the next one goes on from it where it begins alike.

    Args:
        rows: the rows of the sweep.
        terms: of its senders.
    """

    def __init__(self, rows: Rows, terms: Terms) -> None:
        self._rows, self._terms = rows, terms
        # By where the bases need them: `Plan.receiver_codes`.
        self._last: dict[bytes, _Sum] = {}

    def change(
        self, receiver: int, sources: Sources, mask: NDArray[np.bool_] | None = None
    ) -> tuple[Tensor, Merged] | None:
        """Change of a receiver's input, [V, N, D], in the given rows (bool) or all. Not to be written to."""
        rows, cut = self._rows, self._rows.cuts.get(receiver)
        columns = [variant for _, variant in sources]
        columns += [] if cut is None else [cut.variant]
        if mask is not None and not mask.all():
            columns = [np.where(mask, column, -1) for column in columns]
            sources = [(s, column) for (s, _), column in zip(sources, columns, strict=False)]
        merged = rows.merged(columns)
        if merged is None:
            return None
        sizes, places = rows.sizes(merged, receiver), self._places(receiver)
        if cut is not None:
            dx, known = pick(cut.dx, merged.picks[len(sources)], sizes).data, 0
            # The bases go on using the original.
            dx = dx.clone() if sources and dx is cut.dx.data else dx
        else:
            dx, known = self._begun(places, sources, merged, sizes)
        for (sender, _), wanted in list(zip(sources, merged.picks, strict=False))[known:]:
            if (wanted >= 0).any():
                self._add(dx, sender, receiver, wanted, merged)
        if cut is None and known < len(sources) >= REMEMBERED_TERMS:
            self._last[places] = _Sum(sources, merged, dx)
        return dx, merged

    def _places(self, receiver: int) -> bytes:
        return self._rows.receiver_codes[:, receiver].tobytes()

    def _begun(self, places: bytes, sources: Sources, merged: Merged, sizes: Index) -> tuple[Tensor, int]:
        """The sum of the first sources as far as it is known, and how many these are."""
        last = self._last.get(places)
        if last is not None and last.begins(sources, merged):
            return last.dx, len(last.sources)
        del last
        self._last.pop(places, None)  # before the next one takes as much
        weights = self._rows.weights
        shape = (*layout(sizes), weights.arch.d_model)
        return torch.zeros(shape, dtype=weights.dtype, device=weights.device), 0

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
        inputs, last = self._rows.inputs(receiver, merged), self._last.get(self._places(receiver))
        known = last.squares if last is not None and last.dx is dx else {}
        if inputs not in known:
            twice = self._rows.add_of_bases(dx.clone(), merged, lambda base: base.kept_x(receiver), alpha=2)
            known[inputs] = sums(twice.mul_(dx))
        return known[inputs]
