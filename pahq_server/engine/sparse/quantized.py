"""Which heads run in full precision in which rows.

A row under a policy that promotes runs the head that its last removed edge leads into in full precision:
Q, K, V and O, wherever they act in the row. With grouped keys and values these are all heads of the group.


The linear linears of rows under a policy: what is multiplied with what a row changes.

Bases are in full precision whatever the policy. A row changes inputs of linear linears, and only these
differences are multiplied with rounded weights. Norms, attention and activations are exact, so an error is in
proportion to what a row changes, and what does not change has none.

What differences are rounded depends on where the arithmetic is. The linears of heads have d_head inputs or
outputs: 8-bit products of that size take as long as those of float32, once their inputs are quantized. So heads
are composed as without a policy, y (W_O8 W_r8) from a head to whatever reads it, with all but the weights in
full precision; an MLP that hears few heads and nothing else, too. The large linears act on rounded inputs: Q(dx)
W_in8 where an MLP's input changes otherwise, Q(h' - h) W_out8, and Q(dn) W_U8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.graph import Graph
from pahq_server.engine.sparse.variants import Index, MergedVariants, as_tensor
from pahq_server.engine.sparse.weights import BOTH_QUANTIZED, PairPrecision, SparseWeights
from pahq_server.models.architecture import Model
from pahq_server.models.resident import QuantizedLayer, round_layers, round_unembedding
from pahq_server.precision.linear import RoundedInput, linear
from pahq_server.precision.policy import Policy
from pahq_server.precision.products import matmul
from pahq_server.precision.quantized import Matrix, Quantized, to_floats


@dataclass(frozen=True)
class Promotion:
    """The promoted heads of the rows of a sweep.

    Args:
        heads: senders of each set of heads that some row promotes.
        senders: whether a set promotes a sender: bool, [sets + 1, senders]. The last set is empty.
        receivers: the same for receivers.
        of_row: per row, the number of its set; -1 where it promotes nothing.
    """

    heads: tuple[frozenset[int], ...]
    senders: NDArray[np.bool_]
    receivers: NDArray[np.bool_]
    of_row: Index

    def column(self, columns: Sequence[Index]) -> Index:
        """A further column to merge by, so that rows of one variant promote the same.

        Passes that no column changes stay unchanged.
        """
        active = np.logical_or.reduce([column >= 0 for column in columns])
        column: Index = np.where(active, self.of_row, -1)
        return column

    def of_receiver(self, merged: MergedVariants, receiver: int) -> NDArray[np.bool_] | None:
        """Per merged variant, whether it promotes this receiver; None if none does."""
        return self._flags(merged, self.receivers, receiver)

    def split_by_precision(
        self, wanted: Index, merged: MergedVariants, sender: int, reader: int | None
    ) -> list[tuple[PairPrecision, Index]]:
        """Variants of a head split_by_precision by what is promoted: which matrices are rounded, and who wants it then.

        Args:
            wanted: per merged variant, the head's, or -1.
            merged: variants.
            sender: the head.
            reader: the receiver whose matrix follows on the head's, if one does.
        """
        heads = self._flags(merged, self.senders, sender)
        readers = None if reader is None else self._flags(merged, self.receivers, reader)
        parts, rest = [], wanted
        # Nobody promotes both: promoted heads are of one layer, and do not read each other.
        for precision, flags in (((False, True), heads), ((True, False), readers)):
            if flags is not None:
                parts.append((precision, np.where(flags, wanted, -1)))
                rest = np.where(flags, -1, rest)
        return [*parts, (BOTH_QUANTIZED, rest)]

    def _flags(
        self, merged: MergedVariants, promoted: NDArray[np.bool_], node: int
    ) -> NDArray[np.bool_] | None:
        flags: NDArray[np.bool_] = promoted[self.of_row[merged.first], node]
        return flags if flags.any() else None


def promotion_of(graph: Graph, removed: Sequence[Sequence[int]]) -> Promotion:
    """The promotion of rows that lack these edges, each row's last one leading into its own receiver."""
    sets: dict[frozenset[int], int] = {}
    of_row = np.full(len(removed), -1)
    rows = np.array([row for row, edges in enumerate(removed) if len(edges)], dtype=np.int64)
    last = np.array([removed[row][-1] for row in rows.tolist()], dtype=np.int64)
    receivers_of, place = np.unique(
        np.searchsorted(graph.offsets, last, side="right") - 1, return_inverse=True
    )
    for number, receiver in enumerate(receivers_of.tolist()):
        heads = frozenset(graph.heads_behind(receiver))
        if heads:
            of_row[rows[place == number]] = sets.setdefault(heads, len(sets))
    senders = np.zeros((len(sets) + 1, graph.num_senders), dtype=bool)
    receivers = np.zeros((len(sets) + 1, graph.num_receivers), dtype=bool)
    for heads, number in sets.items():
        senders[number, list(heads)] = True
        receivers[number, [r for head in heads for r in graph.head_receivers(head)]] = True
    return Promotion(tuple(sets), senders, receivers, of_row)


