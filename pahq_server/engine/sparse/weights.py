"""The weights of a folded model by receiver and head, products of them, and activation functions.

Shape suffixes: D d_model, K d_head, O outputs of a receiver (d_head, or hidden units of an MLP), M hidden
units.
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

# How many values activation functions work on at once: their 512 KiB stay in a core's cache.
CACHED = 1 << 17


def gelu(x: Tensor) -> Tensor:
    """GELU, x Phi(x), of any shape, with the same bits wherever an element stands.

    torch's fused SiLU and GELU round the last few elements of a tensor, which do not fill a vector register,
    differently from the rest. `gelu`, `silu` and `gelu_tanh` are made of operations that do not.
    """
    return torch.erf(x * math.sqrt(0.5)).add_(1).mul_(0.5).mul_(x)


def silu(x: Tensor) -> Tensor:
    """SiLU, x sigmoid(x), of any shape; see `gelu`."""
    return _in_parts(x, lambda part: torch.neg(part).exp_().add_(1))


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh approximation, x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), of any shape; see `gelu`."""
    scale = 2 * math.sqrt(2 / math.pi)

    def denominator(part: Tensor) -> Tensor:
        return torch.square(part).mul_(-0.044715 * scale).sub_(scale).mul_(part).exp_().add_(1)

    return _in_parts(x, denominator)


