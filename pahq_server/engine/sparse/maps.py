"""The linear maps of rows under a policy: what is multiplied with what a row changes.

Bases are in full precision whatever the policy. A row changes inputs of linear maps, and only these
differences are multiplied with rounded weights: dx W8 for what a query, key or value reads and y W_O8 for
what a head writes, Q(dx) W8 and Q(h' - h) W8 for what an MLP reads and writes, and the same for the
unembedding. Norms, attention and activations are exact, so an error is in proportion to what a row changes,
and what does not change has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.graph import Graph
from pahq_server.engine.sparse.promotion import Promotion, promotion_of
from pahq_server.engine.sparse.variants import Index
from pahq_server.engine.sparse.weights import SparseWeights
from pahq_server.models.architecture import Model
from pahq_server.models.resident import QuantizedLayer
from pahq_server.models.rounding import round_layers, round_unembedding
from pahq_server.precision.linear import linear
from pahq_server.precision.policy import Format, Policy
from pahq_server.precision.products import matmul
from pahq_server.precision.quantized import Matrix, Quantized


@dataclass(frozen=True)
class Rounded:
    """A model's matrices under a policy.

    Args:
        policy: what is rounded and promoted.
        layers: rounded.
        w_u: rounded unembedding, [D, U].
    """

    policy: Policy
    layers: Sequence[QuantizedLayer]
    w_u: Matrix

    @classmethod
    def of(cls, model: Model, policy: Policy) -> Rounded | None:
        """A folded model's; None for ``fp32``, which takes the model as it is."""
        if policy.name == "fp32":
            return None
        return cls(policy, round_layers(model, policy), round_unembedding(model, policy))


class Maps:
    """Linear maps of rows.

    Args:
        weights: of the model in full precision, for what is promoted.
        rounded: the same model's matrices.
    """

    def __init__(self, weights: SparseWeights, rounded: Rounded) -> None:
        self._weights, self._layers, self._w_u = weights, rounded.layers, rounded.w_u
        self._policy = rounded.policy

    def promotion(self, graph: Graph, removed: Sequence[Sequence[int]]) -> Promotion | None:
        return promotion_of(graph, removed) if self._policy.promotes else None

    def read(self, receiver: int, dx: Tensor, full: Tensor | None) -> Tensor:
        """A change of a receiver's input through its projection: [..., D] to [..., O].

        Args:
            receiver: q, k, v or MLP receiver.
            dx: the change.
            full: per token, whether it runs in full precision; None for none.
        """
        kind, layer, unit = self._weights.graph.receiver(receiver)
        weights = self._layers[layer]
        if kind == "mlp":
            assert weights.w_in is not None
            if weights.w_gate is None:
                return self._linear(dx, weights.w_in)
            return torch.cat([self._linear(dx, weights.w_gate), self._linear(dx, weights.w_in)], -1)
        if kind == "q":
            w = weights.w_q[unit]
        else:
            w = (weights.w_k if kind == "k" else weights.w_v)[self._weights.kv_head(unit)]
        return self._mixed(dx, w, lambda: self._weights.reads(receiver), full)

    def write(self, head: int, y: Tensor, full: Tensor | None) -> Tensor:
        """A change of a head's z through W_O: [..., K] to [..., D]; arguments as in `read`."""
        layer, unit = divmod(head - 1, self._weights.graph.senders_per_layer)
        w = self._layers[layer].w_o[unit]
        return self._mixed(y, w, lambda: self._weights.writes(head), full)

    def mlp_out(self, layer: int, change: Tensor) -> Tensor:
        """A change of hidden units through W_out: [..., M] to [..., D]."""
        w = self._layers[layer].w_out
        assert w is not None
        return self._linear(change, w)

    def unembed(self, dn: Tensor, columns: slice) -> Tensor:
        """A change of the unembedding's input, [..., D], to that of some logits."""
        w = self._w_u
        if isinstance(w, Quantized):
            return self._linear(dn, w.outputs(columns.start, columns.stop))
        return self._linear(dn, w[:, columns])

    def _linear(self, x: Tensor, w: Matrix) -> Tensor:
        if isinstance(w, Tensor):
            return linear(x.to(w.dtype), w, self._policy.inputs).to(x.dtype)
        return linear(x, w, self._policy.inputs, self._policy.terms)

    def _of_head(self, x: Tensor, w: Matrix) -> Tensor:
        """With inputs as they are."""
        return linear(x, w.to(x.dtype) if isinstance(w, Tensor) else w, Format.FP32)

    def _mixed(self, x: Tensor, w: Matrix, exact: Callable[[], Tensor], full: Tensor | None) -> Tensor:
        if full is None:
            return self._of_head(x, w)
        if full.all():
            return matmul(x, exact())
        flat = x.flatten(0, -2)
        promoted = matmul(flat[full], exact())
        out = promoted.new_empty(len(flat), promoted.shape[-1])
        out[full], out[~full] = promoted, self._of_head(flat[~full], w)
        return out.view(*x.shape[:-1], -1)


def by_token(flags: NDArray[np.bool_] | None, sizes: Index) -> Tensor | None:
    """Flags of variants with these sizes, for each of their tokens."""
    return None if flags is None else torch.from_numpy(np.repeat(flags, sizes))
