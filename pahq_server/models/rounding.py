"""A model in memory, rounded as a policy says."""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from pahq_server.models.architecture import LayerWeights, Model
from pahq_server.models.folding import ATTENTION
from pahq_server.models.resident import QuantizedLayer, rounded
from pahq_server.precision.policy import Format, Policy
from pahq_server.precision.quantized import Matrix


def round_layers(model: Model, policy: Policy) -> tuple[QuantizedLayer, ...]:
    """The layers of a folded model; what a policy does not round is shared with it."""
    return tuple(_round_layer(layer, policy) for layer in model.weights.layers)


def round_unembedding(model: Model, policy: Policy) -> Matrix:
    """``w_u``, [D, U]."""
    return _round(model.weights.w_u, policy.ends)


def _round_layer(layer: LayerWeights, policy: Policy) -> QuantizedLayer:
    kept = {field.name: getattr(layer, field.name) for field in fields(QuantizedLayer)}
    for name, value in kept.items():
        if name.startswith("w_") and value is not None:
            kept[name] = _round(value, policy.heads if name[2:] in ATTENTION else policy.mlps)
    return QuantizedLayer(**kept)


def _round(w: Tensor, form: Format) -> Matrix:
    return w if form is Format.FP32 else rounded(w, form)