def _in_parts(x: Tensor, denominator: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns x / denominator(x), computed a few values at a time so that they stay in the cache."""
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

# A policy's W_O of a head with up to so many weights is kept as floats among these products.
KEPT_HEAD_WEIGHT = 1 << 13

# For each of two matrices that are multiplied: whether it is that of the precision policy (True) or the one
# in full precision (False).
PairPrecision = tuple[bool, bool]
BOTH_EXACT: PairPrecision = (False, False)
BOTH_QUANTIZED: PairPrecision = (True, True)


class WeightProducts:
    """Products of one model's weights that are kept for reuse by all graphs and precision policies.

    The least recently used products are dropped where they exceed `COMPOSED_BYTES` together. The bound is the
    model's and does not grow with the policies that jobs ask for.
    """

    def __init__(self) -> None:
        # By layer: W_gate and W_in of a gated MLP side by side.
        self.gated: dict[int, Tensor] = {}
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._bytes = 0
        self._key_spaces: dict[Graph, int] = {}
        self._numbers = itertools.count()

    @property
    def nbytes(self) -> int:
        """Bytes of the products that are kept."""
        return self._bytes

    def key_space(self, graph: Graph) -> int:
        """Returns the number in keys of full-precision products, which all policies share under a graph."""
        if graph not in self._key_spaces:
            self._key_spaces[graph] = next(self._numbers)
        return self._key_spaces[graph]

    def new_key_space(self) -> int:
        """Returns a new number for keys of products that are not shared."""
        return next(self._numbers)

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Returns the product under a key, computed if it is not kept."""
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
        graph: tells which receivers there are.
        quantized_layers: the layers as a precision policy rounds them, for patched passes; None if these run
            in full precision.
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
        # Full-precision products are shared by all policies, products of rounded matrices by none.
        self._space, self._quantized_space = self._products.key_space(graph), self._products.new_key_space()
        # If not, weights are read from files whenever they are used, and nothing large is kept here.
        self._in_memory = isinstance(model.weights, Weights)

    @property
    def is_quantized(self) -> bool:
        """Whether there are matrices of a precision policy beside those in full precision."""
        return self._quantized is not None

    def receiver_weight(self, receiver: int, quantized: bool = False) -> Tensor:
        """Returns the matrix from a receiver's normed input to its value before the bias: [D, O].

        Args:
            receiver: q, k, v or MLP receiver.
            quantized: whether the policy's matrix is wanted, as floats.
        """
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
        # Each is read once, because it may come from a file.
        w_in = weights.w_in
        assert w_in is not None
        if not self.arch.gated:
            return w_in
        w_gate = weights.w_gate
        assert w_gate is not None
        # A gated MLP computes its gate and its hidden units in one product.
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
        """Returns W_out of an MLP: [M, D]."""
        w_out = self.weights.layers[layer].w_out
        assert w_out is not None
        return w_out

    @property
    def mlp_width(self) -> int:
        """Outputs of an MLP's `receiver_weight`: its hidden units, or twice as many if it is gated."""
        return self.arch.d_mlp * (2 if self.arch.gated else 1)

    def bias(self, receiver: int) -> Tensor:
        """Returns the bias of a receiver's value: [O]."""
        kind, layer, unit = self.graph.receiver(receiver)
        weights = self.weights.layers[layer]
        if kind == "q":
            return weights.b_q[unit]
        if kind in ("k", "v"):
            return (weights.b_k if kind == "k" else weights.b_v)[self.kv_head(unit)]
        assert weights.b_in is not None
        return weights.b_in if weights.b_gate is None else torch.cat([weights.b_gate, weights.b_in])

    def head_output_weight(self, head: int, quantized: bool = False) -> Tensor:
        """Returns W_O of a head, by sender index: [K, D]; the policy's, as floats, if ``quantized``."""
        layer, unit = divmod(head - 1, self.graph.senders_per_layer)
        if quantized:
            assert self._quantized is not None
            stack = self._quantized[layer].w_o
            if self.arch.d_head * self.arch.d_model > KEPT_HEAD_WEIGHT:
                return self._floats(stack[unit])
            # Converting a small matrix to floats takes as long as multiplying with it.
            return self._product((head, -1, BOTH_QUANTIZED), lambda: self._floats(stack[unit]))
        return self.weights.layers[layer].w_o[unit]

    def layer_output_weight(self, layer: int) -> Tensor:
        """Returns the policy's W_O of all heads of a layer, as floats: [H, K, D]."""
        assert self._quantized is not None
        return self._floats(self._quantized[layer].w_o)

    @property
    def copies_ahead(self) -> bool:
        """Whether heads can be copied to the device before they are used, while it computes."""
        return self.weights.copies_ahead

    def read_ahead(self, receivers: Iterable[int]) -> None:
        """Announces that the heads of these receivers will be used in full precision next, in this order."""
        heads = dict.fromkeys(head for receiver in receivers for head in self.graph.heads_behind(receiver))
        self.weights.read_ahead(divmod(head - 1, self.graph.senders_per_layer) for head in heads)

    def composed(self, head: int, receiver: int, precision: PairPrecision = BOTH_EXACT) -> Tensor:
        """Returns W_O of a head times the matrix of a receiver, [K, O].

        The product maps the head's z straight to the receiver's projection. It is computed in full precision,
        whatever its factors are.
        """
        return self._product(
            (head, receiver, precision),
            lambda: matmul(
                self.head_output_weight(head, precision[0]), self.receiver_weight(receiver, precision[1])
            ),
        )

    def overlap(self, first: int, second: int, precision: PairPrecision = BOTH_EXACT) -> Tensor:
        """Returns the inner products of the rows of two heads' W_O, W_O W_O'^T: [K, K]."""
        return self._product(
            (-1 - first, second, precision),
            lambda: (
                self.head_output_weight(first, precision[0]) @ self.head_output_weight(second, precision[1]).T
            ),
        )

    def receiver_value(self, receiver: int, u: Tensor, square: Tensor, positions: Tensor | None) -> Tensor:
        """Computes a receiver's value from the projection and the squared norm of its input.

        The value is a query, key or value, or the hidden units of an MLP.

        Args:
            receiver: q, k, v or MLP receiver.
            u: the input before its norm, times `receiver_weight`: [..., N, O].
            square: squared norm of the input, [..., N].
            positions: token positions for rotary embeddings, [..., N]; None for models without.
        """
        value = torch.addcmul(self.bias(receiver), u, self.inverse_norm(square))
        kind, layer, _ = self.graph.receiver(receiver)
        if kind == "mlp":
            return self._hidden(value)
        if kind == "v":
            return value
        value = self._head_normed(layer, kind, value)
        if self.weights.rotary is None:
            return value
        assert positions is not None
        cos, sin = self._rotation(positions)
        return transformer.apply_rotation(value, cos, sin)

    def normed(self, x: Tensor) -> Tensor:
        """Applies the model's norm, without weights: [..., D]."""
        return x * self.inverse_norm(sums(x.square()))

    def inverse_norm(self, square: Tensor) -> Tensor:
        """Returns the factor of the norm, [..., 1], for inputs with these squared norms, [...].

        1 for models without norm.
        """
        if self.arch.norm is None:
            return square.new_ones(())
        return self._inverse_root(square, self.arch.d_model)

    def _inverse_root(self, square: Tensor, count: int) -> Tensor:
        return (square / count + self.arch.eps).rsqrt_()[..., None]

    def _head_normed(self, layer: int, kind: ReceiverKind, value: Tensor) -> Tensor:
        """Applies the norm that some models put on queries and keys: [..., K]."""
        weights = self.weights.layers[layer]
        weight = weights.q_norm if kind == "q" else weights.k_norm
        if weight is None:
            return value
        square = inner(value, value)
        return value * self._inverse_root(square, self.arch.d_head) * weight

    def _hidden(self, value: Tensor) -> Tensor:
        """Applies the activation function, and the gate if there is one: hidden units of an MLP, [..., M]."""
        activation = ACTIVATIONS[self.arch.activation]
        if not self.arch.gated:
            return activation(value)
        gate, up = value.chunk(2, dim=-1)
        return activation(gate) * up

    def kv_head(self, unit: int) -> int:
        """Returns the key/value head of a k or v receiver."""
        return unit * self.graph.kv_heads // self.graph.kv_units

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosine and sine of the rotation at positions [..., N]: [..., N, dims] each."""
        rotary = self.weights.rotary
        assert rotary is not None
        cos, sin = transformer.rotation(rotary, positions.reshape(-1))
        shape = (*positions.shape, -1)
        return cos.to(self.dtype).view(shape), sin.to(self.dtype).view(shape)

    def _product(self, key: tuple[int, int, PairPrecision], make: Callable[[], Tensor]) -> Tensor:
        space = self._space if key[2] == BOTH_EXACT else self._quantized_space
        return self._products.get((space, key), make)
