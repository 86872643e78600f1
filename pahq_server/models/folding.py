"""Rewriting a model so that norms are bare RMS norms or absent, and attention scores unscaled.

Layer norm is RMS norm of the centred input, scaled and shifted (arXiv:1607.06450). Centring can be done
by whatever writes to the residual stream, scale and shift by whatever reads it. The result computes the
same logits in real arithmetic; only its residual stream differs, by a constant per token. The factor on
attention scores goes into the query weights, or into the weight of the queries' own norm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor

from pahq_server.models.architecture import Architecture, LayerWeights, Model, Weights
from pahq_server.models.building import build

_Piece = TypeVar("_Piece", LayerWeights, Weights)


class Folding:
    """Keeps of a model what computes the same function without norm weights: a `building.Transform`."""

    def architecture(self, arch: Architecture) -> Architecture:
        norm = "rms" if arch.norm == "layer" else arch.norm
        return replace(arch, norm=norm, attention_scales=(1.0,) * arch.layers)

    def ends(self, arch: Architecture, ends: Weights) -> Weights:
        if arch.norm == "layer":
            ends = _centred(ends, "w_e", "w_pos")
        w_u, b_u = _fold(ends.w_u, ends.b_u, ends.norm_w, ends.norm_b)
        return replace(ends, w_u=_by_output(w_u), b_u=b_u, norm_w=None, norm_b=None)

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        if arch.norm == "layer":
            layer = _centred(layer, "w_o", "b_o", "w_out", "b_out")
        return _fold_layer(layer, arch.attention_scales[index])


FOLDING = Folding()


def fold(model: Model) -> Model:
    """The same function with ``norm`` None or ``rms``, no norm weights, centred writers, scale 1."""
    if is_folded(model):
        return model
    ends = replace(model.weights, layers=())
    folded = fold_layers(model.architecture, ends, model.weights.layers)
    return replace(folded, parameters=model.parameters)


def fold_layers(arch: Architecture, ends: Weights, layers: Iterable[LayerWeights]) -> Model:
    """A folded model from weights without layers and plain layers, of which one is held at a time."""
    plain = iter(layers)
    return build(arch, lambda: ends, lambda _: next(plain), FOLDING)


def is_folded(model: Model) -> bool:
    """Whether `fold` has nothing to do."""
    arch, weights = model.architecture, model.weights
    norms = [weights.norm_w, *(w for layer in weights.layers for w in (layer.norm1_w, layer.norm2_w))]
    bare = arch.norm != "layer" and all(w is None for w in norms)
    return bare and set(arch.attention_scales) <= {1.0}


def _centred(piece: _Piece, *writers: str) -> _Piece:
    """The same with these writers to the residual stream writing vectors of mean zero."""
    found = {name: getattr(piece, name) for name in writers}
    centred: dict[str, Any] = {name: _centre(w) for name, w in found.items() if w is not None}
    return replace(piece, **centred)


def _centre(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _fold_layer(layer: LayerWeights, scale: float) -> LayerWeights:
    w_q, b_q = _fold(layer.w_q, layer.b_q, layer.norm1_w, layer.norm1_b)
    w_k, b_k = _fold(layer.w_k, layer.b_k, layer.norm1_w, layer.norm1_b)
    w_v, b_v = _fold(layer.w_v, layer.b_v, layer.norm1_w, layer.norm1_b)
    assert b_q is not None
    assert b_k is not None
    assert b_v is not None
    q_norm = layer.q_norm
    if q_norm is None:
        w_q, b_q = w_q * scale, b_q * scale
    else:
        q_norm = q_norm * scale
    layer = replace(layer, w_q=w_q, b_q=b_q, w_k=w_k, b_k=b_k, w_v=w_v, b_v=b_v)
    layer = replace(layer, q_norm=q_norm, norm1_w=None, norm1_b=None)
    if layer.w_in is None:
        return layer
    # The gate's bias stays as it is: only RMS-normed models, whose norms have no shift, are gated.
    assert layer.w_gate is None or layer.norm2_b is None
    w_in, b_in = _fold(layer.w_in, layer.b_in, layer.norm2_w, layer.norm2_b)
    w_gate = layer.w_gate
    if w_gate is not None:
        w_gate, _ = _fold(w_gate, None, layer.norm2_w, None)
    assert layer.w_out is not None
    layer = replace(layer, w_in=_by_output(w_in), b_in=b_in, w_out=_by_output(layer.w_out))
    return replace(layer, w_gate=w_gate, norm2_w=None, norm2_b=None)


def _by_output(w: Tensor) -> Tensor:
    """The same matrix, stored output by output: large products are fastest with it."""
    return w.T.contiguous().T


def _fold(
    w: Tensor, b: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Weights and bias that give ``(x * scale + shift) @ w + b`` from ``x``. ``w`` is [..., D, out]."""
    if shift is not None:
        extra = shift @ w
        b = extra if b is None else b + extra
    if scale is not None:
        w = scale[:, None] * w
    return w.contiguous(), b
