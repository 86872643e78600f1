"""Carries the changes of a batch of rows upward through the live nodes of their plans.

A node's change is stored once per *variant*: rows that agree on all inputs of a node share one. Rows may
be of several jobs: every node is computed once for all rows that need it.

Shape suffixes: V variants, N packed tokens, D d_model, K d_head; values of variants of unequal sizes are
laid out as in `variants`.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.engine.sparse.attention import attend
from pahq_server.engine.sparse.base import Base, State
from pahq_server.engine.sparse.receivers import NewState, Receivers
from pahq_server.engine.sparse.rows import Rows
from pahq_server.engine.sparse.terms import Change
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
    token_index,
)
from pahq_server.precision.products import matmul

# Hidden units of an MLP that are computed at once: on CPUs 4 MiB, and about three times that in all;
# elsewhere whole tiles of large models.
PART_ELEMENTS, DEVICE_PART_ELEMENTS = 1 << 20, 1 << 25


class Sweep:
    """One pass over the layers.

    Args:
        rows: what is computed.
        keep: whether rows are to become bases (`as_base`), for which the states of heads are kept. Those of
            MLPs are large, and computed again from their inputs where they are needed.
    """

    def __init__(self, rows: Rows, keep: bool = False) -> None:
        self.rows, self.keep = rows, keep
        self.graph, self.weights = rows.graph, rows.weights
        self.senders: dict[int, Change] = {}
        self.states: dict[int, NewState | None] = {}
        # Per receiver that changed, except ``logits``: its variant by row.
        self.changed: dict[int, Index] = {}
        self._receivers = Receivers(rows, self.senders)
        # Input of ``logits`` in the rows that change it, [V, N, D].
        self.final: Change | None = None

    def run(self) -> None:
        """Fills in the changes of all live nodes."""
        touched = [self.graph.receiver(r).layer for r in self.rows.cuts]
        for layer in range(min(touched, default=self.graph.layers), self.graph.layers):
            changed = self._receivers.changed_in(layer)
            for head in self.rows.heads(layer) if changed else ():
                if not changed.isdisjoint(self.graph.head_receivers(head)):
                    self._run_head(head)
            if self.graph.mlps and self.rows.is_live(self.graph.mlp(layer)):
                self._run_mlp(layer)
            if not self.keep:
                # Nothing above this layer reads its receivers: their states are the bulk of a sweep's memory.
                self.states.clear()
        logits = self.graph.logits
        moved = self._receivers.residual.change(logits, self._receivers.sources(logits))
        if moved is not None:
            dx, merged = moved
            dx = dx + self.rows.of_bases(merged, lambda base: base.kept_x(logits))
            self.final = Change(Values(dx, self.rows.sizes(merged, logits)), merged.variant)

    def as_base(self, row: int, circuit: Circuit) -> Base:
        """The base of one row, whose circuit this is."""
        base = self.rows.bases[self.rows.base_of[row]]
        outputs = (
            (sender, base.output(sender, base.plan.needed[sender]) + change.values.of(change.variant[row]))
            for sender, change in self.senders.items()
            if change.variant[row] >= 0
        )
        states = {
            receiver: State(new.u.of(i), new.square.of(i), new.value.of(i))
            for receiver, new in self.states.items()
            if new is not None and (i := new.variant[row]) >= 0
        }
        changed = {receiver for receiver, variant in self.changed.items() if variant[row] >= 0}
        final_x = None
        if self.final is not None and self.final.variant[row] >= 0:
            final_x = self.final.values.of(self.final.variant[row])
            changed.add(self.graph.logits)
        return Base.derived(base, circuit, outputs, states, final_x, frozenset(changed))

    # Senders

    def _run_head(self, head: int) -> None:
        receivers = self.graph.head_receivers(head)
        states = [self._state(receiver) for receiver in receivers]
        # A group's keys may have changed in jobs where this head of the group is not live.
        columns = [self.rows.where_live(head, s.variant) for s in states if s is not None]
        merged = merge(columns)
        if merged is None:
            return
        picks = iter(merged.picks)
        q, k, v = (
            self._values(receiver, merged, state, None if state is None else next(picks))
            for receiver, state in zip(receivers, states, strict=True)
        )
        z = self._attend(head, merged, (q, k, v))
        self.rows.add_of_bases(z, merged, lambda base: base.z(head), alpha=-1)
        sizes = self.rows.sizes(merged, receivers[0])
        self._receivers.add(head, Change(Values(z, sizes), merged.variant))

    def _attend(self, head: int, merged: Merged, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Attention in merged variants, laid out as ``sizes`` at the head's queries."""
        base_of = self.rows.base_of[merged.first]
        number: dict[object, int] = {}
        kind_of_base = {}
        for i in dict.fromkeys(base_of.tolist()):
            base = self.rows.bases[i]
            kind_of_base[i] = number.setdefault((base.tokens.geometry, base.plan.needed[head]), len(number))
        if len(number) == 1:
            return self._attend_alike(head, merged, qkv)
        kinds = np.array([kind_of_base[i] for i in base_of.tolist()])
        return self._attend_by_kind(head, merged, qkv, kinds)

    def _attend_by_kind(
        self, head: int, merged: Merged, qkv: tuple[Tensor, Tensor, Tensor], kinds: Index
    ) -> Tensor:
        """Attention where variants differ in shape: each kind of shape on its own."""
        receivers = self.graph.head_receivers(head)
        sizes = self.rows.sizes(merged, receivers[0])
        starts, out = np.cumsum(sizes) - sizes, qkv[0].new_empty(int(sizes.sum()), qkv[0].shape[-1])
        for kind in range(int(kinds.max()) + 1):
            chosen = np.flatnonzero(kinds == kind)
            q, k, v = (
                _chosen(x, self.rows.sizes(merged, receiver), chosen)
                for receiver, x in zip(receivers, qkv, strict=True)
            )
            z = self._attend_alike(head, merged.some(chosen), (q, k, v)).flatten(0, 1)
            if chosen[-1] - chosen[0] + 1 == len(chosen):
                out[starts[chosen[0]] : starts[chosen[0]] + len(z)] = z
            else:
                out[as_tensor(token_index(starts[chosen], sizes[chosen]), z.device)] = z
        return laid_out(out, sizes)

    def _attend_alike(self, head: int, merged: Merged, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Attention in variants of one geometry that are needed at the same places."""
        base = self.rows.bases[self.rows.base_of[merged.first[0]]]
        _, k, v = self.graph.head_receivers(head)
        past = None
        if base.tokens.start:
            past = (
                self.rows.of_bases(merged, lambda b: b.reference.prefix(k)),
                self.rows.of_bases(merged, lambda b: b.reference.prefix(v)),
            )
        layer = (head - 1) // self.graph.senders_per_layer
        return attend(base.tokens, layer, base.plan.needed[head], qkv, past)

    def _run_mlp(self, layer: int) -> None:
        receiver = self.graph.receiver_of("mlp", layer)
        states = self._receivers.new_states(receiver, self._receivers.sources(receiver), self._most(receiver))
        changes = [self._mlp_part(layer, receiver, state, merged) for state, merged in states]
        if changes:
            change = _joined(changes)
            self._receivers.add(self.graph.mlp(layer), change)
            self.changed[receiver] = change.variant

    def _most(self, receiver: int) -> int:
        """Variants of an MLP whose hidden units stay below what is computed at once."""
        elements = int(self.rows.counts(receiver).max()) * self.weights.mlp_width
        return max(
            1, (PART_ELEMENTS if self.weights.device.type == "cpu" else DEVICE_PART_ELEMENTS) // elements
        )

    def _mlp_part(self, layer: int, receiver: int, state: NewState, merged: Merged) -> Change:
        """The change of an MLP's output in some variants."""
        change = state.value.data  # nothing else reads it
        self.rows.add_of_bases(change, merged, lambda base: base.state(receiver).value, alpha=-1)
        maps = self.rows.maps
        out = matmul(change, self.weights.mlp_out(layer)) if maps is None else maps.mlp_out(layer, change)
        return Change(Values(out, state.value.sizes), state.variant)

    def _values(self, receiver: int, merged: Merged, state: NewState | None, wanted: Index | None) -> Tensor:
        """A receiver's value in merged variants: [V or 1, N, K]."""
        if state is None or wanted is None:
            return self.rows.of_bases(merged, lambda base: base.state(receiver).value)
        sizes = self.rows.sizes(merged, receiver)
        picked = pick(state.value, wanted, sizes)
        same = np.flatnonzero(wanted < 0)
        if len(same):
            unchanged = self.rows.of_bases(merged.some(same), lambda base: base.state(receiver).value)
            tokens = as_tensor(token_index(picked.starts[same], sizes[same]), picked.data.device)
            unchanged = unchanged.expand(*layout(sizes[same]), -1).flatten(0, 1)
            picked.data.flatten(0, 1)[tokens] = unchanged
        return picked.data

    def _state(self, receiver: int) -> NewState | None:
        if receiver not in self.states:
            state = self._receivers.new_state(receiver, self._receivers.sources(receiver))
            self.states[receiver] = state
            if state is not None:
                self.changed[receiver] = state.variant
        return self.states[receiver]


def _chosen(x: Tensor, sizes: Index, chosen: Index) -> Tensor:
    """Some variants of values that may all be the same one, [1, N, K]."""
    if len(x) == 1 and x.shape[1] == sizes[0] and len(sizes) > 1:
        return x
    return pick(Values(x, sizes), chosen, sizes[chosen]).data


def _joined(changes: list[Change]) -> Change:
    """One change from those of disjoint rows."""
    if len(changes) == 1:
        return changes[0]
    variant = np.full(len(changes[0].variant), -1)
    offset = 0
    for change in changes:
        variant = np.where(change.variant < 0, variant, change.variant + offset)
        offset += len(change.values.sizes)
    return Change(joined([change.values for change in changes]), variant)
