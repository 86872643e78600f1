"""Carries the changes of a batch of rows upward through the live nodes of a base.

Every value of a row is a pure function of the base and the row: contributions are added one sender at a
time in a fixed order, and a sender that did not change contributes an exact zero. So a row's bits do not
depend on the rows beside it, as long as matrix products are row-independent (`products`).

A node's change is stored once per *variant*: rows that agree on all inputs of a node share one.

Shape suffixes: V variants, P prompts, C places, T positions, D d_model, K d_head, O receiver width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.engine.sparse.base import Base, State
from pahq_server.engine.sparse.cuts import Cut, CutCache, group
from pahq_server.engine.sparse.tokens import Places

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Change:
    """A node's values in the rows that change it.

    Args:
        values: [V, ...]: for senders the difference from the base, for receivers the new value.
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
        base: what the rows are differences from.
        removed: per row, the edges of the base's circuit that it lacks.
        cache: of cuts, carried from batch to batch.
    """

    def __init__(self, base: Base, removed: Sequence[Sequence[int]], cache: CutCache) -> None:
        self.base, self.weights, self.tokens = base, base.weights, base.tokens
        self.graph = base.circuit.graph
        self._cuts = {r: cache.cut(base, r, by_row) for r, by_row in group(base, removed).items()}
        self.senders: dict[int, Change] = {}
        self.states: dict[int, NewState | None] = {}

    def run(self) -> None:
        """Fills in the changes of all live senders."""
        touched = [self.graph.receiver(r).layer for r in self._cuts]
        for layer in range(min(touched, default=self.graph.layers), self.graph.layers):
            for head in self.base.plan.heads(layer):
                self._head(self.graph.head(layer, head))
            if self.graph.mlps and self.graph.mlp(layer) in self.base.plan.needed:
                self._mlp(layer)

    def final_x(self) -> Change | None:
        """The input of ``logits`` in the rows that change it: [V, P, C, D]."""
        dx = self._residual(self.graph.logits)
        if dx is None:
            return None
        return Change(self.base.kept_x(self.graph.logits) + dx.values, dx.variant)

    # Senders

    def _head(self, head: int) -> None:
        q, k, v = self.base.head_receivers(head)
        states = [self._state(receiver) for receiver in (q, k, v)]
        merged = _merge([state.variant for state in states if state is not None])
        if merged is None:
            return
        picks = iter(merged.picks)
        q_value, k_value, v_value = (
            self._value(receiver, state, None if state is None else next(picks))
            for receiver, state in zip((q, k, v), states, strict=True)
        )
        z = self.base.attend(head, q_value, self._with_prefix(k, k_value), self._with_prefix(v, v_value))
        self.senders[head] = Change(z - self.base.z(head), merged.variant)

    def _mlp(self, layer: int) -> None:
        state = self._state(self.graph.receiver_of("mlp", layer))
        if state is None:
            return
        w_out = self.weights.weights.layers[layer].w_out
        assert w_out is not None
        change = (self.weights.hidden(layer, state.value) - self.base.hidden(layer)) @ w_out
        self.senders[self.graph.mlp(layer)] = Change(change, state.variant)

    def _value(self, receiver: int, state: NewState | None, pick: Index | None) -> Tensor:
        """A receiver's value in merged variants: [V or 1, P, C, K]."""
        same = self.base.state(receiver).value[None]
        if state is None or pick is None:
            return same
        return _pick(state.value, pick, same)

    def _with_prefix(self, receiver: int, value: Tensor) -> Tensor:
        prefix = self.base.reference.prefix(receiver)
        return (
            value if not prefix.shape[-2] else torch.cat([prefix.expand(len(value), -1, -1, -1), value], -2)
        )

    # Receivers

    def _state(self, receiver: int) -> NewState | None:
        if receiver not in self.states:
            self.states[receiver] = self._new_state(receiver)
        return self.states[receiver]

    def _new_state(self, receiver: int) -> NewState | None:
        sources = self._sources(receiver)
        if receiver not in self._cuts and sources and self._composable(receiver, sources):
            moved = self._composed(receiver, sources)
        else:
            moved = self._projected(receiver)
        if moved is None:
            return None
        du, dsquare, variant = moved
        now = self.base.state(receiver)
        u, square = now.u + du, now.square + dsquare
        return NewState(u, square, self.base.finish(receiver, u, square), variant)

    def _sources(self, receiver: int) -> list[tuple[int, Change]]:
        """Changed senders along kept edges, in order."""
        incoming = self.base.circuit.incoming(receiver)
        return [(s, change) for s, change in self.senders.items() if s < len(incoming) and incoming[s]]

    def _composable(self, receiver: int, sources: list[tuple[int, Change]]) -> bool:
        composable = self.base.composable(receiver)
        return bool(composable) and all(sender in composable for sender, _ in sources)

    def _composed(
        self, receiver: int, sources: list[tuple[int, Change]]
    ) -> tuple[Tensor, Tensor, Index] | None:
        """(du, dsquare, variant) without leaving the heads' coordinates.

        With x' = x + sum of y_s W_s: u' = u + sum of y_s (W_s W_r), and
        |x'|^2 = |x|^2 + sum of y_s . (2 x W_s^T + y_s W_s W_s^T + 2 sum over s' < s of y_s' W_s' W_s^T).
        """
        merged = _merge([change.variant for _, change in sources])
        assert merged is not None
        places = self.base.plan.receivers[receiver]
        shape = (self.tokens.prompts, self.tokens.count(places))
        ys = [
            (sender, self._narrow(sender, _pick(change.values, pick, None), places))
            for (sender, change), pick in zip(sources, merged.picks, strict=True)
        ]
        du = sum_products([(y, self.weights.composed(sender, receiver)) for sender, y in ys])
        dsquare = torch.zeros(merged.count, *shape, dtype=du.dtype)
        if self.weights.arch.norm is not None:
            for i, (sender, y) in enumerate(ys):
                inner = sum_products([(z, self.weights.overlap(s, sender)) for s, z in ys[:i]])
                inner = y @ self.weights.overlap(sender, sender) + 2 * (
                    inner + self.base.dots(receiver, sender)
                )
                dsquare += (y * inner).sum(-1)
        return du, dsquare, merged.variant

    def _projected(self, receiver: int) -> tuple[Tensor, Tensor, Index] | None:
        """(du, dsquare, variant) through the residual stream."""
        dx = self._residual(receiver)
        if dx is None:
            return None
        x = self.base.kept_x(receiver)
        du = dx.values @ self.weights.reads(receiver)
        return du, ((2 * x + dx.values) * dx.values).sum(-1), dx.variant

    def _residual(self, receiver: int) -> Change | None:
        """Change of a receiver's input: [V, P, C, D]."""
        cut = self._cuts.get(receiver)
        sources = self._sources(receiver)
        columns = [] if cut is None else [cut.variant]
        columns += [self._where_kept(sender, change, cut) for sender, change in sources]
        merged = _merge(columns)
        if merged is None:
            return None
        places = self.base.plan.receivers[receiver]
        picks = list(merged.picks)
        if cut is None:
            shape = (self.tokens.prompts, self.tokens.count(places), self.weights.arch.d_model)
            dx = torch.zeros(merged.count, *shape, dtype=self.weights.dtype)
        else:
            dx = _pick(cut.dx, picks.pop(0), None)
            # The cache of cuts goes on using the original.
            dx = dx.clone() if sources and dx is cut.dx else dx
        for (sender, change), pick in zip(sources, picks, strict=True):
            self._add(dx, sender, self._narrow(sender, _pick(change.values, pick, None), places))
        return Change(dx, merged.variant)

    def _add(self, dx: Tensor, sender: int, y: Tensor) -> None:
        if self.base.reference.is_head(sender):
            w = self.weights.writes(sender)
            dx.view(-1, dx.shape[-1]).addmm_(y.reshape(-1, y.shape[-1]), w)
        else:
            dx += y

    def _where_kept(self, sender: int, change: Change, cut: Cut | None) -> Index:
        """The sender's variant in rows that keep its edge to the receiver."""
        if cut is None:
            return change.variant
        cuts_it = np.array([sender in pattern for pattern in cut.patterns] + [False])
        return np.where(cuts_it[cut.variant], -1, change.variant)

    def _narrow(self, sender: int, y: Tensor, places: Places) -> Tensor:
        return self.tokens.narrow(y, self.base.plan.needed[sender], places)

    # One row as a base

    def as_base(self, circuit) -> Base:  # type: ignore[no-untyped-def]
        """The base of the sweep's only row."""
        patched = dict(self.base.patched)
        for sender, change in self.senders.items():
            here = self.base.output(sender, self.base.plan.needed[sender])
            patched[sender] = here + change.values[0]
        states = {
            r: State(new.u[0], new.square[0], new.value[0])
            for r, new in self.states.items()
            if new is not None
        }
        final = self.final_x()
        final_x = None if final is None else final.values[0]
        return Base(self.base.reference, circuit, self.base.plan, self.base, patched, states, final_x)


