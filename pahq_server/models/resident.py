"""A model that stays in memory rounded as a policy says, made piece by piece from its masters.

D: d_model, V: vocabulary, U: output vocabulary, N: context; layers as in `architecture`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pahq_server.models.architecture import Architecture, Rotary
from pahq_server.models.folding import ATTENTION, MLP
from pahq_server.models.masters import Masters
from pahq_server.models.parts import Parts
from pahq_server.precision.policy import Format, Policy
from pahq_server.precision.quantized import Matrix, Quantized, numbers, quantize, rounded_rows

# Rows of the embedding that are in full precision at a time.
_TOKENS = 1 << 12


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
class Rows:
    """A table of 8-bit numbers, [V, D], with a float32 scale per row, [V, 1]."""

    data: Tensor
    scale: Tensor

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Some rows as float32, [n, D], for int64 [n]."""
        return numbers(self.data[indices], torch.float32).mul_(self.scale[indices])

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scale.nbytes


@dataclass(frozen=True)
class Resident:
    """What masters hold, rounded. Biases, norms and positions are float32.

    Args:
        architecture: folded.
        policy: whose formats the weights have.
        device: where they are.
        masters: in full precision, for copies.
        layers: of the model.
        w_u: unembedding, [D, U].
        b_u: [U].
        w_e: embedding, [V, D], 8-bit formats with a scale per token. None where the checkpoint ties it to
            the unembedding: the few rows that are wanted are read from the masters and rounded on the way.
        w_pos: positions, [N, D].
        rotary: of models that rotate queries and keys.
    """

    architecture: Architecture
    policy: Policy
    device: torch.device
    masters: Masters
    layers: tuple[QuantizedLayer, ...]
    w_u: Matrix
    b_u: Tensor | None
    w_e: Rows | Tensor | None
    w_pos: Tensor | None
    rotary: Rotary | None

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embeddings of tokens, the same whether ``w_e`` is there or not.

        Args:
            token_ids: int64, [...], on the CPU.

        Returns:
            float32, [..., D], on the device.
        """
        flat = token_ids.flatten()
        if self.w_e is None:
            found = _rounded_rows(self.masters.embed(flat), self.policy.ends)[torch.arange(len(flat))]
        else:
            found = self.w_e[flat.to(self.device)]
        shape = (*token_ids.shape, self.architecture.d_model)
        return found.to(self.device, torch.float32).view(shape)

    @property
    def nbytes(self) -> Parts:
        """What is kept in memory, which the masters are not."""
        layers = [vars(layer).items() for layer in self.layers]
        inv_freq = None if self.rotary is None else self.rotary.inv_freq
        mlps = _nbytes(value for layer in layers for name, value in layer if name.partition("_")[2] in MLP)
        return Parts(
            embedding=_nbytes([self.w_e, self.w_pos, inv_freq]),
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
    w_e = None if masters.tied else _embedding(masters, policy.ends, device)
    arch, rotary = masters.architecture, masters.rotary
    return Resident(
        architecture=arch,
        policy=policy,
        device=device,
        masters=masters,
        layers=tuple(_layer(masters, index, policy, device) for index in range(masters.layers)),
        w_u=w_u,
        b_u=b_u,
        w_e=w_e,
        w_pos=masters.embed_positions(torch.arange(arch.context)).to(device) if masters.positions else None,
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


def _embedding(masters: Masters, form: Format, device: torch.device) -> Rows | Tensor:
    """``w_e``."""
    tokens = torch.arange(masters.architecture.vocabulary).split(_TOKENS)
    tables = [_rounded_rows(masters.embed(ids), form) for ids in tokens]
    kept = [table for table in tables if isinstance(table, Rows)]
    if not kept:
        return torch.cat([table for table in tables if isinstance(table, Tensor)]).to(device)
    data, scale = torch.cat([table.data for table in kept]), torch.cat([table.scale for table in kept])
    return Rows(data.to(device), scale.to(device))


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


def _rounded_rows(rows: Tensor, form: Format) -> Rows | Tensor:
    """[V, D] in the format, one scale per row."""
    return rows.to(_CASTS[form]) if form in _CASTS else Rows(*rounded_rows(rows, form))


_CASTS = {Format.FP32: torch.float32, Format.BF16: torch.bfloat16}


def _nbytes(values: Iterable[Rows | Matrix | None]) -> int:
    return sum(0 if value is None else value.nbytes for value in values)
