"""Rewriting a model so that norms are bare RMS norms or absent, and attention scores unscaled.

Layer norm is RMS norm of the centred input, scaled and shifted (arXiv:1607.06450). Centring can be done
by whatever writes to the residual stream, scale and shift by whatever reads it. The result computes the
same logits in real arithmetic; only its residual stream differs, by a constant per token. The factor on
attention scores goes into the query weights.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pahq_server.models.architecture import LayerWeights, Model, Weights


def fold(model: Model) -> Model:
    """The same function with ``norm`` None or ``rms``, no norm weights, centred writers, scale 1."""
    arch, weights = model.architecture, model.weights
    if arch.norm == "layer":
        arch, weights = replace(arch, norm="rms"), _centred(weights)
    scaled = zip(weights.layers, arch.attention_scales, strict=True)
    layers = tuple(_fold_layer(layer, scale) for layer, scale in scaled)
    arch = replace(arch, attention_scales=(1.0,) * arch.layers)
    w_u, b_u = _fold(weights.w_u, weights.b_u, weights.norm_w, weights.norm_b)
    folded = replace(weights, layers=layers, w_u=_by_output(w_u), b_u=b_u, norm_w=None, norm_b=None)
    return replace(model, architecture=arch, weights=folded)


def _centred(weights: Weights) -> Weights:
    """Everything that writes to the residual stream writes vectors of mean zero."""
    layers = tuple(
        replace(
            layer,
            w_o=_centre(layer.w_o),
            b_o=_centre(layer.b_o),
            w_out=None if layer.w_out is None else _centre(layer.w_out),
            b_out=None if layer.b_out is None else _centre(layer.b_out),
        )
        for layer in weights.layers
    )
    w_pos = None if weights.w_pos is None else _centre(weights.w_pos)
    return replace(weights, w_e=_centre(weights.w_e), w_pos=w_pos, layers=layers)


def _centre(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _fold_layer(layer: LayerWeights, scale: float) -> LayerWeights:
    w_q, b_q = _fold(layer.w_q, layer.b_q, layer.norm1_w, layer.norm1_b)
    w_k, b_k = _fold(layer.w_k, layer.b_k, layer.norm1_w, layer.norm1_b)
    w_v, b_v = _fold(layer.w_v, layer.b_v, layer.norm1_w, layer.norm1_b)
    assert b_q is not None
    assert b_k is not None
    assert b_v is not None
    layer = replace(layer, w_q=w_q * scale, b_q=b_q * scale, w_k=w_k, b_k=b_k, w_v=w_v, b_v=b_v)
    layer = replace(layer, norm1_w=None, norm1_b=None)
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
