"""The forward pass of a batch: carries changes from the removed edges up through the live nodes, layer by
layer.

A node's change is computed once per *variant*: passes that agree on all inputs of a node share one. Passes
may be of several jobs.

Contributions are added one sender at a time in a fixed order, a sender that did not change contributes an
exact zero, and matrix products are row-independent (`precision.products`). So the bits of a pass do not
depend on the passes beside it.

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

from pahq_server.core.circuit import Circuit
from pahq_server.engine.sparse.base_activations import BaseActivations, ReceiverState
from pahq_server.engine.sparse.batch import PassBatch
from pahq_server.engine.sparse.contributions import (
    ChangedSenders,
    Contributions,
    NodeChange,
    ResidualSums,
    add_product,
)
from pahq_server.engine.sparse.positions import attend
from pahq_server.engine.sparse.quantized import tokens_by_flag
from pahq_server.engine.sparse.unpatched import is_head
from pahq_server.engine.sparse.variants import (
    Index,
    MergedVariants,
    VariantValues,
    as_tensor,
    concatenated,
    layout,
    merge,
    part_of,
    pick,
    token_index,
    with_layout,
)
from pahq_server.precision.products import matmul, sums


@dataclass(frozen=True)
class ChangedReceiver:
    """A receiver in the variants that change it.

    Args:
        projection, squared_norm, value: as in `ReceiverState`, for V variants.
        variant: per pass, its index into V; -1 for passes that leave the receiver as it is.
    """

    projection: VariantValues
    squared_norm: VariantValues
    value: VariantValues
    variant: Index


class ReceiverInputs:
    """Computes receivers from the changes of the senders below them.

    Args:
        batch: the passes.
        senders: changes of senders, filled by `add` while the forward pass goes up the layers.
    """

    def __init__(self, batch: PassBatch, senders: dict[int, NodeChange]) -> None:
        self._batch, self._senders = batch, senders
        self._contributions = Contributions(batch, senders)
        self.residual_sums = ResidualSums(batch, self._contributions)
        self._graph, self._weights = batch.graph, batch.weights
        self._rotary = batch.weights.weights.rotary is not None
        # Whether any pass of a base changes a sender: bool, [bases, senders].
        self._changed = np.zeros((len(batch.bases), batch.graph.num_senders), dtype=bool)

    def changed_state(self, receiver: int, changed_senders: ChangedSenders) -> ChangedReceiver | None:
        """Returns a receiver in all passes that change it; None if none does.

        The arguments are those of `changed_states`.
        """
        states = [state for state, _ in self.changed_states(receiver, changed_senders)]
        if len(states) < 2:
            return states[0] if states else None
        first, second = states
        variant = np.where(second.variant < 0, first.variant, second.variant + len(first.projection.sizes))
        pairs = (
            (first.projection, second.projection),
            (first.squared_norm, second.squared_norm),
            (first.value, second.value),
        )
        u, square, value = (concatenated(pair) for pair in pairs)
        return ChangedReceiver(u, square, value, variant)

    def changed_states(
        self, receiver: int, changed_senders: ChangedSenders, most: int | None = None
    ) -> Iterator[tuple[ChangedReceiver, MergedVariants]]:
        """Yields a receiver in disjoint sets of passes that change it, each with its merged variants.

        A pass is computed in the coordinates of heads (`_composed`) or through the residual stream
        (`_projected`). Which of the two depends on what changes in this pass alone, so that its bits do not
        depend on the others.

        Args:
            receiver: q, k, v or MLP receiver.
            changed_senders: that the receiver reads.
            most: how many variants a set may have. Without it there are at most two sets.
        """
        if not changed_senders and receiver not in self._batch.ablations:
            return
        projected = self._needs_projection(receiver, changed_senders)
        if projected.any():
            yield from self._projected(receiver, changed_senders, projected, most)
        if not projected.all():
            heads = [(s, np.where(projected, -1, v)) for s, v in changed_senders if is_head(self._graph, s)]
            yield from self._composed(receiver, heads, most)

    def _needs_projection(self, receiver: int, changed_senders: ChangedSenders) -> NDArray[np.bool_]:
        """Tells by pass whether the receiver's change has to go through the residual stream: bool, [passes].

        It has to where edges into the receiver are removed, where the receiver reads an MLP that changes, and
        where so many heads are kept upstream that composing them does not pay.
        """
        ablation = self._batch.ablations.get(receiver)
        projected = ~self._batch.pays_to_compose(receiver)
        if ablation is not None:
            projected |= ablation.variant >= 0
        for sender, variant in changed_senders:
            if not is_head(self._graph, sender):
                projected |= variant >= 0
        return projected

    def _state_of_changes(
        self, receiver: int, d_projection: Tensor, d_squared_norm: Tensor, merged: MergedVariants
    ) -> ChangedReceiver:
        """Computes a receiver from how its input changes.

        Args:
            receiver: q, k, v or MLP receiver.
            d_projection: change of the input times the receiver's matrix, [V, N, O]. Overwritten.
            d_squared_norm: change of the input's squared norm, [V, N].
            merged: the V variants.
        """
        batch = self._batch
        u = batch.add_of_bases(d_projection, merged, lambda base: base.state(receiver).projection)
        square = d_squared_norm + batch.of_bases(merged, lambda base: base.state(receiver).squared_norm)
        positions = batch.of_bases(merged, lambda base: base.positions(receiver)) if self._rotary else None
        value = self._weights.receiver_value(receiver, u, square, positions)
        sizes = batch.sizes(merged, receiver)
        return ChangedReceiver(
            VariantValues(u, sizes), VariantValues(square, sizes), VariantValues(value, sizes), merged.variant
        )

    def changed_senders(self, receiver: int) -> ChangedSenders:
        """Returns the changed senders that a receiver reads in any pass."""
        batch, ablation = self._batch, self._batch.ablations.get(receiver)
        start, count = int(self._graph.offsets[receiver]), self._graph.upstream(receiver)
        kept_BS = batch.kept[:, start : start + count] & (batch.receiver_codes[:, receiver, None] > 0)
        read: ChangedSenders = []
        for sender in np.flatnonzero((kept_BS & self._changed[:, :count]).any(0)).tolist():
            variant = self._senders[sender].variant
            if not kept_BS[:, sender].all():
                variant = np.where(kept_BS[batch.base_of, sender], variant, -1)
            if ablation is not None:
                removes_it = np.array([sender in pattern for pattern in ablation.patterns] + [False])
                variant = np.where(removes_it[ablation.variant], -1, variant)
            read.append((sender, variant))
        return read

    def changed_receivers(self, layer: int) -> set[int]:
        """Returns the q, k and v receivers of a layer whose input changes in any pass."""
        graph, batch = self._graph, self._batch
        first, count = graph.receiver_of("q", layer), graph.heads + 2 * graph.kv_units
        senders, start = graph.first_sender(layer), int(graph.offsets[first])
        kept_BRS = batch.kept[:, start : start + count * senders].reshape(-1, count, senders)
        fed_BR = (kept_BRS & self._changed[:, None, :senders]).any(-1)
        fed_BR &= batch.receiver_codes[:, first : first + count] > 0
        fed: list[int] = (np.flatnonzero(fed_BR.any(0)) + first).tolist()
        return {*fed, *(r for r in batch.ablations if first <= r < first + count)}

    def add(self, sender: int, change: NodeChange) -> None:
        """Registers a sender's change for the receivers above the sender."""
        self._senders[sender] = change
        self._changed[:, sender] = self._batch.by_base(change.variant >= 0)

    def _composed(
        self, receiver: int, changed_senders: ChangedSenders, most: int | None
    ) -> Iterator[tuple[ChangedReceiver, MergedVariants]]:
        """Computes a receiver without leaving the coordinates of heads, [N, K] instead of [N, D].

        With x' = x + sum of y_s W_s over heads s:

            x' W_r = x W_r + sum of y_s (W_s W_r)
            |x'|^2 = |x|^2 + sum of y_s . (2 x W_s^T + y_s W_s W_s^T + 2 sum over s' < s of y_s' W_s' W_s^T)
        """
        changed_senders = [(sender, variant) for sender, variant in changed_senders if (variant >= 0).any()]
        merged = self._batch.merged([variant for _, variant in changed_senders])
        if merged is None:
            return
        heads = [sender for sender, _ in changed_senders]
        for _, part in merged.parts(most):
            total: Tensor | None = None
            shape = layout(self._batch.sizes(part, receiver))
            for sender, wanted in zip(heads, part.picks, strict=False):
                for precision, contribution in self._contributions.split_by_precision(
                    sender, receiver, wanted, part, receiver
                ):
                    total = contribution.add_to(
                        total, self._weights.composed(sender, receiver, precision), shape
                    )
            assert total is not None
            dsquare = total.new_zeros(total.shape[:-1])
            if self._weights.arch.norm is not None:
                for i in range(len(heads)):
                    self._add_square(dsquare, receiver, heads, i, part)
            yield self._state_of_changes(receiver, total, dsquare, part), part

    def _add_square(
        self, dsquare: Tensor, receiver: int, heads: list[int], i: int, merged: MergedVariants
    ) -> None:
        """Adds to ``dsquare`` what the i-th head contributes in the variants that read it.

        ``dsquare`` is the change of the squared norm of the receiver's input, [V, N]; see `_composed`.
        """
        sender = heads[i]
        for (precision, _), contribution in self._contributions.split_by_precision(
            sender, receiver, merged.picks[i], merged
        ):
            some = merged.some(contribution.variants)
            earlier: Tensor | None = None
            for other, wanted in zip(heads[:i], some.picks, strict=False):
                for (other_precision, _), theirs in self._contributions.variants_by_precision(
                    other, wanted, some
                ):
                    z = self._contributions.output_delta(other, receiver, theirs, some)
                    earlier = add_product(
                        earlier, z, self._weights.overlap(other, sender, (other_precision, precision))
                    )
            products = matmul(contribution.y, self._weights.overlap(sender, sender, (precision, precision)))
            dots = partial(BaseActivations.head_products, receiver=receiver, head=sender, quantized=precision)
            if earlier is None:
                self._batch.add_of_bases(products, some, dots, alpha=2)
            else:
                products.add_(self._batch.add_of_bases(earlier, some, dots), alpha=2)
            contribution.scatter(dsquare, sums(products.mul_(contribution.y)))

    def _projected(
        self, receiver: int, changed_senders: ChangedSenders, mask: NDArray[np.bool_], most: int | None
    ) -> Iterator[tuple[ChangedReceiver, MergedVariants]]:
        """Computes a receiver through the residual stream, for the passes in ``mask``."""
        moved = self.residual_sums.input_change(receiver, changed_senders, mask)
        if moved is None:
            return
        dx, merged = moved
        dsquare = self.residual_sums.squared_norm_change(receiver, dx, merged)
        sizes = self._batch.sizes(merged, receiver)
        for begin, part in merged.parts(most):
            some, squares = (
                part_of(VariantValues(x, sizes), begin, begin + part.count) for x in (dx, dsquare)
            )
            yield self._state_of_changes(receiver, self._read(receiver, some, part), squares, part), part

    def _read(self, receiver: int, dx: Tensor, merged: MergedVariants) -> Tensor:
        """Multiplies a change of input with the receiver's matrix: [V, N, O]."""
        batch = self._batch
        if batch.linears is None:
            return matmul(dx, self._weights.receiver_weight(receiver))
        full = None if batch.promotion is None else batch.promotion.of_receiver(merged, receiver)
        return batch.linears.project(
            receiver, dx, tokens_by_flag(full, batch.sizes(merged, receiver), dx.device)
        )


