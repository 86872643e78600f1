"""Folding: rewriting a model so that its norms have no weights and its attention scores no factor.

A layer norm is an RMS norm of the centred input, scaled and shifted (arXiv:1607.06450). Maps that write to
the residual stream can centre what they write; maps that read it can scale and shift. So a folded model has
bare RMS norms or none. In real arithmetic it computes the same logits; only its residual stream differs, by a
constant per token. The factor on attention scores goes into the query weights, or into the weight of the
queries' own norm.

One linear map, one head, or some outputs of the unembedding can be folded alone, and get the same bits as
when the whole model is folded. "Plain" is a model that has not been folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from pahq_server.models.architecture import Architecture, LayerWeights, Model, Weights
from pahq_server.models.building import build

# The linear maps of a layer: "q" names ``w_q`` and ``b_q`` of `LayerWeights`.
Linear = Literal["q", "k", "v", "o", "in", "gate", "out"]
ATTENTION: tuple[Linear, ...] = ("q", "k", "v", "o")
MLP: tuple[Linear, ...] = ("in", "gate", "out")
# How many outputs a part of the unembedding has that is folded alone, with the same bits as in the whole.
OUTPUTS = 1 << 12


class Folding:
    """A `building.Transform` that folds each piece of a model."""

    def architecture(self, arch: Architecture) -> Architecture:
        centred = arch.norm == "layer"
        norm = "rms" if centred else arch.norm
        return replace(arch, norm=norm, attention_scales=(1.0,) * arch.layers, centred=centred)

    def embeddings(self, arch: Architecture, weights: Weights) -> Weights:
        w_u, b_u = fold_unembedding(weights)
        w_pos = None if weights.w_pos is None else fold_embedding(arch, weights.w_pos)
        w_e = fold_embedding(arch, weights.w_e)
        return replace(weights, w_e=w_e, w_pos=w_pos, w_u=_by_output(w_u), b_u=b_u, norm_w=None, norm_b=None)

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        return fold_layer(arch, index, layer, lambda name: fold_linear(arch, index, layer, name))


FOLDING = Folding()


def fold(model: Model) -> Model:
    """Folds a model in memory. A folded model is returned as it is."""
    if is_folded(model):
        return model
    outside_layers = replace(model.weights, layers=())
    folded = fold_layers(model.architecture, outside_layers, model.weights.layers)
    return replace(folded, parameters=model.parameters)


def fold_layers(arch: Architecture, outside_layers: Weights, layers: Iterable[LayerWeights]) -> Model:
    """Builds a folded model from plain pieces; takes one layer after the other from ``layers``."""
    plain = iter(layers)
    return build(arch, lambda: outside_layers, lambda _: next(plain), FOLDING)


def is_folded(model: Model) -> bool:
    """Tells whether the norms of a model have no weights and its attention scores no factor."""
    arch, weights = model.architecture, model.weights
    norms = [weights.norm_w, *(w for layer in weights.layers for w in (layer.norm1_w, layer.norm2_w))]
    bare = arch.norm != "layer" and all(w is None for w in norms)
    return bare and set(arch.attention_scales) <= {1.0}


def fold_layer(
    arch: Architecture,
    index: int,
    layer: LayerWeights,
    linear: Callable[[Linear], tuple[Tensor, Tensor | None]],
) -> LayerWeights:
    """Puts a folded layer together from its folded linear maps.

    Args:
        arch: of the plain model.
        index: of the layer.
        layer: plain. Its norms are folded; of its linear maps only their presence matters.
        linear: returns weights and bias of a folded map; called once for each map that the layer has.
    """
    folded: dict[str, Tensor | None] = {}
    for name in linears(layer):
        folded[f"w_{name}"], folded[f"b_{name}"] = linear(name)
    q_norm, k_norm = fold_head_norms(arch, index, layer)
    bare: dict[str, Any] = dict.fromkeys(("norm1_w", "norm1_b", "norm2_w", "norm2_b"))
    return replace(layer, q_norm=q_norm, k_norm=k_norm, **bare | folded)


def linears(layer: LayerWeights) -> tuple[Linear, ...]:
    """Returns the names of the linear maps that a layer has."""
    return tuple(name for name in ATTENTION + MLP if getattr(layer, f"w_{name}") is not None)


def fold_linear(
    arch: Architecture, index: int, layer: LayerWeights, name: Linear
) -> tuple[Tensor, Tensor | None]:
    """Folds one linear map of a layer.

    Args:
        arch: of the plain model.
        index: of the layer.
        layer: plain. Only this map and the norm before it are used. The stack of a map of attention may hold
            some of the heads only.
        name: of a map that the layer has.

    Returns:
        Weights and bias, in the shapes of ``layer``.
    """
    w, b = getattr(layer, f"w_{name}"), getattr(layer, f"b_{name}")
    if name in ("o", "out"):
        if arch.norm == "layer":
            w, b = _centre(w), _centre(b)
        return (w if name == "o" else _by_output(w)), b
    if name in ("in", "gate"):
        w, b = _fold(w, b, layer.norm2_w, layer.norm2_b)
        return (_by_output(w) if name == "in" else w.contiguous()), b
    w, b = _fold(w, b, layer.norm1_w, layer.norm1_b)
    if name == "q" and layer.q_norm is None:
        assert b is not None
        w, b = w * arch.attention_scales[index], b * arch.attention_scales[index]
    return w.contiguous(), b


def fold_factors(
    arch: Architecture, index: int, layer: LayerWeights, name: Linear
) -> tuple[Tensor | None, float] | None:
    """Returns what `fold_linear` multiplies the weights of a map with.

    Returns:
        A factor for each input, [I] (None for none), and one for all outputs; None if folding does more.
    """
    if name in ("o", "out"):
        return None if arch.norm == "layer" else (None, 1.0)
    if name in ("in", "gate"):
        return layer.norm2_w, 1.0
    return layer.norm1_w, arch.attention_scales[index] if name == "q" and layer.q_norm is None else 1.0


def fold_head_norms(
    arch: Architecture, index: int, layer: LayerWeights
) -> tuple[Tensor | None, Tensor | None]:
    """Folds ``q_norm`` and ``k_norm`` of layer ``index``; ``arch`` is that of the plain model."""
    q_norm = None if layer.q_norm is None else layer.q_norm * arch.attention_scales[index]
    return q_norm, layer.k_norm


def fold_embedding(arch: Architecture, rows: Tensor) -> Tensor:
    """Folds rows [..., D] of the embedding of tokens or positions, any number of them."""
    return _centre(rows) if arch.norm == "layer" else rows


def fold_unembedding(weights: Weights) -> tuple[Tensor, Tensor | None]:
    """Folds weights and bias of the unembedding, [D, n] and [n]: the whole one, or a part (see `OUTPUTS`)."""
    return _fold(weights.w_u, weights.b_u, weights.norm_w, weights.norm_b)


def _centre(x: Tensor) -> Tensor:
    """Subtracts its mean from each vector that is written to the residual stream: [..., D]."""
    return x - x.mean(-1, keepdim=True)


def _fold(
    w: Tensor, b: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Returns weights and bias of the map ``x -> (x * scale + shift) @ w + b``, for ``w`` [..., D, out]."""
    if shift is not None:
        extra = _shifted(shift, w)
        b = extra if b is None else b + extra
    if scale is not None:
        w = scale[:, None] * w
    return w, b


def _shifted(shift: Tensor, w: Tensor) -> Tensor:
    """Computes ``shift @ w`` head by head, or for the unembedding part by part (see `OUTPUTS`).

    So a head or part that is folded alone gets the same bits. It is copied first, because libraries may round
    differently for matrices that begin at another address.
    """
    if w.dim() == 2:
        return torch.cat([shift @ part.clone() for part in w.split(OUTPUTS, -1)])
    return torch.stack([shift @ head.clone() for head in w])


def _by_output(w: Tensor) -> Tensor:
    """Stores a matrix [I, O] output by output, the layout in which large products are fastest."""
    return w.T.contiguous().T