# Outputs of the unembedding that are made floats at a time for `QuantizedLinears.probability_weighted_columns`.
READ_BACK_OUTPUTS = 4096


@dataclass(frozen=True)
class QuantizedModel:
    """A model's matrices under a policy.

    Args:
        policy: what is rounded and promoted.
        layers: quantized.
        w_u: rounded unembedding, [D, U].
    """

    policy: Policy
    layers: Sequence[QuantizedLayer]
    w_u: Matrix

    @classmethod
    def of(cls, model: Model, policy: Policy) -> QuantizedModel | None:
        """A folded model's; None for ``fp32``, which takes the model as it is."""
        if policy.name == "fp32":
            return None
        return cls(policy, round_layers(model, policy), round_unembedding(model, policy))


class QuantizedUnembedding:
    """The unembedding of changes of its input, some rows and logits at a time.

    Args:
        w_u: rounded, [D, U].
        inputs: the changes, as the policy is_quantized them.
        shape: of the changes, [V, N, D].
        dtype: of the changes.
    """

    def __init__(
        self, w_u: Matrix, inputs: Tensor | RoundedInput, shape: Sequence[int], dtype: torch.dtype
    ) -> None:
        self._w_u, self._inputs, self._shape, self._dtype = w_u, inputs, shape, dtype
        # The logits that were asked for last, with their matrix: floats of it are made once for all rows.
        self._last: tuple[slice, Matrix] | None = None

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Changes of some rows' logits: [v, N, B], in memory of its own."""
        places = self._shape[1]
        some = slice(rows.start * places, min(rows.stop, self._shape[0]) * places)
        w = self._matrix(columns)
        if isinstance(self._inputs, RoundedInput):
            inputs = self._inputs.rows(some)
            product = inputs.times(w) if isinstance(w, Quantized) else matmul(inputs.x, w)
        else:
            assert isinstance(w, Tensor)
            product = matmul(self._inputs[some], w).to(self._dtype)
        return product.view(-1, places, product.shape[-1])

    def values(self) -> Tensor:
        """The changes of the input as they are multiplied: [V, N, D]."""
        inputs = self._inputs.values() if isinstance(self._inputs, RoundedInput) else self._inputs
        return inputs.view(*self._shape)

    def _matrix(self, columns: slice) -> Matrix:
        if self._last is None or self._last[0] != columns:
            w = self._w_u
            some = w[:, columns] if isinstance(w, Tensor) else w.outputs(columns.start, columns.stop)
            if (
                isinstance(some, Quantized)
                and isinstance(self._inputs, RoundedInput)
                and self._inputs.scale is None
            ):
                some = to_floats(some, self._dtype)
            self._last = columns, some
        return self._last[1]


