"""Weights that stay in memory rounded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pahq_server.models.architecture import Architecture, LayerWeights, Model, Rotary
from pahq_server.models.checkpoint_weights import Masters
from pahq_server.models.folding import ATTENTION, MLP
from pahq_server.precision.policy import Format, Policy
from pahq_server.precision.quantized import Matrix, Quantized, quantize


@dataclass(frozen=True)
class Parts:
    """Bytes by part of a model. Norms count for what reads them; what two parts share, for the first."""

    embedding: int
    attention: int
    mlps: int
    unembedding: int

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.mlps + self.unembedding


@dataclass(frozen=True)
class QuantizedLayer:
    """A folded layer, with names and shapes of `LayerWeights`. Biases and norms are float32.

    Stacks of heads are rounded head by head: ``w_q[head]`` is the matrix of one.
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
class Resident:
    """What masters hold, rounded. Biases and norms are float32.

    The embeddings are not there: only passes in full precision look tokens and positions up, and read the few
    rows that they need from the masters.

    Args:
        architecture: folded.
        policy: whose formats the weights have.
        device: where they are.
        masters: in full precision, for copies.
        layers: of the model.
        w_u: unembedding, [D, U].
        b_u: [U].
        rotary: of models that rotate queries and keys.
    """

    architecture: Architecture
    policy: Policy
    device: torch.device
    masters: Masters
    layers: tuple[QuantizedLayer, ...]
    w_u: Matrix
    b_u: Tensor | None
    rotary: Rotary | None

    @property
    def nbytes(self) -> Parts:
        """What is kept in memory, which the masters are not."""
        layers = [vars(layer).items() for layer in self.layers]
        mlps = _nbytes(value for layer in layers for name, value in layer if name.partition("_")[2] in MLP)
        return Parts(
            embedding=0 if self.rotary is None else self.rotary.inv_freq.nbytes,
            attention=_nbytes(value for layer in layers for _, value in layer) - mlps,
            mlps=mlps,
            unembedding=_nbytes([self.w_u, self.b_u]),
        )


def make_resident(masters: Masters, policy: Policy, device: torch.device | str = "cpu") -> Resident:
    """Rounds a model. In full precision there is one linear map at a time, or a part of the vocabulary.

    Raises ConflictError as `Masters` does.
    """
    device = torch.device(device)
    # First what is largest by itself, while little else is there.
    w_u, b_u = _unembedding(masters, policy.ends, device)
    arch, rotary = masters.architecture, masters.rotary
    return Resident(
        architecture=arch,
        policy=policy,
        device=device,
        masters=masters,
        layers=tuple(_layer(masters, index, policy, device) for index in range(masters.layers)),
        w_u=w_u,
        b_u=b_u,
        rotary=rotary and Rotary(rotary.inv_freq.to(device), rotary.scaling),
    )


def _layer(masters: Masters, index: int, policy: Policy, device: torch.device) -> QuantizedLayer:
    kept: dict[str, Any] = {}
    for linear in masters.linears(index):
        w, b = masters.linear(index, linear)
        kept[f"w_{linear}"] = rounded(w, policy.heads if linear in ATTENTION else policy.mlps).to(device)
        kept[f"b_{linear}"] = None if b is None else b.to(device)
    for name, norm in zip(("q_norm", "k_norm"), masters.head_norms(index), strict=True):
        kept[name] = None if norm is None else norm.to(device)
    return QuantizedLayer(**kept)


def _unembedding(masters: Masters, form: Format, device: torch.device) -> tuple[Matrix, Tensor | None]:
    """``w_u`` and ``b_u``."""
    whole, biases = [], []
    for w, b in masters.unembedding():
        whole.append(rounded(w, form))
        biases += [] if b is None else [b]
    return _joined(whole).to(device), torch.cat(biases).to(device) if biases else None


def _joined(parts: list[Matrix]) -> Matrix:
    """Matrices with other outputs of the same inputs as one."""
    whole = [part for part in parts if isinstance(part, Quantized)]
    if not whole:
        # Stored output by output, as folding leaves it.
        return torch.cat([part.T for part in parts if isinstance(part, Tensor)]).T
    return Quantized(torch.cat([w.data for w in whole], -1), torch.cat([w.scale for w in whole], -1))


def rounded(w: Tensor, form: Format) -> Matrix:
    """[..., I, O] in the format, one scale per output."""
    return w.to(_CASTS[form]) if form in _CASTS else quantize(w, form)


_CASTS = {Format.FP32: torch.float32, Format.BF16: torch.bfloat16}


def _nbytes(values: Iterable[Matrix | None]) -> int:
    return sum(0 if value is None else value.nbytes for value in values)


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
