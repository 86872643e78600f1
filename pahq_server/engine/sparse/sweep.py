"""Carries the changes of a batch of rows upward through the live nodes of a plan.

Every value of a row is a pure function of its base and its cuts: contributions are added one sender at a
time in a fixed order, a sender that did not change contributes an exact zero, and matrix products are
row-independent (`engine.products`). So a row's bits do not depend on the rows beside it.

A node's change is stored once per *variant*: rows that agree on all inputs of a node share one.

Shape suffixes: V variants, P prompts, C places, T positions, D d_model, K d_head, O receiver width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.engine.products import add_matmul, matmul
from pahq_server.engine.sparse import cuts
from pahq_server.engine.sparse.base import Base, State
from pahq_server.engine.sparse.tokens import Places
from pahq_server.engine.sparse.variants import Index, Merged, merge, pick

# Hidden units of an MLP that are computed at once: 24 MiB, which the C library keeps for reuse.
PART_ELEMENTS = 6 << 20


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


class Sweep:
    """One pass over the layers.

    Args:
        bases: what the rows are differences from; all of one plan.
        base_of: per row, index of its base; ascending.
        removed: per row, the edges of its base's circuit that it lacks.
        keep: whether rows are to become bases (`as_base`), for which all states are kept.
    """

    def __init__(
        self,
        bases: Sequence[Base],
        base_of: Index,
        removed: Sequence[Sequence[int]],
        keep: bool = False,
    ) -> None:
        self._keep = keep
        self.bases, self.base_of = bases, base_of
        self.plan, self.weights, self.tokens = bases[0].plan, bases[0].weights, bases[0].tokens
        self.reference, self.graph = bases[0].reference, bases[0].circuit.graph
        self._kept = np.stack([base.circuit.kept for base in bases])
        self._cuts = cuts.collect(bases, base_of, removed)
        self.senders: dict[int, Change] = {}
        self.states: dict[int, NewState | None] = {}
        # Per q, k or v receiver that changed: its variant by row.
        self.moved: dict[int, Index] = {}
        self._final: tuple[Tensor, Index] | None = None

    def run(self) -> None:
        """Fills in the changes of all live nodes."""
        touched = [self.graph.receiver(r).layer for r in self._cuts]
        for layer in range(min(touched, default=self.graph.layers), self.graph.layers):
            for head in self.plan.heads(layer):
                self._run_head(self.graph.head(layer, head))
            if self.graph.mlps and self.graph.mlp(layer) in self.plan.needed:
                self._run_mlp(layer)
            if not self._keep:
                # Nothing above this layer reads its receivers: their states are the bulk of a sweep's memory.
                self.states.clear()
        logits = self.graph.logits
        moved = self._residual(logits, self._sources(logits), None)
        if moved is not None:
            dx, merged = moved
            dx = dx + self._of_bases(merged, lambda base: base.kept_x(logits))
            self._final = dx, merged.variant

    def final_x(self) -> tuple[Tensor, Index] | None:
        """Input of ``logits`` in the rows that change it, [V, P, C, D], and each row's variant."""
        return self._final

    def as_base(self, row: int, circuit: Circuit) -> Base:
        """The base of one row, whose circuit this is."""
        base = self.bases[self.base_of[row]]
        patched = dict(base.patched)
        for sender, change in self.senders.items():
            if change.variant[row] >= 0:
                before = base.output(sender, self.plan.needed[sender])
                patched[sender] = before + change.values[change.variant[row]]
        states = {}
        for receiver, new in self.states.items():
            if new is not None and (i := new.variant[row]) >= 0:
                states[receiver] = State(new.u[i], new.square[i], new.value[i])
        final = self.final_x()
        final_x = None if final is None or final[1][row] < 0 else final[0][final[1][row]]
        return Base(self.reference, circuit, self.plan, base, patched, states, final_x)

    # Senders

    def _run_head(self, head: int) -> None:
        receivers = self.bases[0].head_receivers(head)
        states = [self._state(receiver) for receiver in receivers]
        merged = merge([s.variant for s in states if s is not None], self._groups(*receivers))
        if merged is None:
            return
        picks = iter(merged.picks)
        q, k, v = (
            self._values(receiver, merged, state, None if state is None else next(picks))
            for receiver, state in zip(receivers, states, strict=True)
        )
        _, k_receiver, v_receiver = receivers
        z = self.bases[0].attend(head, q, self._with_prefix(k_receiver, k), self._with_prefix(v_receiver, v))
        z -= self._of_bases(merged, lambda base: base.z(head))
        self.senders[head] = Change(z, merged.variant)

    def _run_mlp(self, layer: int) -> None:
        receiver = self.graph.receiver_of("mlp", layer)
        sources = self._sources(receiver)
        parts = [self._mlp_part(layer, receiver, sources, rows) for rows in self._row_chunks(receiver)]
        changes = [part for part in parts if part is not None]
        if changes:
            self.senders[self.graph.mlp(layer)] = _joined(changes)

    def _row_chunks(self, receiver: int) -> list[NDArray[np.bool_]]:
        """Masks that split the rows so that hidden units of one part stay below `PART_ELEMENTS`."""
        count = len(self.base_of)
        prompts, places = self.bases[0].shape(receiver)
        width = self.weights.reads(receiver).shape[-1]
        size = count if self._keep else max(1, PART_ELEMENTS // (prompts * places * width))
        return [np.arange(count) // size == part for part in range(-(-count // size))]

    def _mlp_part(
        self, layer: int, receiver: int, sources: list[tuple[int, Index]], rows: NDArray[np.bool_]
    ) -> Change | None:
        """The change of an MLP's output in some rows."""
        state = self._new_state(receiver, sources, rows)
        if state is None:
            return None
        if self._keep:
            self.states[receiver] = state
        merged = merge([state.variant], self._groups(receiver))
        w_out = self.weights.weights.layers[layer].w_out
        assert merged is not None
        assert w_out is not None
        change = self.weights.hidden(layer, pick(state.value, merged.picks[0]))
        change -= self._of_bases(merged, lambda base: base.hidden(layer))
        return Change(matmul(change, w_out), merged.variant)

    def _values(self, receiver: int, merged: Merged, state: NewState | None, wanted: Index | None) -> Tensor:
        """A receiver's value in merged variants: [V or 1, P, C, K]."""
        if state is None or wanted is None:
            return self._of_bases(merged, lambda base: base.state(receiver).value)
        picked = pick(state.value, wanted)
        same = np.flatnonzero(wanted < 0)
        if len(same):
            bases = self._of_bases(merged, lambda base: base.state(receiver).value).expand_as(picked)
            picked[torch.from_numpy(same)] = bases[torch.from_numpy(same)]
        return picked

    def _with_prefix(self, receiver: int, value: Tensor) -> Tensor:
        prefix = self.reference.prefix(receiver)
        if not prefix.shape[-2]:
            return value
        return torch.cat([prefix.expand(len(value), -1, -1, -1), value], -2)

    # Receivers

    def _state(self, receiver: int) -> NewState | None:
        if receiver not in self.states:
            state = self._new_state(receiver, self._sources(receiver), None)
            self.states[receiver] = state
            if state is not None:
                self.moved[receiver] = state.variant
        return self.states[receiver]

    def _new_state(
        self, receiver: int, sources: list[tuple[int, Index]], rows: NDArray[np.bool_] | None
    ) -> NewState | None:
        """The receiver's state in the given rows (bool) or all.

        Each row goes through the residual stream or not by what changes in it alone.
        """
        if not sources and receiver not in self._cuts:
            return None
        projected = self._needs_projection(receiver, sources)
        composed = ~projected
        if rows is not None:
            projected, composed = projected & rows, composed & rows
        parts = []
        if projected.any():
            parts.append(self._projected(receiver, sources, projected))
        if composed.any():
            heads = [(s, np.where(composed, v, -1)) for s, v in sources if self.reference.is_head(s)]
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

    def _needs_projection(self, receiver: int, sources: list[tuple[int, Index]]) -> NDArray[np.bool_]:
        """Per row, whether its change has no short form in the coordinates of heads."""
        cut = self._cuts.get(receiver)
        projected = np.full(len(self.base_of), not self.bases[0].composable(receiver))
        if cut is not None:
            projected |= cut.variant >= 0
        for sender, variant in sources:
            if not self.reference.is_head(sender):
                projected |= variant >= 0
        return projected

    def _moved_state(self, receiver: int, du: Tensor, dsquare: Tensor, merged: Merged) -> NewState:
        u = du + self._of_bases(merged, lambda base: base.state(receiver).u)
        square = dsquare + self._of_bases(merged, lambda base: base.state(receiver).square)
        return NewState(u, square, self.bases[0].finish(receiver, u, square), merged.variant)

    def _sources(self, receiver: int) -> list[tuple[int, Index]]:
        """Changed senders that any row hears, in order, with the variant that each row hears."""
        upstream = self.graph.upstream(receiver)
        senders = np.array([sender for sender in self.senders if sender < upstream], dtype=np.int64)
        # bool, [bases, senders]: which of them each base hears.
        kept_BS = self._kept[:, self.graph.offsets[receiver] + senders]
        cut, heard = self._cuts.get(receiver), []
        for column in np.flatnonzero(kept_BS.any(0)).tolist():
            sender = int(senders[column])
            variant = self.senders[sender].variant
            if not kept_BS[:, column].all():
                variant = np.where(kept_BS[self.base_of, column], variant, -1)
            if cut is not None:
                cuts_it = np.array([sender in pattern for pattern in cut.patterns] + [False])
                variant = np.where(cuts_it[cut.variant], -1, variant)
            heard.append((sender, variant))
        return heard

    def _composed(
        self, receiver: int, sources: list[tuple[int, Index]]
    ) -> tuple[Tensor, Tensor, Merged] | None:
        """(du, dsquare, rows) without leaving the heads' coordinates.

        With x' = x + sum of y_s W_s: u' = u + sum of y_s (W_s W_r), and
        |x'|^2 = |x|^2 + sum of y_s . (2 x W_s^T + y_s W_s W_s^T + 2 sum over s' < s of y_s' W_s' W_s^T).
        """
        merged = merge([variant for _, variant in sources], self._groups(receiver))
        if merged is None:
            return None
        places = self.plan.receivers[receiver]
        ys = [
            (sender, self._heard(sender, wanted, places))
            for (sender, _), wanted in zip(sources, merged.picks, strict=True)
        ]
        du = sum_products([(y, self.weights.composed(sender, receiver)) for sender, y in ys])
        dsquare = torch.zeros(merged.count, *self.bases[0].shape(receiver), dtype=du.dtype)
        if self.weights.arch.norm is not None:
            for i, (sender, y) in enumerate(ys):
                earlier = [(z, self.weights.overlap(s, sender)) for s, z in ys[:i]]
                inner = self._of_bases(merged, lambda base, s=sender: base.dots(receiver, s))  # type: ignore[misc]
                inner = inner + sum_products(earlier) if earlier else inner
                inner = 2 * inner + matmul(y, self.weights.overlap(sender, sender))
                dsquare += (y * inner).sum(-1)
        return du, dsquare, merged

    def _projected(
        self, receiver: int, sources: list[tuple[int, Index]], rows: NDArray[np.bool_]
    ) -> tuple[Tensor, Tensor, Merged] | None:
        """(du, dsquare, rows) through the residual stream, for some rows."""
        moved = self._residual(receiver, sources, rows)
        if moved is None:
            return None
        dx, merged = moved
        x = self._of_bases(merged, lambda base: base.kept_x(receiver))
        du = matmul(dx, self.weights.reads(receiver))
        return du, 2 * torch.linalg.vecdot(x, dx) + torch.linalg.vecdot(dx, dx), merged

    def _residual(
        self, receiver: int, sources: list[tuple[int, Index]], rows: NDArray[np.bool_] | None
    ) -> tuple[Tensor, Merged] | None:
        """Change of a receiver's input, [V, P, C, D], in the given rows (bool) or all."""
        cut = self._cuts.get(receiver)
        columns = [variant for _, variant in sources]
        columns += [] if cut is None else [cut.variant]
        if rows is not None:
            columns = [np.where(rows, column, -1) for column in columns]
        merged = merge(columns, self._groups(receiver))
        if merged is None:
            return None
        places, picks = self.plan.receivers[receiver], merged.picks
        if cut is None:
            shape = (merged.count, *self.bases[0].shape(receiver), self.weights.arch.d_model)
            dx = torch.zeros(shape, dtype=self.weights.dtype)
        else:
            dx = pick(cut.dx, picks[-1])
            # The bases go on using the original.
            dx = dx.clone() if sources and dx is cut.dx else dx
        for (sender, _), wanted in zip(sources, picks[: len(sources)], strict=True):
            y = self._heard(sender, wanted, places)
            if self.reference.is_head(sender):
                add_matmul(dx, y, self.weights.writes(sender))
            else:
                dx += y
        return dx, merged

    def _heard(self, sender: int, wanted: Index, places: Places) -> Tensor:
        """A sender's change in merged variants, at some places: [V, P, C, K or D]."""
        values = self.tokens.narrow(self.senders[sender].values, self.plan.needed[sender], places)
        return pick(values, wanted)

    # Bases

    def _groups(self, *receivers: int) -> Index:
        """Per row, a number that is equal for bases with equal values at these receivers."""
        if len(self.bases) == 1:
            return self.base_of
        numbers: dict[int, int] = {}
        group = [numbers.setdefault(id(base.owner(*receivers)), len(numbers)) for base in self.bases]
        return np.array(group)[self.base_of]

    def _of_bases(self, merged: Merged, value: Callable[[Base], Tensor]) -> Tensor:
        """Values of the bases in merged variants: [V or 1, ...]."""
        if len(self.bases) == 1:
            return value(self.bases[0])[None]
        numbers = self.base_of[merged.first]
        used = {number: value(self.bases[number]) for number in dict.fromkeys(numbers.tolist())}
        distinct: dict[int, int] = {}
        tensors: list[Tensor] = []
        for tensor in used.values():
            if distinct.setdefault(id(tensor), len(tensors)) == len(tensors):
                tensors.append(tensor)
        if len(tensors) == 1:
            return tensors[0][None]
        index = torch.tensor([distinct[id(used[number])] for number in numbers.tolist()])
        return torch.stack(tensors)[index]


def _joined(changes: Sequence[Change]) -> Change:
    """One change from those of disjoint rows."""
    if len(changes) == 1:
        return changes[0]
    variant = np.full(len(changes[0].variant), -1)
    for change, offset in zip(changes, np.cumsum([0, *(len(c.values) for c in changes)]), strict=False):
        variant = np.where(change.variant < 0, variant, change.variant + offset)
    return Change(torch.cat([change.values for change in changes]), variant)


def sum_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of y @ w, one term after the other: [..., O]."""
    (first, w), *rest = pairs
    total = matmul(first, w)
    for y, w in rest:
        add_matmul(total, y, w)
    return total