class QuantizedLinears:
    """Linear linears of rows.

    Args:
        weights: of the model in full precision, for what is promoted.
        rounded: the same model's matrices.
    """

    def __init__(self, weights: SparseWeights, quantized: QuantizedModel) -> None:
        self._weights, self._layers, self._w_u = weights, quantized.layers, quantized.w_u
        self._policy = quantized.policy

    @property
    def promotes(self) -> bool:
        """Whether rows run heads in full precision."""
        return self._policy.promotes

    def promotion(self, graph: Graph, removed: Sequence[Sequence[int]]) -> Promotion | None:
        return promotion_of(graph, removed) if self._policy.promotes else None

    def project(self, receiver: int, dx: Tensor, tokens: tuple[Tensor, Tensor] | None) -> Tensor:
        """A change of a receiver's input through its projection: [..., D] to [..., O].

        Args:
            receiver: q, k, v or MLP receiver.
            dx: the change.
            tokens: those that run in full precision, and the others: int64; None for none in full precision.
        """
        kind, layer, _ = self._weights.graph.receiver(receiver)
        if kind == "mlp":
            return self._mlp_in(layer, dx)
        if tokens is None:
            return matmul(dx, self._weights.receiver_weight(receiver, quantized=True))
        flat = dx.flatten(0, -2)
        full, rest = tokens
        promoted = matmul(flat[full], self._weights.receiver_weight(receiver))
        out = promoted.new_empty(len(flat), promoted.shape[-1])
        out[full] = promoted
        if len(rest):
            out[rest] = matmul(flat[rest], self._weights.receiver_weight(receiver, quantized=True))
        return out.view(*dx.shape[:-1], -1)

    def _mlp_in(self, layer: int, dx: Tensor) -> Tensor:
        weights = self._layers[layer]
        assert weights.w_in is not None
        if weights.w_gate is None:
            return self._linear(dx, weights.w_in)
        return torch.cat([self._linear(dx, weights.w_gate), self._linear(dx, weights.w_in)], -1)

    def mlp_out(self, layer: int, change: Tensor) -> Tensor:
        """A change of hidden units through W_out: [..., M] to [..., D]."""
        w = self._layers[layer].w_out
        assert w is not None
        return self._linear(change, w)

    def unembedding(self, dn: Tensor) -> QuantizedUnembedding:
        """Changes of the unembedding's input, [V, N, D], ready to be multiplied with it."""
        flat = dn.flatten(0, 1)
        if isinstance(self._w_u, Tensor):
            return QuantizedUnembedding(self._w_u, flat.to(self._w_u.dtype), dn.shape, dn.dtype)
        inputs = self._policy.inputs_of(self._w_u.data.numel())
        operand = RoundedInput.of(flat.contiguous(), inputs, self._policy.terms)
        return QuantizedUnembedding(self._w_u, operand, dn.shape, dn.dtype)

    def probability_weighted_columns(self, p: Tensor) -> Tensor | None:
        """Mean rows of the transposed unembedding: ``p @ w_u.T``, [N, D] for [N, U].

        With it the mean of changes of logits under p follows from changes of the unembedding's input. None
        where that would not be their mean, as products do not have the precision of float32.
        """
        w = self._w_u
        if not isinstance(w, Quantized) or w.data.dtype != torch.int8:
            return None
        total = p.new_zeros(len(p), w.data.shape[0])
        for first in range(0, p.shape[-1], READ_BACK_OUTPUTS):
            outputs = slice(first, first + READ_BACK_OUTPUTS)
            part = to_floats(w.outputs(outputs.start, outputs.stop), p.dtype)
            total += p[:, outputs] @ part.T
        return total

    def _linear(self, x: Tensor, w: Matrix) -> Tensor:
        if isinstance(w, Tensor):
            return linear(x.to(w.dtype), w, self._policy.inputs).to(x.dtype)
        return linear(x, w, self._policy.inputs_of(w.data.numel()), self._policy.terms)


def tokens_by_flag(
    flags: NDArray[np.bool_] | None, sizes: Index, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Numbers of the tokens of flagged variants and of the others: int64; None without flags.

    Args:
        flags: per variant.
        sizes: tokens of each.
        device: of the numbers.
    """
    if flags is None:
        return None
    each = np.repeat(flags, sizes)
    return as_tensor(np.flatnonzero(each), device), as_tensor(np.flatnonzero(~each), device)
