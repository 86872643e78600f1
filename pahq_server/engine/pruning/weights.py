"""The frozen weights of a circuit's passes, as a precision policy rounds them, and products with them.

A policy of node pruning rounds weights only, to the formats that its name stands for; activations stay in the
model's own dtype. So "pahq-int8" and "pahq-int8-weight" are the same here. Rounded weights are converted to
floats one layer at a time.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.engine.sparse.unpatched import embedded
from pahq_server.models.architecture import LayerWeights, Model
from pahq_server.models.streaming import StreamedLayers
from pahq_server.precision.linear import linear
from pahq_server.precision.policy import Format
from pahq_server.precision.products import matmul
from pahq_server.precision.quantized import Matrix, Quantized, to_floats

# Columns of a rounded unembedding that are converted to floats at a time.
UNEMBEDDING_COLUMNS = 4096


class _FrozenProduct(torch.autograd.Function):
    """``x @ w`` whose backward pass gives the gradient at ``x`` only, and keeps nothing but ``w`` for it."""

    @staticmethod
    def forward(context: Any, x: Tensor, w: Tensor) -> Tensor:
        context.w = w
        return matmul(x, _joined(w))

    @staticmethod
    def backward(context: Any, d: Tensor) -> tuple[Tensor, None]:
        return matmul(d, _joined(context.w).T), None


def product(x: Tensor, w: Tensor) -> Tensor:
    """Computes ``x @ w`` for frozen weights: [..., I] to [..., O].

    Args:
        x: may be part of a graph of autograd.
        w: a matrix [I, O], or a stack [H, I, O] of which the outputs are put side by side: [..., H * O].
    """
    y: Tensor = _FrozenProduct.apply(x, w)  # type: ignore[no-untyped-call, unused-ignore]
    return y


def _joined(w: Tensor) -> Tensor:
    """Returns a stack of matrices [H, I, O] as one, [I, H * O]: a copy, stored output by output."""
    return w if w.dim() == 2 else w.transpose(1, 2).flatten(0, 1).T


class FrozenWeights:
    """The weights that circuits of one model run with.

    Args:
        model: folded; its weights may be read from files.
        quantized: the matrices of a precision policy, which stand for the model's; None for full precision.
    """

    def __init__(self, model: Model, quantized: QuantizedModel | None = None) -> None:
        self._model, self._quantized = model, quantized
        self.arch, self.dtype, self.device = model.architecture, model.dtype, model.device
        self.rotary = model.weights.rotary
        self.in_memory = not isinstance(model.weights.layers, StreamedLayers)

    def layer(self, index: int) -> LayerWeights:
        """Returns a layer in floats: rounded weights are converted, and read from files if they are there."""
        if self._quantized is not None:
            layer = self._quantized.layers[index]
            kept = {field.name: getattr(layer, field.name) for field in fields(layer)}
            return LayerWeights(
                **{
                    name: to_floats(value, self.dtype)
                    if name.startswith("w_") and value is not None
                    else value
                    for name, value in kept.items()
                }
            )
        layers = self._model.weights.layers
        return layers.whole(index) if isinstance(layers, StreamedLayers) else layers[index]

    def embedded(self, token_ids: Tensor) -> Tensor:
        """Returns the residual stream before the first layer: [P, T, D] for tokens [P, T]."""
        return embedded(self._model, token_ids)

    def logits(self, x: Tensor) -> Tensor:
        """Multiplies the normed residual stream, [N, D], with the unembedding: [N, U]."""
        w = self._unembedding()
        y = linear(x, w, Format.FP32) if isinstance(w, Quantized) else matmul(x, w.to(x.dtype))
        b = self._model.weights.b_u
        return y if b is None else y.add_(b)

    def logits_gradient(self, d: Tensor) -> Tensor:
        """Takes a gradient at logits, [N, U], to one at the normed residual stream, [N, D]."""
        w = self._unembedding()
        if not isinstance(w, Quantized):
            return matmul(d, w.to(d.dtype).T)
        total = d.new_zeros(len(d), w.data.shape[0])
        for first in range(0, d.shape[-1], UNEMBEDDING_COLUMNS):
            columns = slice(first, min(first + UNEMBEDDING_COLUMNS, d.shape[-1]))
            part = to_floats(w.outputs(columns.start, columns.stop), d.dtype)
            total += matmul(d[:, columns], part.T)
        return total

    def _unembedding(self) -> Matrix:
        return self._model.weights.w_u if self._quantized is None else self._quantized.w_u
