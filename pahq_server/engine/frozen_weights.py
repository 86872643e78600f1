"""The frozen weights that node pruning and texts run with, as a precision policy rounds them.

Here a policy rounds weights only, to the formats that its name stands for; activations stay in the model's
own dtype. So "pahq-int8" and "pahq-int8-weight" are the same. Rounded weights are converted to floats one
layer at a time.
"""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from pahq_server.engine.backends import EngineState
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.engine.sparse.unpatched import embedded
from pahq_server.models.architecture import LayerWeights, Model
from pahq_server.models.folding import fold
from pahq_server.models.streaming import ResidentModel, StreamedLayers
from pahq_server.precision.linear import linear
from pahq_server.precision.policy import Format
from pahq_server.precision.products import matmul
from pahq_server.precision.quantized import Matrix, Quantized, to_floats

# Columns of a rounded unembedding that are converted to floats at a time.
UNEMBEDDING_COLUMNS = 4096


class FrozenWeights:
    """The weights of one model.

    Args:
        model: folded; its weights may be read from files.
        quantized: the matrices of a precision policy, which stand for the model's; None for full precision.
    """

    def __init__(self, model: Model, quantized: QuantizedModel | None = None) -> None:
        self._model, self._quantized = model, quantized
        self.arch, self.dtype, self.device = model.architecture, model.dtype, model.device
        self.rotary = model.weights.rotary
        self.in_memory = not isinstance(model.weights.layers, StreamedLayers)

    @classmethod
    def of(cls, state: EngineState, rounded: bool = True) -> FrozenWeights:
        """Returns the weights of a state's model.

        Args:
            state: of the engine.
            rounded: whether its precision policy rounds them; else they are in full precision.
        """
        loaded = state.loaded
        # A model of which only rounded weights are in memory looks like a folded one.
        model = loaded.model if isinstance(loaded, ResidentModel) else fold(loaded.model)
        return cls(model, state.quantized() if rounded else None)

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

    def embedded_tokens(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Returns the residual stream before the first layer: [N, D] for tokens and their positions [N]."""
        weights = self._model.weights
        stream = weights.w_e[tokens]
        return stream if weights.w_pos is None else stream + weights.w_pos[positions]

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