@dataclass(frozen=True)
class Merged:
    """Rows grouped by the variants of several inputs.

    Args:
        count: number of merged variants.
        picks: per input, its variant in each merged one; -1 where it is unchanged.
        variant: per row, its merged variant; -1 where no input changed.
    """

    count: int
    picks: list[Index]
    variant: Index


def _merge(columns: Sequence[Index]) -> Merged | None:
    """None if no row changes any input."""
    if len(columns) == 1 and (columns[0] >= 0).all():
        return Merged(int(columns[0].max()) + 1, [np.arange(int(columns[0].max()) + 1)], columns[0])
    numbers: dict[tuple[int, ...], int] = {}
    variant = []
    for key in zip(*(column.tolist() for column in columns), strict=True):
        variant.append(-1 if max(key) < 0 else numbers.setdefault(key, len(numbers)))
    if not numbers:
        return None
    picks = [np.array(column) for column in zip(*numbers, strict=True)]
    return Merged(len(numbers), picks, np.array(variant))


def _pick(values: Tensor, pick: Index, same: Tensor | None) -> Tensor:
    """Values [V, ...] by merged variant; where the pick is -1, ``same`` [1, ...] or zero."""
    if len(pick) == len(values) and (pick == np.arange(len(pick))).all():
        return values
    picked = values[torch.from_numpy(np.maximum(pick, 0))]
    unchanged = np.flatnonzero(pick < 0)
    if len(unchanged):
        picked[torch.from_numpy(unchanged)] = torch.zeros((), dtype=values.dtype) if same is None else same
    return picked


def sum_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum of y @ w, one term after the other: [..., O]."""
    total: Tensor | None = None
    for y, w in pairs:
        flat = y.reshape(-1, y.shape[-1])
        total = flat @ w if total is None else total.addmm_(flat, w)
    if total is None:
        return torch.zeros(())
    return total.view(*pairs[0][0].shape[:-1], -1)
