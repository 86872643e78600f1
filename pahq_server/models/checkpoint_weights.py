"""The full-precision weights of a checkpoint, read piece by piece from its mapped files.

Shape suffixes: D d_model, K d_head, H heads of one kind (query heads, or key/value heads), M d_mlp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pahq_server.core.task import Tokenizer
from pahq_server.models.architecture import Architecture, LayerWeights, Rotary, Weights
from pahq_server.models.folding import (
    ATTENTION,
    FOLDING,
    MLP,
    OUTPUTS,
    Linear,
    fold_embedding,
    fold_head_norms,
    fold_layer,
    fold_linear,
    fold_unembedding,
    linears,
)
from pahq_server.models.loading import LoadedModel, map_files
from pahq_server.precision.head_store import Component

ALL = slice(None)
_NORMS = ("norm1_w", "norm1_b", "norm2_w", "norm2_b", "q_norm", "k_norm")


@dataclass(frozen=True)
class MlpWeights:
    """The MLP's tensors of a folded `LayerWeights`, of which it has the names."""

    w_in: Tensor  # [D, M]
    b_in: Tensor | None  # [M]
    w_gate: Tensor | None  # [D, M]
    b_gate: Tensor | None  # [M]
    w_out: Tensor  # [M, D]
    b_out: Tensor | None  # [D]


