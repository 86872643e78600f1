"""The model's pass over packed texts, which stops at each layer's neurons.

Letters in shapes: N packed tokens, D d_model, M hidden units of an MLP, H query heads, G key/value heads, K
d_head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pahq_server.engine import transformer
from pahq_server.engine.activations.texts import PackedTexts
from pahq_server.engine.frozen_weights import FrozenWeights
from pahq_server.engine.sparse.weights import ACTIVATIONS
from pahq_server.models.architecture import LayerWeights
from pahq_server.precision.products import matmul

# Rotations are computed for so many positions at a time, so that an angle has one place in a vector register.
ROTATION_STEP = 64


@dataclass
class _BegunLayer:
    """A layer whose MLP has not been computed beyond its neurons.

    Args:
        weights: of the layer.
        stream: the residual stream after attention, [N, D].
        mlp_in: what the MLP reads, normed, [N, D]; None for models without MLPs, as is ``neurons``.
        neurons: activations, [N, M].
    """

    weights: LayerWeights
    stream: Tensor
    mlp_in: Tensor | None = None
    neurons: Tensor | None = None


class TextRun:
    """A folded model's pass over texts. `neurons` and `finish_layer` take it from layer to layer.

    Args:
        weights: of the model.
        texts: what it reads.

    Attributes:
        layers: how many layers have been finished.
        stream: the residual stream after these, [N, D]: before the first layer the embedding. In models with
            layer norms, folding takes its mean over features away, which the model itself never reads.
    """

    def __init__(self, weights: FrozenWeights, texts: PackedTexts) -> None:
        self._weights, self._arch, self._texts = weights, weights.arch, texts
        self._begun: _BegunLayer | None = None
        self.layers = 0
        self.stream = weights.embedded_tokens(texts.tokens, texts.positions)

    def neurons(self) -> Tensor:
        """Returns the activations of the next layer's neurons, [N, M], of a model that has MLPs.

        What is changed in place goes into the rest of the layer.
        """
        self._begun = self._begun or self._begin()
        assert self._begun.neurons is not None
        return self._begun.neurons

    def finish_layer(self) -> None:
        """Computes the next layer, or what is left of it."""
        begun, self._begun = self._begun or self._begin(), None
        self.stream = begun.stream
        hidden, weights = begun.neurons, begun.weights
        if hidden is not None:
            assert weights.w_in is not None
            assert weights.b_in is not None
            assert weights.w_out is not None
            assert weights.b_out is not None
            if weights.w_gate is not None:
                assert begun.mlp_in is not None
                hidden = matmul(begun.mlp_in, weights.w_in).add_(weights.b_in).mul_(hidden)
            self.stream += matmul(hidden, weights.w_out).add_(weights.b_out)
        self.layers += 1

    def logits(self, rows: Tensor) -> Tensor:
        """Returns the logits at some of the packed tokens, [tokens, output vocabulary], after all layers."""
        return self._weights.logits(transformer.norm(self._arch, self.stream[rows], None, None))

    def _begin(self) -> _BegunLayer:
        arch, before, weights = self._arch, self.stream, self._weights.layer(self.layers)
        z = self._texts.attention(self._qkv(weights), arch.windows[self.layers])
        stream = matmul(z, weights.w_o.flatten(0, 1)).add_(weights.b_o).add_(before)
        if not arch.d_mlp:
            return _BegunLayer(weights, stream)
        x = transformer.norm(arch, before if arch.parallel else stream, None, None)
        # A gated MLP's neurons are those of its gate.
        w, b = (weights.w_in, weights.b_in) if weights.w_gate is None else (weights.w_gate, weights.b_gate)
        assert w is not None
        assert b is not None
        return _BegunLayer(weights, stream, x, ACTIVATIONS[arch.activation](matmul(x, w).add_(b)))

    def _qkv(self, weights: LayerWeights) -> Tensor:
        """Returns queries, keys and values of a layer side by side: [N, (H + 2 G) K]."""
        arch = self._arch
        x = transformer.norm(arch, self.stream, None, None)
        qkv = matmul(x, _side_by_side(weights.w_q, weights.w_k, weights.w_v))
        qkv += torch.cat([weights.b_q, weights.b_k, weights.b_v]).flatten()
        heads = qkv.unflatten(-1, (-1, arch.d_head))[:, : arch.heads + arch.kv_heads]
        q, k = heads.split([arch.heads, arch.kv_heads], 1)
        for x, norm in ((q, weights.q_norm), (k, weights.k_norm)):
            if norm is not None:
                x.copy_(transformer.head_norm(arch, x, norm))
        if self._rotation is not None:
            heads.copy_(transformer.apply_rotation(heads, *self._rotation))
        return qkv

    @cached_property
    def _rotation(self) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine at each packed token, [N, 1, rotated features]; None for models without."""
        if self._weights.rotary is None:
            return None
        positions = -(-self._texts.longest // ROTATION_STEP) * ROTATION_STEP
        tables = transformer.rotation(
            self._weights.rotary, torch.arange(positions, device=self._weights.device)
        )
        cos, sin = (table.to(self._weights.dtype)[self._texts.positions, None] for table in tables)
        return cos, sin


def _side_by_side(*stacks: Tensor) -> Tensor:
    """Returns stacks of matrices [.., D, K] as one matrix [D, all outputs], stored output by output."""
    outputs = sum(len(w) * w.shape[-1] for w in stacks)
    joined, first = stacks[0].new_empty(outputs, stacks[0].shape[1]), 0
    for w in stacks:
        last = first + len(w) * w.shape[-1]
        joined[first:last].view(len(w), w.shape[-1], -1).copy_(w.transpose(1, 2))
        first = last
    return joined.T
