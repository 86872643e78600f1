"""The linear maps of patched passes under a precision policy, and which heads run in full precision.

Base activations are in full precision whatever the policy. A pass changes inputs of linear maps, and only
these changes are multiplied with the policy's weights. Norms, attention and activations are exact. So an
error is in proportion to what a pass changes, and what does not change has none. This is how PAHQ
(arXiv:2510.23264) is served; the paper rounds activations instead, see `engine.literal_rounded`.

Which changes are rounded depends on where the arithmetic is. The maps of heads have d_head inputs or outputs:
8-bit products of that size take as long as float32 ones once their inputs are rounded. Heads are therefore
composed as without a policy, y (W_O8 W_r8) from a head to its reader, with all but the weights in full
precision. So is an MLP that reads only changes of few heads. The large maps act on rounded inputs: Q(dx)
W_in8 where an MLP's input changes otherwise, Q(h' - h) W_out8, and Q(dn) W_U8.

Shape suffixes: V variants, N tokens, B columns of the unembedding, D d_model, O outputs, M hidden units, U
vocabulary.
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
from pahq_server.models.resident import QuantizedLayer, ResidentWeights, round_layers, round_unembedding
from pahq_server.precision.linear import RoundedInput, linear
from pahq_server.precision.policy import Policy
from pahq_server.precision.products import matmul
from pahq_server.precision.quantized import Matrix, Quantized, to_floats


@dataclass(frozen=True)
class Promotion:
    """The heads that passes of a batch run in full precision.

    A pass under a policy that promotes runs the head that its last removed edge leads into in full precision:
    its W_Q, W_K, W_V and W_O. With grouped keys and values these are all heads of the group.

    Args:
        heads: the different sets of heads that passes promote, as sender indices.
        senders: whether a set promotes a sender: bool, [sets + 1, senders]. The last set is empty.
        receivers: the same for receivers, [sets + 1, receivers].
        of_pass: per pass, the number of its set; -1 where it promotes nothing.
    """

    heads: tuple[frozenset[int], ...]
    senders: NDArray[np.bool_]
    receivers: NDArray[np.bool_]
    of_pass: Index

    def column(self, columns: Sequence[Index]) -> Index:
        """Returns a further column to merge by, so that passes of one variant promote the same heads.

        Passes that no other column changes stay unchanged.
        """
        active = np.logical_or.reduce([column >= 0 for column in columns])
        column: Index = np.where(active, self.of_pass, -1)
        return column

    def of_receiver(self, merged: MergedVariants, receiver: int) -> NDArray[np.bool_] | None:
        """Tells by merged variant whether it promotes a receiver; None if none does."""
        return self._flags(merged, self.receivers, receiver)

    def split_by_precision(
        self, wanted: Index, merged: MergedVariants, sender: int, reader: int | None
    ) -> list[tuple[PairPrecision, Index]]:
        """Splits the variants that read a head by the matrices that they use.

        Args:
            wanted: per merged variant, the variant of the head's change that it reads, or -1.
            merged: the merged variants.
            sender: the head.
            reader: the receiver whose matrix is multiplied too; None if none is.

        Returns:
            Pairs of the precisions of the head's and the reader's matrix, and ``wanted`` with -1 in the
            variants that use another combination.
        """
        heads = self._flags(merged, self.senders, sender)
        readers = None if reader is None else self._flags(merged, self.receivers, reader)
        parts, rest = [], wanted
        # No pass promotes both: the heads that it promotes are of one layer and do not read each other.
        for precision, flags in (((False, True), heads), ((True, False), readers)):
            if flags is not None:
                parts.append((precision, np.where(flags, wanted, -1)))
                rest = np.where(flags, -1, rest)
        return [*parts, (BOTH_QUANTIZED, rest)]

    def _flags(
        self, merged: MergedVariants, promoted: NDArray[np.bool_], node: int
    ) -> NDArray[np.bool_] | None:
        flags: NDArray[np.bool_] = promoted[self.of_pass[merged.first], node]
        return flags if flags.any() else None


def promotion_of(graph: Graph, removed: Sequence[Sequence[int]]) -> Promotion:
    """Returns the heads that passes promote.

    Args:
        graph: of the passes.
        removed: per pass, the edges of its base circuit that it lacks. The last one leads into the receiver
            under investigation.
    """
    sets: dict[frozenset[int], int] = {}
    of_pass = np.full(len(removed), -1)
    passes = np.array([index for index, edges in enumerate(removed) if len(edges)], dtype=np.int64)
    last = np.array([removed[index][-1] for index in passes.tolist()], dtype=np.int64)
    investigated = np.searchsorted(graph.offsets, last, side="right") - 1
    for receiver in np.unique(investigated).tolist():
        heads = frozenset(graph.heads_behind(receiver))
        if heads:
            of_pass[passes[investigated == receiver]] = sets.setdefault(heads, len(sets))
    senders = np.zeros((len(sets) + 1, graph.num_senders), dtype=bool)
    receivers = np.zeros((len(sets) + 1, graph.num_receivers), dtype=bool)
    for heads, number in sets.items():
        senders[number, list(heads)] = True
        receivers[number, [r for head in heads for r in graph.head_receivers(head)]] = True
    return Promotion(tuple(sets), senders, receivers, of_pass)


# Columns of the unembedding that `QuantizedLinears.probability_weighted_columns` converts at a time.
WEIGHTED_COLUMNS = 4096


@dataclass(frozen=True)
class QuantizedModel:
    """A model's matrices under a precision policy.

    Args:
        policy: says what is rounded to what, and whether heads are promoted.
        layers: the rounded layers.
        w_u: the rounded unembedding, [D, U].
    """

    policy: Policy
    layers: Sequence[QuantizedLayer]
    w_u: Matrix

    @classmethod
    def of(cls, model: Model, policy: Policy) -> QuantizedModel | None:
        """Rounds a folded model; None for ``fp32``, which takes the model as it is."""
        if policy.name == "fp32":
            return None
        return cls(policy, round_layers(model, policy), round_unembedding(model, policy))

    @classmethod
    def of_resident(cls, weights: ResidentWeights, policy: Policy) -> QuantizedModel:
        """Takes weights that are rounded as the policy says."""
        return cls(policy, weights.layers, weights.w_u)


class QuantizedUnembedding:
    """Multiplies changes of the unembedding's input with it, for some variants and columns at a time.

    Args:
        w_u: unembedding of the policy, [D, U].
        inputs: the changes, as the policy rounds them.
        shape: of the changes, [V, N, D].
        dtype: of the changes.
    """

    def __init__(
        self, w_u: Matrix, inputs: Tensor | RoundedInput, shape: Sequence[int], dtype: torch.dtype
    ) -> None:
        self._w_u, self._inputs, self._shape, self._dtype = w_u, inputs, shape, dtype
        # The columns that were asked for last, with their matrix, which is converted once for all variants.
        self._last: tuple[slice, Matrix] | None = None

    def __call__(self, variants: slice, columns: slice) -> Tensor:
        """Returns the changes of logits of some variants and columns: [v, N, B], in memory of its own."""
        positions = self._shape[1]
        some = slice(variants.start * positions, min(variants.stop, self._shape[0]) * positions)
        w = self._matrix(columns)
        if isinstance(self._inputs, RoundedInput):
            inputs = self._inputs.rows(some)
            product = inputs.times(w) if isinstance(w, Quantized) else matmul(inputs.x, w)
        else:
            assert isinstance(w, Tensor)
            product = matmul(self._inputs[some], w).to(self._dtype)
        return product.view(-1, positions, product.shape[-1])

    def values(self) -> Tensor:
        """Returns the changes of the input as they are multiplied, after rounding: [V, N, D].

        That is after `Quantized.inputs`, as for `QuantizedLinears.probability_weighted_columns`.
        """
        inputs = self._inputs.values() if isinstance(self._inputs, RoundedInput) else self._inputs
        return inputs.view(*self._shape)

    def _matrix(self, columns: slice) -> Matrix:
        """Returns some columns of the unembedding, as floats if the inputs are not rounded to 8 bits."""
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
    """The linear maps of patched passes under a precision policy.

    Args:
        weights: of the model, in full precision, for what is promoted.
        quantized: the same model's matrices under the policy.
    """

    def __init__(self, weights: SparseWeights, quantized: QuantizedModel) -> None:
        self._weights, self._layers, self._w_u = weights, quantized.layers, quantized.w_u
        self._policy = quantized.policy
        # What inputs of the unembedding are multiplied by before they are rounded, [D].
        self._w_u_inputs: Tensor | None = None
        if isinstance(self._w_u, Quantized):
            self._w_u_inputs, self._w_u = self._w_u.inputs, self._w_u.without_inputs()

    @property
    def promotes(self) -> bool:
        """Whether passes run heads in full precision."""
        return self._policy.promotes

    def promotion(self, graph: Graph, removed: Sequence[Sequence[int]]) -> Promotion | None:
        """Returns `promotion_of` these passes; None under a policy that promotes no heads."""
        return promotion_of(graph, removed) if self._policy.promotes else None

    def project(self, receiver: int, dx: Tensor, tokens: tuple[Tensor, Tensor] | None) -> Tensor:
        """Multiplies a change of a receiver's input with its matrix: [..., D] to [..., O].

        Args:
            receiver: q, k, v or MLP receiver.
            dx: the change.
            tokens: indices of tokens that run in full precision, and of the others; None if all use the
                policy's matrix.
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
        """Multiplies a change of hidden units with W_out: [..., M] to [..., D]."""
        w = self._layers[layer].w_out
        assert w is not None
        return self._linear(change, w)

    def unembedding(self, dn: Tensor) -> QuantizedUnembedding:
        """Prepares changes of the unembedding's input, [V, N, D], to be multiplied with it."""
        flat = dn.flatten(0, 1)
        if self._w_u_inputs is not None:
            flat = flat * self._w_u_inputs
        if isinstance(self._w_u, Tensor):
            return QuantizedUnembedding(self._w_u, flat.to(self._w_u.dtype), dn.shape, dn.dtype)
        inputs = self._policy.inputs_of(self._w_u.data.numel())
        operand = RoundedInput.of(flat.contiguous(), inputs, self._policy.terms)
        return QuantizedUnembedding(self._w_u, operand, dn.shape, dn.dtype)

    def probability_weighted_columns(self, p: Tensor) -> Tensor | None:
        """Returns ``p @ w_u.T``, the mean of the unembedding's columns under probabilities: [N, D].

        Its inner product with `QuantizedUnembedding.values` is the mean change of logits under p. None for
        formats in which that does not hold, because products are less precise than float32.

        Args:
            p: the probabilities, [N, U].
        """
        w = self._w_u
        if not isinstance(w, Quantized) or w.data.dtype != torch.int8:
            return None
        total = p.new_zeros(len(p), w.data.shape[0])
        for first in range(0, p.shape[-1], WEIGHTED_COLUMNS):
            outputs = slice(first, first + WEIGHTED_COLUMNS)
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
    """Returns the indices of the tokens of flagged variants, and of the others: int64; None without flags.

    Args:
        flags: per variant; None if no variant is flagged.
        sizes: tokens of each variant.
        device: of the indices.
    """
    if flags is None:
        return None
    each = np.repeat(flags, sizes)
    return as_tensor(np.flatnonzero(each), device), as_tensor(np.flatnonzero(~each), device)