class Masters:
    """What ``load(source, FOLDING)`` would keep, bit for bit, without keeping it.

    Every method reads what it gives from the checkpoint's files, which are mapped into memory, and folds it:
    float32 on the CPU, in memory of its own, garbage when it is dropped. Nothing else of the weights is held
    but the page cache, which the kernel takes back at will. May be used from several threads.

    Every method raises ConflictError if a file of the checkpoint was changed in place, which `models.mapped`
    says more about, and IndexError for a layer or head that does not exist.

    Args:
        loaded: a plain model of views, of any float type.
        check: called before views are read.

    Attributes:
        architecture: folded.
        layers: their number.
        parameters, tokenizer, revision, directory, warnings: as `load` gives them.
    """

    def __init__(self, loaded: LoadedModel, check: Callable[[], None]) -> None:
        self._plain, self._views = loaded.model.architecture, loaded.model.weights
        self._check = check
        self.architecture: Architecture = FOLDING.architecture(self._plain)
        self.layers = self._plain.layers
        self.parameters = loaded.model.parameters
        self.tokenizer: Tokenizer | None = loaded.tokenizer
        self.revision = loaded.revision
        self.directory, self.warnings = loaded.directory, loaded.warnings
        # torch has one object per piece of memory while any reference to it is held.

    @classmethod
    def open(cls, source: str) -> Masters:
        """Maps a checkpoint directory, or a hub id where there is a network.

        Raises InvalidRequestError (field ``model``) for all that `load` raises it for.
        """
        loaded, files = map_files(source)
        return cls(loaded, files.check)

    # Layers

    def layer(self, index: int) -> LayerWeights:
        """A whole layer."""
        layer = _own_norms(self._layer(index))
        return fold_layer(self._plain, index, layer, lambda name: self.linear(index, name))

    def linears(self, index: int) -> tuple[Linear, ...]:
        """The linear maps that a layer has."""
        return linears(self._layer(index))

    def linear(self, index: int, name: Linear, heads: slice = ALL) -> tuple[Tensor, Tensor | None]:
        """Weights and bias of one linear map of a layer, shaped as in `LayerWeights`.

        Args:
            index: of the layer.
            name: one of `linears`.
            heads: of attention, which heads of its kind; b_o is whole whatever they are.
        """
        layer = _own_norms(self._layer(index))
        w, b = getattr(layer, f"w_{name}"), getattr(layer, f"b_{name}")
        if name in ATTENTION:
            w, b = w[heads], (b if name == "o" else b[heads])
        own: dict[str, Any] = {f"w_{name}": _own(w, packed=name in ATTENTION)}
        own[f"b_{name}"] = None if b is None else _own(b)
        return fold_linear(self._plain, index, replace(layer, **own), name)

    def head_norms(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """``q_norm`` and ``k_norm`` of a layer."""
        return fold_head_norms(self._plain, index, _own_norms(self._layer(index)))

    def attention(self, index: int, kind: Literal["q", "k", "v"], unit: int) -> tuple[Tensor, Tensor]:
        """Weights and bias of one head's queries, or of one key/value head: [D, K] and [K]."""
        count = self._plain.heads if kind == "q" else self._plain.kv_heads
        w, b = self.linear(index, kind, _one(unit, count))
        assert b is not None
        return w[0], b[0]

    def writes(self, index: int, head: int) -> Tensor:
        """W_O of one query head: [K, D]."""
        return self.linear(index, "o", _one(head, self._plain.heads))[0][0]

    def mlp(self, index: int) -> MlpWeights:
        """The MLP of a layer, of a model that has MLPs."""
        found = self.linears(index)
        maps = {name: self.linear(index, name) if name in found else (None, None) for name in MLP}
        return MlpWeights(*(tensor for name in MLP for tensor in maps[name]))  # type: ignore[arg-type]

    def copies(self, component: Component) -> dict[str, Tensor]:
        """The tensors of a component by their names in `LayerWeights`: a `precision.head_store.Loader`."""
        index, unit = component.layer, component.unit
        if component.kind == "mlp":
            mlp = self.mlp(index)
            return {name: tensor for name, tensor in vars(mlp).items() if tensor is not None}
        if component.kind == "o":
            return {"w_o": self.writes(index, unit)}
        w, b = self.attention(index, component.kind, unit)
        return {f"w_{component.kind}": w, f"b_{component.kind}": b}

    # Around the layers

    def ends(self) -> Weights:
        """Weights without layers."""
        return FOLDING.ends(self._plain, _own_ends(self._ends()))

    def embed(self, token_ids: Tensor) -> Tensor:
        """Embeddings of tokens: [..., D] for int64 [...]."""
        return self._rows(self._ends().w_e, token_ids)

    def embed_positions(self, positions: Tensor) -> Tensor:
        """Embeddings of positions, in a model that has them: [..., D] for int64 [...]."""
        table = self._ends().w_pos
        assert table is not None
        return self._rows(table, positions)

    def unembedding(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Weights and bias of the unembedding, [D, n] and [n], for `OUTPUTS` outputs after the other."""
        for first in range(0, self.architecture.output_vocabulary, OUTPUTS):
            views = self._ends()
            outputs = slice(first, first + OUTPUTS)
            b_u = None if views.b_u is None else views.b_u[outputs]
            part = replace(views, w_e=views.w_e[:0], w_u=views.w_u[:, outputs], b_u=b_u, w_pos=None)
            yield fold_unembedding(_own_ends(part))

    @property
    def positions(self) -> bool:
        """Whether there are position embeddings."""
        return self._views.w_pos is not None

    @property
    def rotary(self) -> Rotary | None:
        return self._views.rotary

    def _rows(self, table: Tensor, indices: Tensor) -> Tensor:
        return fold_embedding(self._plain, _own(table.as_subclass(Tensor)[indices]))

    # No view is read but those that these give, shortly before.

    def _ends(self) -> Weights:
        self._check()
        return self._views

    def _layer(self, index: int) -> LayerWeights:
        if not 0 <= index < self.layers:
            raise IndexError(f"no layer {index} of {self.layers}")
        self._check()
        return self._views.layers[index]


def _one(unit: int, count: int) -> slice:
    if not 0 <= unit < count:
        raise IndexError(f"no head {unit} of {count}")
    return slice(unit, unit + 1)


def _own_norms(layer: LayerWeights) -> LayerWeights:
    """The same with norms in memory of their own."""
    norms: dict[str, Any] = {name: getattr(layer, name) for name in _NORMS}
    return replace(layer, **{name: _own(norm) for name, norm in norms.items() if norm is not None})


def _own_ends(ends: Weights) -> Weights:
    """The weights without layers in memory of their own."""
    own: dict[str, Any] = {
        name: _own(value) for name, value in vars(ends).items() if isinstance(value, Tensor)
    }
    return replace(ends, layers=(), **own)


def _own(view: Tensor, packed: bool = False) -> Tensor:
    """A tensor as float32 in memory of its own, laid out as it is stored or, ``packed``, in order."""
    layout = torch.contiguous_format if packed else torch.preserve_format
    return view.as_subclass(Tensor).to(torch.float32, copy=True, memory_format=layout)
