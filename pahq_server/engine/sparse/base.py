"""Values of an anchored circuit, computed when first asked for and kept.

Coordinates: a head's output is kept as z (before W_O), an MLP's as its output. A *state* of a receiver is
its input's projection and sum of squares, from which its value follows; differences of rows start there.

Shape suffixes: P prompts, C places (see `tokens`), T positions, D d_model, K d_head, O receiver width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.engine.products import matmul
from pahq_server.engine.sparse.plan import Plan
from pahq_server.engine.sparse.reference import Reference
from pahq_server.engine.sparse.tokens import Places

# Senders cut from one receiver, latest first.
Pattern = tuple[int, ...]


@dataclass(frozen=True)
class State:
    """A receiver under a circuit: u [P, C, O], square [P, C], value [P, C, O]."""

    u: Tensor
    square: Tensor
    value: Tensor


class Base:
    """A circuit's values.

    Args:
        reference: of the job.
        circuit: the anchored circuit.
        plan: of this circuit, or of a circuit that contains it.
        parent: the base this one differs little from; values that do not differ are taken from it.
        patched: outputs of senders that differ from the clean pass, at ``plan.needed`` places.
        states: of the receivers that differ from the parent, except ``logits``.
        final_x: input of ``logits`` if it differs from the parent's.
    """

    def __init__(
        self,
        reference: Reference,
        circuit: Circuit,
        plan: Plan,
        parent: Base | None = None,
        patched: dict[int, Tensor] | None = None,
        states: dict[int, State] | None = None,
        final_x: Tensor | None = None,
    ) -> None:
        self.reference, self.circuit, self.plan, self.parent = reference, circuit, plan, parent
        self.weights, self.tokens = reference.weights, reference.tokens
        self.patched = {} if patched is None else patched
        self._states = {} if states is None else states
        # Differences of the last batch of cuts, by receiver: the next batch of a chain goes on from them.
        self.known_cuts: dict[int, dict[Pattern, Tensor]] = {}
        self._x = {} if final_x is None else {circuit.graph.logits: final_x}
        self._changed = frozenset(self._states) | frozenset(self._x)
        self._dots: dict[tuple[int, int], Tensor] = {}
        self._z: dict[int, Tensor] = {}
        self._hidden: dict[int, Tensor] = {}

    @classmethod
    def from_scratch(cls, reference: Reference, circuit: Circuit) -> Base:
        """Computes all live senders above the first removed edge, layer by layer."""
        base = cls(reference, circuit, Plan.of(circuit))
        graph = circuit.graph
        removed = np.flatnonzero(~circuit.kept)
        first = graph.receiver(graph.edge_ends(int(removed[0]))[1]).layer if len(removed) else graph.layers
        for layer in range(first, graph.layers):
            for head in base.plan.heads(layer):
                base.patched[graph.head(layer, head)] = base.z(graph.head(layer, head))
            if graph.mlps and graph.mlp(layer) in base.plan.needed:
                base.patched[graph.mlp(layer)] = base._mlp_output(layer)
        return base

    def shape(self, receiver: int) -> tuple[int, int]:
        """(P, C) of a live receiver."""
        return self.tokens.prompts, self.tokens.count(self.plan.receivers[receiver])

    def owner(self, *receivers: int) -> Base:
        """The base that any of these receivers last differed in: its ancestors' values are the same."""
        base = self
        while base.parent is not None and base._changed.isdisjoint(receivers):
            base = base.parent
        return base

    # What senders put out

    def output(self, sender: int, places: Places) -> Tensor:
        """A sender's output in coordinates: [P, C, K or D]."""
        if sender in self.patched:
            return self.tokens.narrow(self.patched[sender], self.plan.needed[sender], places)
        return self.tokens.take(self.reference.output(self.reference.clean, sender), places)

    def ablation(self, sender: int, places: Places) -> Tensor:
        """What removing an edge from the sender changes, in coordinates: ablated minus current output."""
        ablated = self.tokens.take(self.reference.output(self.reference.ablated, sender), places)
        return ablated - self.output(sender, places)

    # What receivers read

    def x(self, receiver: int) -> Tensor:
        """A receiver's input: [P, C, D]. Not kept: it is large, and seldom needed."""
        graph, places = self.circuit.graph, self.plan.receivers[receiver]
        incoming = self.circuit.incoming(receiver)
        removed = np.flatnonzero(~incoming).tolist()
        kept = np.flatnonzero(incoming).tolist()
        patched = [s for s in kept if s in self.patched]
        if len(removed) + len(patched) <= len(kept):
            start, terms = self.reference.clean, [(s, self._ablation_of_clean(s, places)) for s in removed]
            terms += [(s, self.output(s, places) - self._clean(s, places)) for s in patched]
        else:
            start, terms = self.reference.ablated, [(s, -self.ablation(s, places)) for s in kept]
        stream = self.tokens.take(self.reference.stream(start, receiver), places)
        assert graph.upstream(receiver) == len(incoming)
        return self.reference.add_writes(stream, terms)

    def empty_x(self, receiver: int) -> Tensor:
        """The receiver's input when all its edges are removed: [P, C, D]."""
        stream = self.reference.stream(self.reference.ablated, receiver)
        return self.tokens.take(stream, self.plan.receivers[receiver])

    def kept_x(self, receiver: int) -> Tensor:
        """Like `x`, and kept: for receivers whose rows are computed in the residual stream."""
        owner = self.owner(receiver)
        if receiver not in owner._x:
            owner._x[receiver] = owner.x(receiver)
        return owner._x[receiver]

    def state(self, receiver: int) -> State:
        owner = self.owner(receiver)
        if receiver not in owner._states:
            owner._states[receiver] = owner._new_state(receiver)
        return owner._states[receiver]

    def _new_state(self, receiver: int) -> State:
        x = self._x[receiver] if receiver in self._x else self.x(receiver)
        # The inner products below need the same input: take them while it is there.
        if self.composable(receiver):
            for sender in self._kept_heads(receiver):
                self._dots[receiver, sender] = matmul(x, self.weights.writes(sender).T)
        u, square = matmul(x, self.weights.reads(receiver)), x.square().sum(-1)
        return State(u, square, self.finish(receiver, u, square))

    def composable(self, receiver: int) -> bool:
        """Whether so few heads are kept upstream that products of heads and receiver pay.

        Depends on the plan alone, so that all bases of a sweep agree.
        """
        arch = self.weights.arch
        return self.plan.kept_heads(receiver) * arch.d_head <= arch.d_model

    def dots(self, receiver: int, head: int) -> Tensor:
        """Inner products of a receiver's input with what a head writes: x W_O^T, [P, C, K]."""
        owner = self.owner(receiver)
        if owner.parent is None:
            owner.state(receiver)
        if (receiver, head) not in owner._dots:
            owner._dots[receiver, head] = owner._new_dots(receiver, head)
        return owner._dots[receiver, head]

    def _kept_heads(self, receiver: int) -> list[int]:
        kept = np.flatnonzero(self.circuit.incoming(receiver)).tolist()
        return [sender for sender in kept if self.reference.is_head(sender)]

    def finish(self, receiver: int, u: Tensor, square: Tensor) -> Tensor:
        positions = self.tokens.positions(self.plan.receivers[receiver])
        return self.weights.finish(receiver, u, square, positions)

    # What nodes compute

    def keys_or_values(self, receiver: int) -> Tensor:
        """All keys or values of a k or v receiver: [P, T, K]."""
        return torch.cat([self.reference.prefix(receiver), self.state(receiver).value], -2)

    def z(self, head: int) -> Tensor:
        """A live head's output at the places where it is needed: [P, C, K]."""
        if head in self.patched:
            return self.patched[head]
        q, k, v = self.head_receivers(head)
        owner = self.owner(q, k, v)
        if head not in owner._z:
            q_value = owner.state(q).value
            owner._z[head] = owner.attend(head, q_value, owner.keys_or_values(k), owner.keys_or_values(v))
        return owner._z[head]

    def attend(self, head: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of one head: q [..., P, C, K] over k and v [..., P, T, K]; returns [..., P, C, K]."""
        layer = (head - 1) // self.circuit.graph.senders_per_layer
        # Broadcasting would pick another kernel, with other bits, than a batch of equal keys.
        shape = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        q, k, v = (x.expand(*shape, -1, -1).contiguous() for x in (q, k, v))
        scores = torch.matmul(q, k.transpose(-1, -2))
        scores += self.tokens.hidden_at(layer, self.plan.needed[head])
        return torch.matmul(scores.softmax(-1), v)

    def hidden(self, layer: int) -> Tensor:
        """Hidden units of a live MLP: [P, C, M]."""
        receiver = self.circuit.graph.receiver_of("mlp", layer)
        owner = self.owner(receiver)
        if layer not in owner._hidden:
            owner._hidden[layer] = self.weights.hidden(layer, owner.state(receiver).value)
        return owner._hidden[layer]

    def head_receivers(self, head: int) -> tuple[int, int, int]:
        """The q, k and v receivers of a head."""
        graph = self.circuit.graph
        layer, unit = divmod(head - 1, graph.senders_per_layer)
        kv = unit * graph.kv_units // graph.heads
        return (
            graph.receiver_of("q", layer, unit),
            graph.receiver_of("k", layer, kv),
            graph.receiver_of("v", layer, kv),
        )

    def _mlp_output(self, layer: int) -> Tensor:
        weights = self.weights.weights.layers[layer]
        assert weights.w_out is not None
        assert weights.b_out is not None
        return matmul(self.hidden(layer), weights.w_out) + weights.b_out

    def _clean(self, sender: int, places: Places) -> Tensor:
        return self.tokens.take(self.reference.output(self.reference.clean, sender), places)

    def _ablation_of_clean(self, sender: int, places: Places) -> Tensor:
        ablated = self.tokens.take(self.reference.output(self.reference.ablated, sender), places)
        return ablated - self._clean(sender, places)

    def _new_dots(self, receiver: int, head: int) -> Tensor:
        parent, places = self.parent, self.plan.receivers[receiver]
        moved = [] if parent is None else self._moved_senders(receiver, parent)
        only_heads = all(map(self.reference.is_head, moved))
        if parent is None or not only_heads or not self._same_edges(receiver, parent):
            return matmul(self.kept_x(receiver), self.weights.writes(head).T)
        dots = parent.dots(receiver, head)
        for sender in moved:
            difference = self.output(sender, places) - parent.output(sender, places)
            dots = dots + matmul(difference, self.weights.overlap(sender, head))
        return dots

    def _moved_senders(self, receiver: int, parent: Base) -> list[int]:
        """Senders along kept edges whose output differs from the parent's."""
        kept = np.flatnonzero(self.circuit.incoming(receiver)).tolist()
        return [s for s in kept if self.patched.get(s) is not parent.patched.get(s)]

    def _same_edges(self, receiver: int, parent: Base) -> bool:
        return np.array_equal(self.circuit.incoming(receiver), parent.circuit.incoming(receiver))
