"""Carries the changes of a batch of rows upward through the live nodes of a plan.

A node's change is stored once per *variant*: rows that agree on all inputs of a node share one.

Shape suffixes: V variants, P prompts, C places, T positions, D d_model, K d_head.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.engine.products import matmul
from pahq_server.engine.sparse.base import Base, State
from pahq_server.engine.sparse.receivers import Change, NewState, Receivers, Sources
from pahq_server.engine.sparse.rows import Rows
from pahq_server.engine.sparse.variants import Index, Merged, merge, pick

# Hidden units of an MLP that are computed at once: 24 MiB, which the C library keeps for reuse.
PART_ELEMENTS = 6 << 20


class Sweep:
    """One pass over the layers.

    Args:
        rows: what is computed.
        keep: whether rows are to become bases (`as_base`), for which all states are kept.
    """

    def __init__(self, rows: Rows, keep: bool = False) -> None:
        self.rows, self._keep = rows, keep
        self.base, self.plan, self.graph = rows.base, rows.plan, rows.graph
        self.weights = rows.base.weights
        self.senders: dict[int, Change] = {}
        self.states: dict[int, NewState | None] = {}
        # Per q, k or v receiver that changed: its variant by row.
        self.moved: dict[int, Index] = {}
        self._receivers = Receivers(rows, self.senders)
        self._final: tuple[Tensor, Index] | None = None

    def run(self) -> None:
        """Fills in the changes of all live nodes."""
        touched = [self.graph.receiver(r).layer for r in self.rows.cuts]
        for layer in range(min(touched, default=self.graph.layers), self.graph.layers):
            for head in self.plan.heads(layer):
                self._run_head(self.graph.head(layer, head))
            if self.graph.mlps and self.graph.mlp(layer) in self.plan.needed:
                self._run_mlp(layer)
            if not self._keep:
                # Nothing above this layer reads its receivers: their states are the bulk of a sweep's memory.
                self.states.clear()
        logits = self.graph.logits
        moved = self._receivers.residual(logits, self._receivers.sources(logits), None)
        if moved is not None:
            dx, merged = moved
            dx = dx + self.rows.of_bases(merged, lambda base: base.kept_x(logits))
            self._final = dx, merged.variant

    def final_x(self) -> tuple[Tensor, Index] | None:
        """Input of ``logits`` in the rows that change it, [V, P, C, D], and each row's variant."""
        return self._final

    def as_base(self, row: int, circuit: Circuit) -> Base:
        """The base of one row, whose circuit this is."""
        base = self.rows.bases[self.rows.base_of[row]]
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
        return Base(base.reference, circuit, self.plan, base, patched, states, final_x)

    # Senders

    def _run_head(self, head: int) -> None:
        receivers = self.base.head_receivers(head)
        states = [self._state(receiver) for receiver in receivers]
        merged = merge([s.variant for s in states if s is not None], self.rows.groups(*receivers))
        if merged is None:
            return
        picks = iter(merged.picks)
        q, k, v = (
            self._values(receiver, merged, state, None if state is None else next(picks))
            for receiver, state in zip(receivers, states, strict=True)
        )
        _, k_receiver, v_receiver = receivers
        z = self.base.attend(head, q, self._with_prefix(k_receiver, k), self._with_prefix(v_receiver, v))
        z -= self.rows.of_bases(merged, lambda base: base.z(head))
        self.senders[head] = Change(z, merged.variant)

    def _run_mlp(self, layer: int) -> None:
        receiver = self.graph.receiver_of("mlp", layer)
        sources = self._receivers.sources(receiver)
        parts = [self._mlp_part(layer, receiver, sources, rows) for rows in self._row_chunks(receiver)]
        changes = [part for part in parts if part is not None]
        if changes:
            self.senders[self.graph.mlp(layer)] = _joined(changes)

    def _row_chunks(self, receiver: int) -> list[NDArray[np.bool_]]:
        """Masks that split the rows so that hidden units of one part stay below `PART_ELEMENTS`."""
        count = len(self.rows)
        prompts, places = self.base.shape(receiver)
        width = self.weights.reads(receiver).shape[-1]
        size = count if self._keep else max(1, PART_ELEMENTS // (prompts * places * width))
        return [np.arange(count) // size == part for part in range(-(-count // size))]

    def _mlp_part(
        self, layer: int, receiver: int, sources: Sources, rows: NDArray[np.bool_]
    ) -> Change | None:
        """The change of an MLP's output in some rows."""
        state = self._receivers.new_state(receiver, sources, rows)
        if state is None:
            return None
        if self._keep:
            self.states[receiver] = state
        merged = merge([state.variant], self.rows.groups(receiver))
        w_out = self.weights.weights.layers[layer].w_out
        assert merged is not None
        assert w_out is not None
        change = self.weights.hidden(layer, pick(state.value, merged.picks[0]))
        change -= self.rows.of_bases(merged, lambda base: base.hidden(layer))
        return Change(matmul(change, w_out), merged.variant)

    def _values(self, receiver: int, merged: Merged, state: NewState | None, wanted: Index | None) -> Tensor:
        """A receiver's value in merged variants: [V or 1, P, C, K]."""
        if state is None or wanted is None:
            return self.rows.of_bases(merged, lambda base: base.state(receiver).value)
        picked = pick(state.value, wanted)
        same = np.flatnonzero(wanted < 0)
        if len(same):
            bases = self.rows.of_bases(merged, lambda base: base.state(receiver).value).expand_as(picked)
            picked[torch.from_numpy(same)] = bases[torch.from_numpy(same)]
        return picked

    def _with_prefix(self, receiver: int, value: Tensor) -> Tensor:
        prefix = self.base.reference.prefix(receiver)
        if not prefix.shape[-2]:
            return value
        return torch.cat([prefix.expand(len(value), -1, -1, -1), value], -2)

    def _state(self, receiver: int) -> NewState | None:
        if receiver not in self.states:
            state = self._receivers.new_state(receiver, self._receivers.sources(receiver), None)
            self.states[receiver] = state
            if state is not None:
                self.moved[receiver] = state.variant
        return self.states[receiver]


def _joined(changes: Sequence[Change]) -> Change:
    """One change from those of disjoint rows."""
    if len(changes) == 1:
        return changes[0]
    variant = np.full(len(changes[0].variant), -1)
    for change, offset in zip(changes, np.cumsum([0, *(len(c.values) for c in changes)]), strict=False):
        variant = np.where(change.variant < 0, variant, change.variant + offset)
    return Change(torch.cat([change.values for change in changes]), variant)
