"""The activations of a base circuit, computed when first asked for and kept in pages.

A head's output is kept as z (before W_O), an MLP's as its output. A receiver is kept as the projection of its
input, the input's squared norm and the value that follows from both; patched passes add their changes there.

Shape suffixes: N packed tokens (see `positions`), D d_model, K d_head, O outputs of a receiver, U vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.engine.sparse.memory import PagedTensors
from pahq_server.engine.sparse.positions import LivenessPlan, PositionSet, attend
from pahq_server.engine.sparse.unpatched import UnpatchedRuns, is_head
from pahq_server.precision.products import matmul, sums

# Senders whose edges into one receiver are removed, latest first.
RemovedSenders = tuple[int, ...]


class ReceiverState(NamedTuple):
    """A receiver under a circuit.

    Args:
        projection: the input before its norm, times the receiver's matrix: [N, O].
        squared_norm: of the input, [N].
        value: the query, key or value, [N, O], or the hidden units of an MLP: [N, O], or [N, O / 2] if it is
            gated.
    """

    projection: Tensor
    squared_norm: Tensor
    value: Tensor


class BaseActivations:
    """The activations of a base circuit. Whoever makes them releases them, after those derived from them.

    Args:
        unpatched: the clean and the ablated run of the job.
        circuit: the base circuit.
        plan: live nodes of this circuit, or of a circuit that contains it.
        parent: activations of a base circuit with a few more edges; what is equal there is read there. None
            for activations that stand by themselves.
        changed: receivers whose input differs from the parent's.
    """

    def __init__(
        self,
        unpatched: UnpatchedRuns,
        circuit: Circuit,
        plan: LivenessPlan,
        parent: BaseActivations | None = None,
        changed: frozenset[int] = frozenset(),
    ) -> None:
        self.unpatched, self.circuit, self.plan, self.parent = unpatched, circuit, plan, parent
        self.weights, self.tokens, self.graph = unpatched.weights, unpatched.tokens, circuit.graph
        # Outputs of senders that differ from the clean run, at the positions of ``plan.needed``.
        outputs = PagedTensors(unpatched.pool) if parent is None else parent._outputs.fork()
        self._outputs: PagedTensors = outputs
        # Per sender, whether it has such an output: bool.
        none = np.zeros(self.graph.num_senders, dtype=bool)
        self._patched: NDArray[np.bool_] = none if parent is None else parent._patched.copy()
        # What is computed when first asked for: states and inputs of receivers, inner products, outputs of
        # heads.
        self._cache = PagedTensors(unpatched.pool)
        # Whether inputs of receivers are computed again whenever they are needed, to save memory.
        self.recomputes = False
        # Changes by removed edges in the present batch and in the one before it, from which a batch often
        # goes on: by receiver and whatever else they depend on (see `batch.sum_chains`), then by set of
        # senders.
        self.known_ablations: dict[tuple[int, object], dict[RemovedSenders, Tensor]] = {}
        self._earlier_ablations: dict[tuple[int, object], dict[RemovedSenders, Tensor]] = {}
        self._ablation_bytes = 0
        self._changed = changed
        self._mean_logit_change: Tensor | None = None
        # Remembered results of `_reads_clean_stream`.
        self._clean_inputs: dict[int, bool] = {}
        # Remembered results of `owner`, for single receivers.
        self._state_owners: dict[int, BaseActivations] = {}

    @classmethod
    def from_scratch(cls, unpatched: UnpatchedRuns, circuit: Circuit) -> BaseActivations:
        """Computes all live senders from the layer of the first removed edge up."""
        base = cls(unpatched, circuit, LivenessPlan.of(circuit))
        graph = circuit.graph
        removed = np.flatnonzero(~circuit.kept)
        first = graph.receiver(graph.edge_ends(int(removed[0]))[1]).layer if len(removed) else graph.layers
        try:
            for layer in range(first, graph.layers):
                for head in base.plan.heads(layer):
                    base._put_output(graph.head(layer, head), base._attended(graph.head(layer, head)))
                if graph.mlps and graph.mlp(layer) in base.plan.needed:
                    base._put_output(graph.mlp(layer), base._mlp_output(layer))
        except BaseException:
            base.release()
            raise
        return base

    @classmethod
    def derived(
        cls,
        parent: BaseActivations,
        circuit: Circuit,
        outputs: Iterable[tuple[int, Tensor]],
        states: Mapping[int, ReceiverState],
        final_x: Tensor | None,
        changed: frozenset[int],
    ) -> BaseActivations:
        """Makes the activations of a circuit that differs from its parent in some outputs and receivers.

        Args:
            parent: of the same plan.
            circuit: the base circuit.
            outputs: of the senders that differ.
            states: of some of the receivers that differ; those of others follow from their inputs.
            final_x: input of ``logits`` if it differs, [N, D].
            changed: receivers that differ.
        """
        base = cls(parent.unpatched, circuit, parent.plan, parent, changed)
        try:
            for sender, value in outputs:
                base._put_output(sender, value)
            for receiver, state in states.items():
                base._put_state(receiver, state)
            if final_x is not None:
                base._cache.put(base.graph.layers, ("x", base.graph.logits), final_x)
        except BaseException:
            base.release()
            raise
        return base

    def release(self) -> None:
        """Frees all activations that no other base shares. May be called again."""
        self._outputs.release()
        self._cache.release()
        self.known_ablations, self._earlier_ablations, self._ablation_bytes = {}, {}, 0

    def trim_ablations(self, room: int) -> int:
        """Drops remembered changes by removed edges until they take at most ``room`` bytes.

        Returns the bytes that the remaining ones take.

        The latest stay, because the next batch mostly goes on from them. A change that is not remembered is
        summed again in the same order and has the same bits.
        """
        self._earlier_ablations = {}
        if self._ablation_bytes <= room:
            return self._ablation_bytes
        left, kept_bytes = {}, 0
        for key, known in self.known_ablations.items():
            size = next(iter(known.values())).nbytes
            kept = list(known.items())[len(known) - min(len(known), (room - kept_bytes) // size) :]
            if kept:
                # Copied, because each is a view of the memory of all.
                left[key] = {pattern: dx.clone() for pattern, dx in kept}
                kept_bytes += len(kept) * size
        self.known_ablations, self._ablation_bytes = left, kept_bytes
        return kept_bytes

    def begin_ablations(self) -> None:
        """Begins to remember the changes of a batch, and forgets those of the batch before the last."""
        self._earlier_ablations, self.known_ablations, self._ablation_bytes = self.known_ablations, {}, 0

    def recalled_ablations(self, key: tuple[int, object]) -> Mapping[RemovedSenders, Tensor]:
        """Returns the changes that the last batch remembered, by set of removed senders.

        ``key`` is as in `remember_ablations`.
        """
        return self._earlier_ablations.get(key, {})

    def remember_ablations(self, key: tuple[int, object], ablations: dict[RemovedSenders, Tensor]) -> None:
        """Remembers the changes of the present batch at one receiver.

        Args:
            key: the receiver, and what else the changes depend on.
            ablations: changes of the receiver's input by set of removed senders, [N, D] each.
        """
        before = self.known_ablations.get(key, {})
        self.known_ablations[key] = ablations
        self._ablation_bytes += sum(dx.nbytes for dx in ablations.values())
        self._ablation_bytes -= sum(dx.nbytes for dx in before.values())

    def count(self, receiver: int) -> int:
        """Returns the number of packed tokens at a live receiver, N."""
        return self.tokens.count(self.plan.receivers[receiver])

    def owner(self, *receivers: int) -> BaseActivations:
        """Returns the base that holds what is computed from the inputs of some receivers.

        It is the nearest one, from this base up through its ancestors, in which any of these inputs differs
        from the parent's, or the eldest. This base has the same inputs.
        """
        base = self
        while base.parent is not None and base._changed.isdisjoint(receivers):
            base = base.parent
        return base

    # Outputs of senders

    def is_patched(self, sender: int) -> bool:
        """Tells whether a sender's output differs from the clean run."""
        return bool(self._patched[sender])

    def output(self, sender: int, position_set: PositionSet) -> Tensor:
        """Returns a sender's output at a position set: z of a head, [N, K], else [N, D]."""
        if self.is_patched(sender):
            value = self._outputs.get(self._layer(sender), sender)
            return self.tokens.narrow(value, self.plan.needed[sender], position_set)
        return self._clean(sender, position_set)

    def ablation(self, sender: int, position_set: PositionSet) -> Tensor:
        """Returns the sender's ablated output less its output under this circuit: [N, K or D]."""
        return self._ablated(sender, position_set) - self.output(sender, position_set)

    # Inputs of receivers

    def receiver_input(self, receiver: int) -> Tensor:
        """Returns a receiver's input: [N, D]. It is not kept, because it is large and seldom needed.

        It is summed from the clean or from the ablated residual stream, whichever needs fewer terms.
        """
        position_set = self.plan.receivers[receiver]
        incoming = self.circuit.incoming(receiver)
        removed = np.flatnonzero(~incoming).tolist()
        kept = np.flatnonzero(incoming).tolist()
        patched = self._patched_into(receiver)
        if len(removed) + len(patched) <= len(kept):
            start = self.unpatched.clean
            terms = [(s, self._ablation_of_clean(s, position_set)) for s in removed]
            terms += [(s, self.output(s, position_set) - self._clean(s, position_set)) for s in patched]
        else:
            start = self.unpatched.ablated
            terms = [(s, -self.ablation(s, position_set)) for s in kept]
        stream = self.tokens.narrow(self.unpatched.stream(start, receiver), PositionSet.WINDOW, position_set)
        return self.unpatched.add_outputs(stream, terms)

    def ablated_input(self, receiver: int) -> Tensor:
        """Returns the receiver's input when all its edges are removed: [N, D]."""
        stream = self.unpatched.stream(self.unpatched.ablated, receiver)
        return self.tokens.narrow(stream, PositionSet.WINDOW, self.plan.receivers[receiver])

    def quantized_ablation_of_all(self, receiver: int) -> Tensor:
        """Returns the change of a receiver's input by removing all edges into it: [N, D].

        Heads write through the policy's W_O.
        """
        position_set, incoming = self.plan.receivers[receiver], self.circuit.incoming(receiver)
        removed, kept = (np.flatnonzero(edges).tolist() for edges in (~incoming, incoming))
        patched = self._patched_into(receiver)
        if len(removed) + len(patched) <= len(kept):
            start = self.tokens.narrow(
                self.unpatched.quantized_ablation_of_clean(receiver), PositionSet.WINDOW, position_set
            )
            terms = [(s, -self._ablation_of_clean(s, position_set)) for s in removed]
            terms += [(s, self._clean(s, position_set) - self.output(s, position_set)) for s in patched]
        else:
            start = torch.zeros_like(self.ablated_input(receiver))
            terms = [(s, self.ablation(s, position_set)) for s in kept]
        return self.unpatched.add_outputs(start, terms, quantized=True)

    def cached_input(self, receiver: int) -> Tensor:
        """Returns `receiver_input`, and keeps it unless memory is short, because many passes need it."""
        owner, layer = self.owner(receiver), self.graph.receiver(receiver).layer
        if owner._reads_clean_stream(receiver):
            return owner.receiver_input(receiver)  # a view of the clean run's pages, which are kept anyway
        if not owner._cache.has(layer, ("x", receiver)):
            x = owner.receiver_input(receiver)
            return x if owner.recomputes else owner._cache.put(layer, ("x", receiver), x)
        return owner._cache.get(layer, ("x", receiver))

    def input_key(self, receiver: int) -> Hashable:
        """Returns a key. Receivers of one layer that are needed at the same positions have the same input if
        their keys are equal.
        """
        owner, (kind, layer, _) = self.owner(receiver), self.graph.receiver(receiver)
        if not owner._reads_clean_stream(receiver):
            return id(owner), receiver
        return layer, "mlp" if kind == "mlp" else "attention"

    def _reads_clean_stream(self, receiver: int) -> bool:
        """Tells whether a receiver's input is that of the clean run."""
        known = self._clean_inputs.get(receiver)
        if known is None:
            known = bool(self.circuit.incoming(receiver).all()) and not self._patched_into(receiver)
            self._clean_inputs[receiver] = known
        return known

    def logit_changes(self, full_ND: Tensor) -> Tensor:
        """Returns the difference of logits from the full model's, in full precision: [N, U].

        Args:
            full_ND: the full model's input of the unembedding.
        """

        def changes() -> Tensor:
            dn = self.weights.normed(self.cached_input(self.graph.logits)) - full_ND
            return matmul(dn, self.weights.weights.w_u)

        owner = self.owner(self.graph.logits)
        return (
            changes() if owner.recomputes else owner._cache.get_or_put(self.graph.layers, "logits", changes)
        )

    def mean_logit_change(self, full_ND: Tensor, p_NU: Tensor) -> Tensor:
        """Returns the mean of `logit_changes` under the full model's probabilities: [N]."""
        owner = self.owner(self.graph.logits)
        if owner._mean_logit_change is None:
            owner._mean_logit_change = sums(self.logit_changes(full_ND) * p_NU)
        return owner._mean_logit_change

    def state(self, receiver: int) -> ReceiverState:
        """Returns the state of a receiver under this circuit, computed when it is first asked for."""
        owner = self._state_owners.get(receiver)
        if owner is None:
            owner = self._state_owners[receiver] = self.owner(receiver)
        layer, name = self.graph.receiver(receiver).layer, ("state", receiver)
        if not owner._cache.has(layer, name):
            owner._put_state(receiver, owner._new_state(receiver))
        return ReceiverState(*owner._cache.get_all(layer, name))

    def drop_mlp_states(self) -> None:
        """Forgets the states of MLPs, the largest of all. They are computed again when they are needed."""
        for layer in range(self.graph.layers if self.graph.mlps else 0):
            self._cache.drop(layer, ("state", self.graph.receiver_of("mlp", layer)))

    def _put_state(self, receiver: int, state: ReceiverState) -> None:
        self._cache.put_all(self.graph.receiver(receiver).layer, ("state", receiver), state)

    def _new_state(self, receiver: int) -> ReceiverState:
        """Computes the state of a receiver and, where they will be needed, its `head_products`."""
        layer = self.graph.receiver(receiver).layer
        kept = self._cache.has(layer, ("x", receiver))
        x = self._cache.get(layer, ("x", receiver)) if kept else self.receiver_input(receiver)
        # The inner products need the same input: they are computed while it is there.
        heads = self._kept_heads(receiver) if self.pays_to_compose(receiver) else []
        # Other bases are derived from this one in full precision, patched passes in that of the policy.
        precisions = (False, True) if self.weights.is_quantized else (False,)
        for quantized in precisions if heads else ():
            writes = torch.cat([self.weights.head_output_weight(sender, quantized) for sender in heads])
            dots = matmul(x, writes.T).split(self.weights.arch.d_head, -1)
            for sender, of_head in zip(heads, dots, strict=True):
                self._cache.put(layer, ("dots", receiver, sender, quantized), of_head)
        u, square = matmul(x, self.weights.receiver_weight(receiver)), sums(x.square())
        return ReceiverState(u, square, self.receiver_value(receiver, u, square))

    def pays_to_compose(self, receiver: int) -> bool:
        """Tells whether products of heads' W_O with the receiver's matrix cost less than the residual stream.

        They do if few heads are kept upstream. The answer depends on the plan alone, so that all bases of a
        plan agree.
        """
        arch = self.weights.arch
        return bool(self.plan.kept_heads[receiver] * arch.d_head <= arch.d_model)

    def head_products(self, receiver: int, head: int, quantized: bool = False) -> Tensor:
        """Returns the inner products of a receiver's input with what a head writes: x W_O^T, [N, K].

        Args:
            receiver: whose input it is.
            head: by sender index.
            quantized: whether W_O is the policy's.
        """
        owner, layer = self.owner(receiver), self.graph.receiver(receiver).layer
        name = ("dots", receiver, head, quantized)
        # The state always comes first. It brings inner products with it, whose bits differ from those of
        # products that are derived from the parent's.
        if not owner._cache.has(layer, ("state", receiver)):
            owner.state(receiver)
        return owner._cache.get_or_put(
            layer, name, lambda: owner._new_head_products(receiver, head, quantized)
        )

    def _kept_heads(self, receiver: int) -> list[int]:
        kept = np.flatnonzero(self.circuit.incoming(receiver)).tolist()
        return [sender for sender in kept if is_head(self.graph, sender)]

    def receiver_value(self, receiver: int, u: Tensor, square: Tensor) -> Tensor:
        """Computes a receiver's value from its input's projection and squared norm."""
        return self.weights.receiver_value(receiver, u, square, self.positions(receiver))

    def positions(self, receiver: int) -> Tensor:
        """Returns the positions of the packed tokens at a live receiver: int64, [N]."""
        return self.tokens.positions(self.plan.receivers[receiver])

    # Outputs of nodes

    def z(self, head: int) -> Tensor:
        """Returns a live head's output before W_O, where it is needed: [N, K]."""
        position_set, layer = self.plan.needed[head], self._layer(head)
        if self.is_patched(head):
            return self.output(head, position_set)
        owner = self.owner(*self.graph.head_receivers(head))
        return owner._cache.get_or_put(layer, ("z", head), lambda: owner._attended(head))

    def _attended(self, head: int) -> Tensor:
        """Computes a head's output before W_O: [N, K]."""
        receivers = self.graph.head_receivers(head)
        q, k, v = (self.state(receiver).value[None] for receiver in receivers)
        past = None
        if self.tokens.start:
            past = tuple(self.unpatched.prefix(receiver)[None] for receiver in receivers[1:])
        return attend(self.tokens, self._layer(head), self.plan.needed[head], (q, k, v), past)[0]

    def _mlp_output(self, layer: int) -> Tensor:
        """Computes an MLP's output: [N, D]."""
        hidden = self.state(self.graph.receiver_of("mlp", layer)).value
        bias = self.weights.weights.layers[layer].b_out
        assert bias is not None
        return matmul(hidden, self.weights.mlp_out(layer)) + bias

    def _put_output(self, sender: int, value: Tensor) -> None:
        self._outputs.put(self._layer(sender), sender, value)
        self._patched[sender] = True

    def _layer(self, sender: int) -> int:
        """Returns the layer of a sender other than ``input``."""
        return (sender - 1) // self.graph.senders_per_layer

    def _clean(self, sender: int, position_set: PositionSet) -> Tensor:
        return self.unpatched.output(self.unpatched.clean, sender, position_set)

    def _ablated(self, sender: int, position_set: PositionSet) -> Tensor:
        return self.unpatched.output(self.unpatched.ablated, sender, position_set)

    def _ablation_of_clean(self, sender: int, position_set: PositionSet) -> Tensor:
        return self._ablated(sender, position_set) - self._clean(sender, position_set)

    def _new_head_products(self, receiver: int, head: int, quantized: bool) -> Tensor:
        """Computes `head_products`, from the parent's where only heads changed."""
        parent, position_set = self.parent, self.plan.receivers[receiver]
        moved = [] if parent is None else self._senders_changed_since(receiver, parent)
        only_heads = all(is_head(self.graph, s) for s in moved)
        if parent is None or not only_heads or not self._same_edges(receiver, parent):
            return matmul(self.cached_input(receiver), self.weights.head_output_weight(head, quantized).T)
        dots = parent.head_products(receiver, head, quantized)
        for sender in moved:
            difference = self.output(sender, position_set) - parent.output(sender, position_set)
            dots = dots + matmul(difference, self.weights.overlap(sender, head, (False, quantized)))
        return dots

    def _senders_changed_since(self, receiver: int, parent: BaseActivations) -> list[int]:
        """Returns the senders along kept edges whose output differs from the parent's."""
        return [s for s in self._patched_into(receiver) if not self._shares_output(parent, s)]

    def _patched_into(self, receiver: int) -> list[int]:
        """Returns the senders along kept edges whose output differs from the clean run."""
        incoming = self.circuit.incoming(receiver)
        senders: list[int] = np.flatnonzero(incoming & self._patched[: len(incoming)]).tolist()
        return senders

    def _shares_output(self, parent: BaseActivations, sender: int) -> bool:
        return self._outputs.shares(parent._outputs, self._layer(sender), sender)

    def _same_edges(self, receiver: int, parent: BaseActivations) -> bool:
        return np.array_equal(self.circuit.incoming(receiver), parent.circuit.incoming(receiver))