# How many hidden units of MLPs are computed at once, over all variants and tokens. On CPUs they take 4 MiB,
# with all intermediate values about three times as much; elsewhere they fill whole tiles of large models.
CHUNK_ELEMENTS, DEVICE_CHUNK_ELEMENTS = 1 << 20, 1 << 25


class BatchForward:
    """The forward pass of a batch.

    Args:
        batch: the passes.
        keep: whether the passes are to become base circuits (`as_base`). Then the states of heads' receivers
            are kept. The states of MLPs are large and are computed again when they are needed.
    """

    def __init__(self, batch: PassBatch, keep: bool = False) -> None:
        self.batch, self.keep = batch, keep
        self.graph, self.weights = batch.graph, batch.weights
        self.senders: dict[int, NodeChange] = {}
        self.states: dict[int, ChangedReceiver | None] = {}
        # Per changed receiver, except ``logits``: its variant by pass.
        self.changed: dict[int, Index] = {}
        self._receivers = ReceiverInputs(batch, self.senders)
        # Input of ``logits`` in the passes that change it, [V, N, D]: the input itself, not the difference.
        self.final: NodeChange | None = None

    def run(self) -> None:
        """Computes the changes of all live nodes."""
        touched = [self.graph.receiver(r).layer for r in self.batch.ablations]
        for layer in range(min(touched, default=self.graph.layers), self.graph.layers):
            changed = self._receivers.changed_receivers(layer)
            for head in self.batch.heads(layer) if changed else ():
                if not changed.isdisjoint(self.graph.head_receivers(head)):
                    self._run_head(head)
            if self.graph.mlps and self.batch.is_live(self.graph.mlp(layer)):
                self._run_mlp(layer)
            if not self.keep:
                # Nothing above this layer reads its receivers, whose states take most of a batch's memory.
                self.states.clear()
        logits = self.graph.logits
        moved = self._receivers.residual_sums.input_change(logits, self._receivers.changed_senders(logits))
        if moved is not None:
            dx, merged = moved
            dx = dx + self.batch.of_bases(merged, lambda base: base.cached_input(logits))
            self.final = NodeChange(VariantValues(dx, self.batch.sizes(merged, logits)), merged.variant)

    def as_base(self, number: int, circuit: Circuit) -> BaseActivations:
        """Returns the activations of one pass as those of a base circuit.

        Args:
            number: of the pass in the batch.
            circuit: that the pass runs under.
        """
        base = self.batch.bases[self.batch.base_of[number]]
        outputs = (
            (sender, base.output(sender, base.plan.needed[sender]) + change.values.of(change.variant[number]))
            for sender, change in self.senders.items()
            if change.variant[number] >= 0
        )
        states = {
            receiver: ReceiverState(new.projection.of(i), new.squared_norm.of(i), new.value.of(i))
            for receiver, new in self.states.items()
            if new is not None and (i := new.variant[number]) >= 0
        }
        changed = {receiver for receiver, variant in self.changed.items() if variant[number] >= 0}
        final_x = None
        if self.final is not None and self.final.variant[number] >= 0:
            final_x = self.final.values.of(self.final.variant[number])
            changed.add(self.graph.logits)
        return BaseActivations.derived(base, circuit, outputs, states, final_x, frozenset(changed))

    # Senders

    def _run_head(self, head: int) -> None:
        """Computes the change of a head's output before W_O."""
        receivers = self.graph.head_receivers(head)
        states = [self._state(receiver) for receiver in receivers]
        # The keys of a group may have changed in jobs in which this head of the group is not live.
        columns = [self.batch.where_live(head, s.variant) for s in states if s is not None]
        merged = merge(columns)
        if merged is None:
            return
        picks = iter(merged.picks)
        q, k, v = (
            self._values(receiver, merged, state, None if state is None else next(picks))
            for receiver, state in zip(receivers, states, strict=True)
        )
        z = self._attend(head, merged, (q, k, v))
        self.batch.add_of_bases(z, merged, lambda base: base.z(head), alpha=-1)
        sizes = self.batch.sizes(merged, receivers[0])
        self._receivers.add(head, NodeChange(VariantValues(z, sizes), merged.variant))

    def _attend(self, head: int, merged: MergedVariants, qkv: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Computes attention in merged variants: [V, N, K] at the head's queries."""
        base_of = self.batch.base_of[merged.first]
        number: dict[object, int] = {}
        shape_of_base = {}
        for i in dict.fromkeys(base_of.tolist()):
            base = self.batch.bases[i]
            shape_of_base[i] = number.setdefault((base.tokens.geometry, base.plan.needed[head]), len(number))
        if len(number) == 1:
            return self._attend_one_shape(head, merged, qkv)
        kinds = np.array([shape_of_base[i] for i in base_of.tolist()])
        return self._attend_by_shape(head, merged, qkv, kinds)

    def _attend_by_shape(
        self, head: int, merged: MergedVariants, qkv: tuple[Tensor, Tensor, Tensor], kinds: Index
    ) -> Tensor:
        """Computes attention where variants differ in shape: each shape by itself."""
        receivers = self.graph.head_receivers(head)
        sizes = self.batch.sizes(merged, receivers[0])
        starts, out = np.cumsum(sizes) - sizes, qkv[0].new_empty(int(sizes.sum()), qkv[0].shape[-1])
        for kind in range(int(kinds.max()) + 1):
            chosen = np.flatnonzero(kinds == kind)
            q, k, v = (
                _chosen(x, self.batch.sizes(merged, receiver), chosen)
                for receiver, x in zip(receivers, qkv, strict=True)
            )
            z = self._attend_one_shape(head, merged.some(chosen), (q, k, v)).flatten(0, 1)
            if chosen[-1] - chosen[0] + 1 == len(chosen):
                out[starts[chosen[0]] : starts[chosen[0]] + len(z)] = z
            else:
                out[as_tensor(token_index(starts[chosen], sizes[chosen]), z.device)] = z
        return with_layout(out, sizes)

    def _attend_one_shape(
        self, head: int, merged: MergedVariants, qkv: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Computes attention in variants of equal prompt lengths that are needed at the same positions."""
        base = self.batch.bases[self.batch.base_of[merged.first[0]]]
        _, k, v = self.graph.head_receivers(head)
        past = None
        if base.tokens.start:
            past = (
                self.batch.of_bases(merged, lambda b: b.unpatched.prefix(k)),
                self.batch.of_bases(merged, lambda b: b.unpatched.prefix(v)),
            )
        layer = (head - 1) // self.graph.senders_per_layer
        return attend(base.tokens, layer, base.plan.needed[head], qkv, past)

    def _run_mlp(self, layer: int) -> None:
        """Computes the change of an MLP's output."""
        receiver = self.graph.receiver_of("mlp", layer)
        states = self._receivers.changed_states(
            receiver, self._receivers.changed_senders(receiver), self._max_variants(receiver)
        )
        changes = [self._mlp_part(layer, receiver, state, merged) for state, merged in states]
        if changes:
            change = _joined(changes)
            self._receivers.add(self.graph.mlp(layer), change)
            self.changed[receiver] = change.variant

    def _max_variants(self, receiver: int) -> int:
        """Returns how many variants of an MLP may be computed at once."""
        elements = int(self.batch.counts(receiver).max()) * self.weights.mlp_width
        return max(
            1, (CHUNK_ELEMENTS if self.weights.device.type == "cpu" else DEVICE_CHUNK_ELEMENTS) // elements
        )

    def _mlp_part(
        self, layer: int, receiver: int, state: ChangedReceiver, merged: MergedVariants
    ) -> NodeChange:
        """Returns the change of an MLP's output in some variants."""
        change = state.value.data  # overwritten: nothing else reads it
        self.batch.add_of_bases(change, merged, lambda base: base.state(receiver).value, alpha=-1)
        linears = self.batch.linears
        out = (
            matmul(change, self.weights.mlp_out(layer)) if linears is None else linears.mlp_out(layer, change)
        )
        return NodeChange(VariantValues(out, state.value.sizes), state.variant)

    def _values(
        self, receiver: int, merged: MergedVariants, state: ChangedReceiver | None, wanted: Index | None
    ) -> Tensor:
        """Returns a receiver's value in merged variants: [V or 1, N, K]."""
        if state is None or wanted is None:
            return self.batch.of_bases(merged, lambda base: base.state(receiver).value)
        sizes = self.batch.sizes(merged, receiver)
        picked = pick(state.value, wanted, sizes)
        same = np.flatnonzero(wanted < 0)
        if len(same):
            unchanged = self.batch.of_bases(merged.some(same), lambda base: base.state(receiver).value)
            tokens = as_tensor(token_index(picked.starts[same], sizes[same]), picked.data.device)
            unchanged = unchanged.expand(*layout(sizes[same]), -1).flatten(0, 1)
            picked.data.flatten(0, 1)[tokens] = unchanged
        return picked.data

    def _state(self, receiver: int) -> ChangedReceiver | None:
        """Returns a receiver in the passes that change it; computed once."""
        if receiver not in self.states:
            state = self._receivers.changed_state(receiver, self._receivers.changed_senders(receiver))
            self.states[receiver] = state
            if state is not None:
                self.changed[receiver] = state.variant
        return self.states[receiver]


def _chosen(x: Tensor, sizes: Index, chosen: Index) -> Tensor:
    """Selects some of the variants. Values [1, N, K] that all variants share are returned as they are."""
    if len(x) == 1 and x.shape[1] == sizes[0] and len(sizes) > 1:
        return x
    return pick(VariantValues(x, sizes), chosen, sizes[chosen]).data


def _joined(changes: list[NodeChange]) -> NodeChange:
    """Joins the changes of disjoint sets of passes."""
    if len(changes) == 1:
        return changes[0]
    variant = np.full(len(changes[0].variant), -1)
    offset = 0
    for change in changes:
        variant = np.where(change.variant < 0, variant, change.variant + offset)
        offset += len(change.values.sizes)
    return NodeChange(concatenated([change.values for change in changes]), variant)
