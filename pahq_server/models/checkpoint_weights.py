"""The full-precision weights of a checkpoint, folded and read piece by piece from its mapped files.

A model whose weights stay in memory rounded (`resident`) still needs single heads in full precision. They
come from here: reading one head costs no more than that head.

Shapes: D d_model, K d_head, H heads of one kind (query heads, or key/value heads), M d_mlp.
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

ALL = slice(None)  # all heads
_NORMS = ("norm1_w", "norm1_b", "norm2_w", "norm2_b", "q_norm", "k_norm")


@dataclass(frozen=True)
class MlpWeights:
    """The tensors of one folded MLP, under the names that they have in `LayerWeights`."""

    w_in: Tensor  # [D, M]
    b_in: Tensor | None  # [M]
    w_gate: Tensor | None  # [D, M]
    b_gate: Tensor | None  # [M]
    w_out: Tensor  # [M, D]
    b_out: Tensor | None  # [D]


class CheckpointWeights:
    """Reads single pieces of the model that ``load(source, FOLDING)`` gives, with the same bits.

    Every method reads its result from the mapped files of the checkpoint and folds it (see `folding`).
    Results are float32 on the CPU, in memory of their own, and are not kept here: weights take no memory but
    the kernel's page cache. May be used from several threads.

    Every method raises ConflictError if a file of the checkpoint was changed in place (see
    `checkpoint.MappedCheckpoint`), and IndexError for a layer or head that does not exist.

    Args:
        loaded: the plain model, whose tensors are views of the files in any floating dtype.
        check: raises ConflictError if a file has changed; called before views are read.

    Attributes:
        architecture: of the folded model.
        layers: how many.
        parameters, tokenizer, revision, directory, warnings: as `loading.load` gives them.
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

    @classmethod
    def open(cls, source: str) -> CheckpointWeights:
        """Maps a checkpoint directory, or a hub id where there is a network.

        Raises InvalidRequestError (field ``model``) for everything that `loading.load` refuses.
        """
        loaded, files = map_files(source)
        return cls(loaded, files.check)

    # Layers

    def layer(self, index: int) -> LayerWeights:
        """Reads a whole layer."""
        layer = _own_norms(self._layer(index))
        return fold_layer(self._plain, index, layer, lambda name: self.linear(index, name))

    def linears(self, index: int) -> tuple[Linear, ...]:
        """Names of the linear maps that a layer has."""
        return linears(self._layer(index))

    def linear(self, index: int, name: Linear, heads: slice = ALL) -> tuple[Tensor, Tensor | None]:
        """Reads weights and bias of one linear map of a layer.

        Args:
            index: of the layer.
            name: one of `linears`.
            heads: which heads to read, for maps of attention.

        Returns:
            Weights and bias in the shapes of `LayerWeights`, for the chosen heads; ``b_o`` belongs to no head
            and is always whole.
        """
        layer = _own_norms(self._layer(index))
        w, b = getattr(layer, f"w_{name}"), getattr(layer, f"b_{name}")
        if name in ATTENTION:
            w, b = w[heads], (b if name == "o" else b[heads])
        own: dict[str, Any] = {f"w_{name}": _own(w, packed=name in ATTENTION)}
        own[f"b_{name}"] = None if b is None else _own(b)
        return fold_linear(self._plain, index, replace(layer, **own), name)

    def head_norms(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """Reads ``q_norm`` and ``k_norm`` of a layer, [K] each."""
        return fold_head_norms(self._plain, index, _own_norms(self._layer(index)))

    def projection(self, index: int, kind: Literal["q", "k", "v"], unit: int) -> tuple[Tensor, Tensor]:
        """Reads the projection into one head: weights [D, K] and bias [K].

        Args:
            index: of the layer.
            kind: queries, keys or values.
            unit: query head for queries, key/value head for keys and values.
        """
        count = self._plain.heads if kind == "q" else self._plain.kv_heads
        w, b = self.linear(index, kind, _one(unit, count))
        assert b is not None
        return w[0], b[0]

    def output_projection(self, index: int, head: int) -> Tensor:
        """Reads W_O of one query head: [K, D]."""
        return self.linear(index, "o", _one(head, self._plain.heads))[0][0]

    def mlp(self, index: int) -> MlpWeights:
        """Reads the MLP of a layer, of a model that has MLPs."""
        found = self.linears(index)
        maps = {name: self.linear(index, name) if name in found else (None, None) for name in MLP}
        return MlpWeights(*(tensor for name in MLP for tensor in maps[name]))  # type: ignore[arg-type]

    def load_component(self, component: Component) -> dict[str, Tensor]:
        """Reads the tensors of a component by their names in `LayerWeights`, for a `HeadStore`."""
        index, unit = component.layer, component.unit
        if component.kind == "mlp":
            mlp = self.mlp(index)
            return {name: tensor for name, tensor in vars(mlp).items() if tensor is not None}
        if component.kind == "o":
            return {"w_o": self.output_projection(index, unit)}
        w, b = self.projection(index, component.kind, unit)
        return {f"w_{component.kind}": w, f"b_{component.kind}": b}

    # Outside the layers

    def embeddings(self) -> Weights:
        """Reads all weights outside the layers."""
        return FOLDING.embeddings(self._plain, _own_weights(self._outside_layers()))

    def embed(self, token_ids: Tensor) -> Tensor:
        """Reads embeddings of tokens: [..., D] for token ids int64 [...]."""
        return self._rows(self._outside_layers().w_e, token_ids)

    def embed_positions(self, positions: Tensor) -> Tensor:
        """Reads position embeddings, of a model that has them: [..., D] for positions int64 [...]."""
        table = self._outside_layers().w_pos
        assert table is not None
        return self._rows(table, positions)

    def unembedding(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Reads the unembedding in pieces of `folding.OUTPUTS` outputs: weights [D, n] and bias [n]."""
        for first in range(0, self.architecture.output_vocabulary, OUTPUTS):
            views = self._outside_layers()
            outputs = slice(first, first + OUTPUTS)
            b_u = None if views.b_u is None else views.b_u[outputs]
            part = replace(views, w_e=views.w_e[:0], w_u=views.w_u[:, outputs], b_u=b_u, w_pos=None)
            yield fold_unembedding(_own_weights(part))

    @property
    def embeds_positions(self) -> bool:
        """Whether the model has position embeddings."""
        return self._views.w_pos is not None

    @property
    def rotary(self) -> Rotary | None:
        """The frequencies of rotary positions; None in models without them."""
        return self._views.rotary

    def _rows(self, table: Tensor, indices: Tensor) -> Tensor:
        return fold_embedding(self._plain, _own(table.as_subclass(Tensor)[indices]))

    # All reads of views go through the two methods below, which check the files first.

    def _outside_layers(self) -> Weights:
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
    """Copies the norms of a layer into memory of their own; the other tensors stay views."""
    norms: dict[str, Any] = {name: getattr(layer, name) for name in _NORMS}
    return replace(layer, **{name: _own(norm) for name, norm in norms.items() if norm is not None})


def _own_weights(weights: Weights) -> Weights:
    """Copies the tensors outside the layers into memory of their own; the result has no layers."""
    own: dict[str, Any] = {
        name: _own(value) for name, value in vars(weights).items() if isinstance(value, Tensor)
    }
    return replace(weights, layers=(), **own)


def _own(view: Tensor, packed: bool = False) -> Tensor:
    """Copies a view as float32, in the view's memory layout or, with ``packed``, contiguously."""
    layout = torch.contiguous_format if packed else torch.preserve_format
    return view.as_subclass(Tensor).to(torch.float32, copy=True, memory_format=layout)
