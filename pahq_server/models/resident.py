"""Weights that stay in memory rounded as a precision policy says.

There are two ways to make them. `make_resident` reads a checkpoint piece by piece and keeps only the rounded
weights, for a server started with rounded weights. `round_layers` and `round_unembedding` round a model that
is in memory in full precision, for a job that asks for another policy than the model is served in. Weights
that the checkpoint holds in the policy's 8-bit format are taken as they are, not rounded again.

Shapes: D d_model, U output vocabulary; layers have the shapes of `architecture.LayerWeights`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pahq_server.models.architecture import Architecture, LayerWeights, Model, Rotary
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.folding import ATTENTION, MLP, Linear
from pahq_server.precision.policy import Format, Policy
from pahq_server.precision.quantized import Matrix, Quantized, quantize

_CASTS = {Format.FP32: torch.float32, Format.BF16: torch.bfloat16}


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a model's weights by part. A norm counts with what reads it; a shared tensor counts once."""

    embedding: int
    attention: int
    mlps: int
    unembedding: int

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.mlps + self.unembedding


@dataclass(frozen=True)
class QuantizedLayer:
    """The rounded weights of a folded layer, with the names and shapes of `LayerWeights`.

    Biases and norms stay float32. Stacks of heads are rounded head by head: ``w_q[head]`` is the matrix of
    one head.
    """

    w_q: Matrix
    b_q: Tensor
    w_k: Matrix
    b_k: Tensor
    w_v: Matrix
    b_v: Tensor
    w_o: Matrix
    b_o: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    w_in: Matrix | None = None
    b_in: Tensor | None = None
    w_gate: Matrix | None = None
    b_gate: Tensor | None = None
    w_out: Matrix | None = None
    b_out: Tensor | None = None


@dataclass(frozen=True)
class ResidentWeights:
    """The rounded weights of a checkpoint. Biases and norms are float32.

    Embeddings are not among them: only passes in full precision look tokens and positions up, and they read
    the few rows that they need from the checkpoint.

    Args:
        architecture: of the folded model.
        policy: gives the formats of the weights.
        device: on which the weights are.
        checkpoint: the same weights in full precision, to be read when they are needed.
        layers: of the model.
        w_u: unembedding, [D, U].
        b_u: its bias, [U].
        rotary: frequencies of models that rotate queries and keys.
    """

    architecture: Architecture
    policy: Policy
    device: torch.device
    checkpoint: CheckpointWeights
    layers: tuple[QuantizedLayer, ...]
    w_u: Matrix
    b_u: Tensor | None
    rotary: Rotary | None

    @property
    def nbytes(self) -> WeightBytes:
        """The memory that these weights take; those of the checkpoint stay in its files."""
        layers = [vars(layer).items() for layer in self.layers]
        mlps = _nbytes(value for layer in layers for name, value in layer if name.partition("_")[2] in MLP)
        return WeightBytes(
            embedding=0 if self.rotary is None else self.rotary.inv_freq.nbytes,
            attention=_nbytes(value for layer in layers for _, value in layer) - mlps,
            mlps=mlps,
            unembedding=_nbytes([self.w_u, self.b_u]),
        )


def make_resident(
    checkpoint: CheckpointWeights, policy: Policy, device: torch.device | str = "cpu"
) -> ResidentWeights:
    """Rounds the weights of a checkpoint.

    At no time is more than one linear map, or one part of the unembedding, in memory in full precision.

    Raises ConflictError if a file of the checkpoint was changed in place.
    """
    device = torch.device(device)
    # The largest matrix comes first, while little else is in memory.
    w_u, b_u = _resident_unembedding(checkpoint, policy.embeddings, device)
    arch, rotary = checkpoint.architecture, checkpoint.rotary
    return ResidentWeights(
        architecture=arch,
        policy=policy,
        device=device,
        checkpoint=checkpoint,
        layers=tuple(
            _resident_layer(checkpoint, index, policy, device) for index in range(checkpoint.layers)
        ),
        w_u=w_u,
        b_u=b_u,
        rotary=rotary and Rotary(rotary.inv_freq.to(device), rotary.scaling),
    )


def _resident_layer(
    checkpoint: CheckpointWeights, index: int, policy: Policy, device: torch.device
) -> QuantizedLayer:
    kept: dict[str, Any] = {}
    for linear in checkpoint.linears(index):
        form = policy.heads if linear in ATTENTION else policy.mlps
        matrix, b = checkpoint.stored(index, linear, form) or _rounded_linear(checkpoint, index, linear, form)
        kept[f"w_{linear}"] = matrix.to(device)
        kept[f"b_{linear}"] = None if b is None else b.to(device)
    for name, norm in zip(("q_norm", "k_norm"), checkpoint.head_norms(index), strict=True):
        kept[name] = None if norm is None else norm.to(device)
    return QuantizedLayer(**kept)


def _rounded_linear(
    checkpoint: CheckpointWeights, index: int, name: Linear, form: Format
) -> tuple[Matrix, Tensor | None]:
    w, b = checkpoint.linear(index, name)
    return rounded(w, form), b


def _resident_unembedding(
    checkpoint: CheckpointWeights, form: Format, device: torch.device
) -> tuple[Matrix, Tensor | None]:
    """Returns ``w_u`` and ``b_u`` of `ResidentWeights`."""
    stored = checkpoint.stored_unembedding(form)
    if stored is not None:
        matrix, bias = stored
        return matrix.to(device), None if bias is None else bias.to(device)
    parts, biases = [], []
    for w, b in checkpoint.unembedding():
        parts.append(rounded(w, form))
        biases += [] if b is None else [b]
    return _joined(parts).to(device), torch.cat(biases).to(device) if biases else None


def _joined(parts: list[Matrix]) -> Matrix:
    """Joins matrices of the same inputs along their outputs."""
    quantized = [part for part in parts if isinstance(part, Quantized)]
    if not quantized:
        # Stored output by output, as folding leaves matrices.
        return torch.cat([part.T for part in parts if isinstance(part, Tensor)]).T
    return Quantized.of(
        torch.cat([w.data for w in quantized], -1), torch.cat([w.scale for w in quantized], -1)
    )


def round_layers(model: Model, policy: Policy) -> tuple[QuantizedLayer, ...]:
    """Rounds the layers of a folded model. Tensors that the policy does not round are not copied."""
    return tuple(_round_layer(layer, policy) for layer in model.weights.layers)


def round_unembedding(model: Model, policy: Policy) -> Matrix:
    """Rounds ``w_u`` of a folded model, [D, U]."""
    return _round(model.weights.w_u, policy.embeddings)


def _round_layer(layer: LayerWeights, policy: Policy) -> QuantizedLayer:
    kept = {field.name: getattr(layer, field.name) for field in fields(QuantizedLayer)}
    for name, value in kept.items():
        if name.startswith("w_") and value is not None:
            kept[name] = _round(value, policy.heads if name[2:] in ATTENTION else policy.mlps)
    return QuantizedLayer(**kept)


def _round(w: Tensor, form: Format) -> Matrix:
    """Does what `rounded` does, but returns the tensor itself, whatever its dtype, if nothing is rounded."""
    return w if form is Format.FP32 else rounded(w, form)


def rounded(w: Tensor, form: Format) -> Matrix:
    """Rounds matrices [..., I, O] to a format; 8-bit formats get one scale per output."""
    return w.to(_CASTS[form]) if form in _CASTS else quantize(w, form)


def _nbytes(values: Iterable[Matrix | None]) -> int:
    return sum(0 if value is None else value.nbytes for value in values)
