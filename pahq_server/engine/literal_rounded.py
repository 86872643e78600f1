"""The literal executor with rounded weights and rounded inputs of every linear map.

It serves two kinds of policies: round to nearest, and PAHQ as published (arXiv:2510.23264), where the head
under investigation is promoted, that is, runs in full precision while all else does not. The model is folded,
so its norms have no weights. The full model's logits, to which the metric compares, and what senders
contribute along missing edges are computed with no head promoted.

Shape suffixes: as in `literal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pahq_server.core.circuit import Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine.literal import LinearName, LiteralExecutor, matrix, product
from pahq_server.models.architecture import Model, Weights
from pahq_server.models.folding import ATTENTION, fold
from pahq_server.precision.policy import Format, Policy
from pahq_server.precision.quantized import LARGEST, SECOND_TERM_FACTOR, quantize, rounded

# Matrices in full precision: (linear map, layer, receiver or head within the layer).
Promoted = frozenset[tuple[str, int, int]]
NO_PROMOTION: Promoted = frozenset()


class RoundedExecutor(LiteralExecutor):
    """Scores circuits of one job under a policy that rounds activations.

    Args:
        rounded: the model; its policy's ``operand`` is "activations".
        graph, task, metric, ablation: as for `LiteralExecutor`.
    """

    def __init__(
        self, rounded: RoundedModel, graph: Graph, task: TokenTask, metric: str, ablation: str
    ) -> None:
        self._policy, self._linears, self._promoted = rounded.policy, rounded.linears, NO_PROMOTION
        super().__init__(rounded.model, graph, task, metric, ablation)

    def score(self, passes: Sequence[PatchedPass]) -> list[float]:
        """Returns the metric of every pass, in order, each with its own heads promoted.

        Raises NonFiniteMetricError.
        """
        return [self.measure(each.circuit, each.promoted_receiver) for each in passes]

    def measure(self, circuit: Circuit, promoted_receiver: int | None = None) -> float:
        """Returns the metric of a circuit. Raises NonFiniteMetricError.

        Args:
            circuit: to measure.
            promoted_receiver: the receiver whose heads run in full precision; None for none.
        """
        self._promoted = promoted_linears(self.graph, self._policy, promoted_receiver)
        try:
            return super().measure(circuit)
        finally:
            self._promoted = NO_PROMOTION

    def _key(self, circuit: Circuit) -> bytes:
        return circuit.key + repr(sorted(self._promoted)).encode()

    def _first_patched_layer(self, circuit: Circuit) -> int:
        """Returns the layer of the first missing edge or, if it comes before, of the first promoted map.

        Promoted maps give other values than in the clean run, even where no edge is missing.
        """
        return min([super()._first_patched_layer(circuit), *(layer for _, layer, _ in self._promoted)])

    def _product(self, x: Tensor, name: LinearName, layer: int) -> Tensor:
        return self._linears.product(x, name, layer, self._promoted)


class RoundedModel:
    """A model with rounded weights, shared by all jobs under one policy.

    Args:
        model: in full precision.
        policy: says what is rounded to what.
    """

    def __init__(self, model: Model, policy: Policy) -> None:
        # Policies that round differences run on folded models only, so scores compare best if this one does.
        model = fold(model)
        self.policy, self.linears = policy, RoundedLinears(model.weights, policy)
        self.model = _with_rounded_embedding(model, policy.embeddings)


class RoundedLinears:
    """Linear maps with rounded weights and inputs, some of them in full precision instead.

    Args:
        weights: of the model, in full precision.
        policy: says what is rounded to what.
    """

    def __init__(self, weights: Weights, policy: Policy) -> None:
        self._weights, self._policy = weights, policy
        self._rounded: dict[tuple[LinearName, int], Tensor] = {}
        for layer, piece in enumerate(weights.layers):
            self._round(("q", "k", "v", "o"), layer, policy.heads)
            if piece.w_in is not None:
                self._round(("in", "out"), layer, policy.mlps)
            if piece.w_gate is not None:
                self._round(("gate",), layer, policy.mlps)
        self._round(("u",), len(weights.layers), policy.embeddings)

    def _round(self, names: tuple[LinearName, ...], layer: int, form: Format) -> None:
        for name in names:
            self._rounded[name, layer] = rounded_weights(matrix(self._weights, name, layer), form)

    def product(
        self, x: Tensor, name: LinearName, layer: int, promoted: Promoted, exact_inputs: bool = False
    ) -> Tensor:
        """Computes `literal.product` in low precision, but for promoted matrices in full precision.

        Args:
            x: inputs, [..., I].
            name, layer: of the linear map.
            promoted: matrices that are used in full precision.
            exact_inputs: whether only weights are rounded, not inputs.
        """
        rounded, policy = self._rounded[name, layer], self._policy
        form = policy.head_inputs if name in ATTENTION else policy.inputs_of(rounded.numel())
        form = Format.FP32 if exact_inputs else form
        y = product(rounded_inputs(x, form, policy.terms), rounded)
        exact = [unit for kind, depth, unit in promoted if (kind, depth) == (name, layer)]
        if exact:
            y[exact] = product(x, matrix(self._weights, name, layer))[exact]
        return y


def promoted_linears(graph: Graph, policy: Policy, receiver: int | None) -> Promoted:
    """Returns the matrices that passes use in full precision.

    These are W_Q, W_K, W_V and W_O of the heads that a q, k or v receiver feeds: of all heads of a group for
    a receiver of the group.

    Args:
        graph: of the passes.
        policy: under which they run; some policies promote nothing.
        receiver: under investigation; None for none.
    """
    if receiver is None or not policy.promotes:
        return NO_PROMOTION
    layer = graph.receiver(receiver).layer
    promoted: set[tuple[str, int, int]] = set()
    for head in graph.heads_behind(receiver):
        promoted |= {graph.receiver(r) for r in graph.head_receivers(head)}
        promoted.add(("o", layer, head - graph.head(layer, 0)))
    return frozenset(promoted)


def rounded_weights(w: Tensor, form: Format) -> Tensor:
    """Rounds matrices [..., I, O]; 8-bit formats have one scale per output."""
    if form is Format.FP32:
        return w
    if form is Format.BF16:
        return w.to(torch.bfloat16).to(w.dtype)
    quantized = quantize(w, form)
    # Not `to_floats` in float32, whose products are rounded.
    return quantized.data.to(w.dtype) * quantized.scale.to(w.dtype)


def rounded_inputs(x: Tensor, form: Format, terms: int = 1) -> Tensor:
    """Rounds inputs [..., I]; 8-bit formats have one scale per token, for all terms."""
    if form is Format.FP32:
        return x
    if form is Format.BF16:
        return x.to(torch.bfloat16).to(x.dtype)
    scale = x.abs().amax(-1, keepdim=True) / LARGEST[form]
    first = rounded(x, scale, form).to(x.dtype) * scale
    if terms == 1:
        return first
    finer = scale / SECOND_TERM_FACTOR[form]
    return first + rounded(x - first, finer, form).to(x.dtype) * finer


def _with_rounded_embedding(model: Model, form: Format) -> Model:
    """Rounds the embeddings of tokens and positions, which are linear maps of one-hot vectors."""
    weights = model.weights
    w_pos = None if weights.w_pos is None else rounded_weights(weights.w_pos, form)
    return replace(model, weights=replace(weights, w_e=rounded_weights(weights.w_e, form), w_pos=w_pos))
