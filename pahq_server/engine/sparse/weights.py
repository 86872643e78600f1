"""Activations whose every element has the same bits wherever it stands in a tensor.

torch's fused SiLU and GELU round the last few elements of a tensor, which do not fill a vector
register, in another way than the rest. These are made of operations that do not (a test holds this).


A folded model in the form the sweep wants: one matrix per receiver and per head, and their products.

Shape suffixes: D d_model, K d_head, O width of a receiver (d_head, or hidden units of an MLP).
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pahq_server.core.graph import Graph, ReceiverKind
from pahq_server.engine import transformer
from pahq_server.models.architecture import Activation, Model, Weights
from pahq_server.models.resident import QuantizedLayer
from pahq_server.precision.products import inner, matmul, sums
from pahq_server.precision.quantized import Matrix, to_floats

# Values that are worked on at once: 512 KiB of them stay in a core's cache.
CACHED = 1 << 17


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), [...]."""
    return torch.erf(x * math.sqrt(0.5)).add_(1).mul_(0.5).mul_(x)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), [...]."""
    return _in_parts(x, lambda part: torch.neg(part).exp_().add_(1))


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, [...]: x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))."""
    scale = 2 * math.sqrt(2 / math.pi)

    def denominator(part: Tensor) -> Tensor:
        return torch.square(part).mul_(-0.044715 * scale).sub_(scale).mul_(part).exp_().add_(1)

    return _in_parts(x, denominator)


def _in_parts(x: Tensor, denominator: Callable[[Tensor], Tensor]) -> Tensor:
    """x / denominator(x), a few values at a time so that they stay in the cache."""
    if not x.is_cpu:
        return x / denominator(x)
    out = torch.empty_like(x)
    for part, result in zip(x.flatten().split(CACHED), out.view(-1).split(CACHED), strict=True):
        torch.div(part, denominator(part), out=result)
    return out


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
}


# Bytes of products of one model's weights that are kept for reuse.
COMPOSED_BYTES = 64 * 1024 * 1024

# Numbers of a rounded W_O up to which it is kept as floats, too, among these products.
KEPT_HEAD_WEIGHT = 1 << 13

# Of two matrices that are multiplied, which are those of a policy instead of full precision.
PairPrecision = tuple[bool, bool]
BOTH_EXACT: PairPrecision = (False, False)
BOTH_QUANTIZED: PairPrecision = (True, True)


