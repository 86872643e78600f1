"""Rewriting a model so that norms are bare RMS norms or absent, and attention scores unscaled.

Layer norm is RMS norm of the centred input, scaled and shifted (arXiv:1607.06450). Centring can be done
by whatever writes to the residual stream, scale and shift by whatever reads it. The result computes the
same logits in real arithmetic; only its residual stream differs, by a constant per token. The factor on
attention scores goes into the query weights, or into the weight of the queries' own norm.

Any linear map of a layer, head of attention, or part of the vocabulary may be folded alone, with the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from pahq_server.models.architecture import Architecture, LayerWeights, Model, Weights
from pahq_server.models.building import build

# The linear maps of a layer: ``w_q`` and ``b_q`` of `LayerWeights` are ``q``.
Linear = Literal["q", "k", "v", "o", "in", "gate", "out"]
ATTENTION: tuple[Linear, ...] = ("q", "k", "v", "o")
MLP: tuple[Linear, ...] = ("in", "gate", "out")
# The unembedding may be folded in parts that begin at multiples of so many outputs, with the same bits.
OUTPUTS = 1 << 12


class Folding:
    """Keeps of a model what computes the same function without norm weights: a `building.Transform`."""

    def architecture(self, arch: Architecture) -> Architecture:
        norm = "rms" if arch.norm == "layer" else arch.norm
        return replace(arch, norm=norm, attention_scales=(1.0,) * arch.layers)

    def ends(self, arch: Architecture, ends: Weights) -> Weights:
        w_u, b_u = fold_unembedding(ends)
        w_pos = None if ends.w_pos is None else fold_embedding(arch, ends.w_pos)
        w_e = fold_embedding(arch, ends.w_e)
        return replace(ends, w_e=w_e, w_pos=w_pos, w_u=_by_output(w_u), b_u=b_u, norm_w=None, norm_b=None)

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        return fold_layer(arch, index, layer, lambda name: fold_linear(arch, index, layer, name))


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


def fold_layer(
    arch: Architecture,
    index: int,
    layer: LayerWeights,
    linear: Callable[[Linear], tuple[Tensor, Tensor | None]],
) -> LayerWeights:
    """A folded layer.

    Args:
        arch: of the plain model.
        index: of the layer.
        layer: plain; of its linear maps only their presence matters.
        linear: gives the folded maps that the layer has, each asked for once.
    """
    folded: dict[str, Tensor | None] = {}
    for name in linears(layer):
        folded[f"w_{name}"], folded[f"b_{name}"] = linear(name)
    q_norm, k_norm = fold_head_norms(arch, index, layer)
    bare: dict[str, Any] = dict.fromkeys(("norm1_w", "norm1_b", "norm2_w", "norm2_b"))
    return replace(layer, q_norm=q_norm, k_norm=k_norm, **bare | folded)


def linears(layer: LayerWeights) -> tuple[Linear, ...]:
    """The linear maps that a layer has."""
    return tuple(name for name in ATTENTION + MLP if getattr(layer, f"w_{name}") is not None)


def fold_linear(
    arch: Architecture, index: int, layer: LayerWeights, name: Linear
) -> tuple[Tensor, Tensor | None]:
    """Weights and bias of one linear map of a folded layer.

    Args:
        arch: of the plain model.
        index: of the layer.
        layer: plain; only this map and the norm before it are looked at. Of attention it may have any of
            the heads, in stacks as in `LayerWeights`.
        name: a map that the layer has.
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


def fold_head_norms(
    arch: Architecture, index: int, layer: LayerWeights
) -> tuple[Tensor | None, Tensor | None]:
    """``q_norm`` and ``k_norm`` of a folded layer. ``arch`` is the plain one."""
    q_norm = None if layer.q_norm is None else layer.q_norm * arch.attention_scales[index]
    return q_norm, layer.k_norm


def fold_embedding(arch: Architecture, rows: Tensor) -> Tensor:
    """Any rows of the folded embedding of tokens or positions, from the plain ones: [..., D]."""
    return _centre(rows) if arch.norm == "layer" else rows


def fold_unembedding(ends: Weights) -> tuple[Tensor, Tensor | None]:
    """Weights and bias of the folded unembedding, whole or (see `OUTPUTS`) for some outputs."""
    return _fold(ends.w_u, ends.b_u, ends.norm_w, ends.norm_b)


def _centre(x: Tensor) -> Tensor:
    """Of vectors that are written to the residual stream, [..., D]: the same with mean zero."""
    return x - x.mean(-1, keepdim=True)


def _fold(
    w: Tensor, b: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Weights and bias that give ``(x * scale + shift) @ w + b`` from ``x``. ``w`` is [..., D, out]."""
    if shift is not None:
        extra = _shifted(shift, w)
        b = extra if b is None else b + extra
    if scale is not None:
        w = scale[:, None] * w
    return w, b


def _shifted(shift: Tensor, w: Tensor) -> Tensor:
    """``shift @ w``, in the pieces that may be asked for alone.

    Of each piece a copy: libraries may round by where in memory a matrix begins.
    """
    if w.dim() == 2:
        return torch.cat([shift @ part.clone() for part in w.split(OUTPUTS, -1)])
    return torch.stack([shift @ head.clone() for head in w])


def _by_output(w: Tensor) -> Tensor:
    """The same matrix, stored output by output: large products are fastest with it."""
    return w.T.contiguous().T