class WeightProducts:
    """What is made of one model's weights and kept for reuse, for all of its graphs and precision policies.

    Products of weights are dropped, the least recently used first, where they exceed `COMPOSED_BYTES`
    together: the bound is the model's and does not grow with the policies that jobs ask for.
    """

    def __init__(self) -> None:
        # Per layer, gate and input of a gated MLP side by side.
        self.gated: dict[int, Tensor] = {}
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0
        self._spaces: dict[Graph, int] = {}
        self._numbers = itertools.count()

    @property
    def nbytes(self) -> int:
        """Bytes of the products that are kept."""
        return self._bytes

    def space(self, graph: Graph) -> int:
        """A number for keys of products in full precision, which all policies share under a graph."""
        if graph not in self._spaces:
            self._spaces[graph] = next(self._numbers)
        return self._spaces[graph]

    def new_space(self) -> int:
        """A number for keys of products that nobody else shares."""
        return next(self._numbers)

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """The product under a key, made if it is not kept."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        found = self._kept[key] = make()
        self._bytes += found.nbytes
        while self._bytes > COMPOSED_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes
        return found


class SparseWeights:
    """Weights of one model under one graph.

    Args:
        model: with folded norms.
        graph: which receivers there are.
        rounded: the layers as a policy is_quantized them, for rows; None where rows are in full precision.
        products: of this model, shared with its other graphs and policies; None for its own.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        quantized_layers: Sequence[QuantizedLayer] | None = None,
        products: WeightProducts | None = None,
    ) -> None:
        self.arch, self.graph, self.weights = model.architecture, graph, model.weights
        self.dtype, self.device = model.dtype, model.device
        self._quantized = quantized_layers
        self._products = WeightProducts() if products is None else products
        # Products of rounded matrices are those of one policy.
        self._space, self._quantized_space = self._products.space(graph), self._products.new_space()
        # Or read from files when they are used: then nothing large is kept here.
        self._in_memory = isinstance(model.weights, Weights)

    @property
    def is_quantized(self) -> bool:
        """Whether there are rounded matrices: ``quantized`` ones."""
        return self._quantized is not None

    def receiver_weight(self, receiver: int, quantized: bool = False) -> Tensor:
        """Matrix from the normed input to the receiver's value before its bias: [D, O]."""
        kind, layer, unit = self.graph.receiver(receiver)
        if quantized:
            return self._quantized_receiver_weight(kind, layer, unit)
        weights = self.weights.layers[layer]
        if kind == "q":
            return weights.w_q[unit]
        if kind in ("k", "v"):
            return (weights.w_k if kind == "k" else weights.w_v)[self.kv_head(unit)]
        if layer in self._products.gated:
            return self._products.gated[layer]
        # Each once: it may be read from a file.
        w_in = weights.w_in
        assert w_in is not None
        if not self.arch.gated:
            return w_in
        w_gate = weights.w_gate
        assert w_gate is not None
        # A gated MLP reads its gate and its hidden units side by side.
        both = torch.cat([w_gate, w_in], 1)
        if self._in_memory:
            self._products.gated[layer] = both
        return both

    def _quantized_receiver_weight(self, kind: ReceiverKind, layer: int, unit: int) -> Tensor:
        assert self._quantized is not None
        weights = self._quantized[layer]
        if kind != "mlp":
            stack = {"q": weights.w_q, "k": weights.w_k, "v": weights.w_v}[kind]
            return self._floats(stack[unit if kind == "q" else self.kv_head(unit)])
        assert weights.w_in is not None
        if weights.w_gate is None:
            return self._floats(weights.w_in)
        return torch.cat([self._floats(weights.w_gate), self._floats(weights.w_in)], 1)

    def _floats(self, matrix: Matrix) -> Tensor:
        return to_floats(matrix, self.dtype)

    def mlp_out(self, layer: int) -> Tensor:
        """Matrix from an MLP's hidden units to its output: [M, D]."""
        w_out = self.weights.layers[layer].w_out
        assert w_out is not None
        return w_out

    @property
    def mlp_width(self) -> int:
        """Outputs of what an MLP reads its input with: of gate and hidden units where it is gated."""
        return self.arch.d_mlp * (2 if self.arch.gated else 1)

    def bias(self, receiver: int) -> Tensor:
        """Bias of a receiver's value: [O]."""
        kind, layer, unit = self.graph.receiver(receiver)
        weights = self.weights.layers[layer]
        if kind == "q":
            return weights.b_q[unit]
        if kind in ("k", "v"):
            return (weights.b_k if kind == "k" else weights.b_v)[self.kv_head(unit)]
        assert weights.b_in is not None
        return weights.b_in if weights.b_gate is None else torch.cat([weights.b_gate, weights.b_in])

    def head_output_weight(self, head: int, quantized: bool = False) -> Tensor:
        """W_O of a head, by sender index: [K, D]."""
        layer, unit = divmod(head - 1, self.graph.senders_per_layer)
        if quantized:
            assert self._quantized is not None
            stack = self._quantized[layer].w_o
            if self.arch.d_head * self.arch.d_model > KEPT_HEAD_WEIGHT:
                return self._floats(stack[unit])
            # To make floats of a small matrix takes as long as to multiply with it.
            return self._product((head, -1, BOTH_QUANTIZED), lambda: self._floats(stack[unit]))
        return self.weights.layers[layer].w_o[unit]

    def layer_output_weight(self, layer: int) -> Tensor:
        """QuantizedModel W_O of all heads of a layer: [H, K, D]."""
        assert self._quantized is not None
        return self._floats(self._quantized[layer].w_o)

    @property
    def copies_ahead(self) -> bool:
        """Whether heads can be read before they are used, beside what the device computes."""
        return self.weights.copies_ahead

    def read_ahead(self, receivers: Iterable[int]) -> None:
        """Tells whose heads will be used in full precision next, in this order."""
        heads = dict.fromkeys(head for receiver in receivers for head in self.graph.heads_behind(receiver))
        self.weights.read_ahead(divmod(head - 1, self.graph.senders_per_layer) for head in heads)

    def composed(self, head: int, receiver: int, precision: PairPrecision = BOTH_EXACT) -> Tensor:
        """From a head's z straight to a receiver: W_O times `reads`, [K, O].

        The product itself is in full precision, whatever its factors are.
        """
        return self._product(
            (head, receiver, precision),
            lambda: matmul(
                self.head_output_weight(head, precision[0]), self.receiver_weight(receiver, precision[1])
            ),
        )

    def overlap(self, first: int, second: int, precision: PairPrecision = BOTH_EXACT) -> Tensor:
        """Inner products of what two heads write: W_O W_O'^T, [K, K]."""
        return self._product(
            (-1 - first, second, precision),
            lambda: (
                self.head_output_weight(first, precision[0]) @ self.head_output_weight(second, precision[1]).T
            ),
        )

    def receiver_value(self, receiver: int, u: Tensor, square: Tensor, positions: Tensor | None) -> Tensor:
        """A receiver's value, or an MLP's hidden units, from its unnormed projection and sum of squares.

        Args:
            receiver: q, k, v or MLP receiver.
            u: input times `reads`, [..., N, O].
            square: sum of squares of the input, [..., N].
            positions: position numbers for rotary embeddings, [..., N]; without them None will do.
        """
        value = torch.addcmul(self.bias(receiver), u, self.inverse_norm(square))
        kind, layer, _ = self.graph.receiver(receiver)
        if kind == "mlp":
            return self._hidden(layer, value)
        if kind == "v":
            return value
        value = self._head_normed(layer, kind, value)
        if self.weights.rotary is None:
            return value
        assert positions is not None
        cos, sin = self._rotation(positions)
        return transformer.apply_rotation(value, cos, sin)

    def normed(self, x: Tensor) -> Tensor:
        """The input as receivers see it: [..., D]."""
        return x * self.inverse_norm(sums(x.square()))

    def inverse_norm(self, square: Tensor) -> Tensor:
        """What the input is multiplied by: [..., 1] for sums of squares [...]; 1 without norm."""
        if self.arch.norm is None:
            return square.new_ones(())
        return self._inverse_root(square, self.arch.d_model)

    def _inverse_root(self, square: Tensor, count: int) -> Tensor:
        return (square / count + self.arch.eps).rsqrt_()[..., None]

    def _head_normed(self, layer: int, kind: ReceiverKind, value: Tensor) -> Tensor:
        """Queries or keys of a head, [..., K], after the norm that some models put on them."""
        weights = self.weights.layers[layer]
        weight = weights.q_norm if kind == "q" else weights.k_norm
        if weight is None:
            return value
        square = inner(value, value)
        return value * self._inverse_root(square, self.arch.d_head) * weight

    def _hidden(self, layer: int, value: Tensor) -> Tensor:
        """Hidden units of an MLP before its second matrix."""
        activation = ACTIVATIONS[self.arch.activation]
        if not self.arch.gated:
            return activation(value)
        gate, up = value.chunk(2, dim=-1)
        return activation(gate) * up

    def kv_head(self, unit: int) -> int:
        """The key/value head of a k or v receiver."""
        return unit * self.graph.kv_heads // self.graph.kv_units

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        rotary = self.weights.rotary
        assert rotary is not None
        cos, sin = transformer.rotation(rotary, positions.reshape(-1))
        shape = (*positions.shape, -1)
        return cos.to(self.dtype).view(shape), sin.to(self.dtype).view(shape)

    def _product(self, key: tuple[int, int, PairPrecision], make: Callable[[], Tensor]) -> Tensor:
        space = self._space if key[2] == BOTH_EXACT else self._quantized_space
        return self._products.get((space, key), make)
