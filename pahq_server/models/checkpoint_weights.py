"""The full-precision weights of a checkpoint, folded and read piece by piece from its mapped files.

A model whose weights stay in memory rounded (`resident`) still needs single heads in full precision. They
come from here: reading one head costs no more than that head.

Where the checkpoint holds weights in 8 bits itself, "full precision" are the numbers that its codes and
scales stand for, and `stored` gives the codes without a detour.

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
from pahq_server.models.checkpoint import FLOATS
from pahq_server.models.folding import (
    ATTENTION,
    FOLDING,
    MLP,
    OUTPUTS,
    Linear,
    fold_embedding,
    fold_factors,
    fold_head_norms,
    fold_layer,
    fold_linear,
    fold_unembedding,
    linears,
)
from pahq_server.models.loading import LoadedModel, map_files
from pahq_server.precision.head_store import Component
from pahq_server.precision.policy import Format
from pahq_server.precision.quantized import DTYPES, Quantized, codes_to_floats

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
        loaded: the plain model, whose tensors are views of the files in any floating dtype, or 8-bit codes
            whose scales are views of ``loaded.scales``.
        check: raises ConflictError if a file has changed; called before views are read.

    Attributes:
        architecture: of the folded model.
        layers: how many.
        parameters, tokenizer, revision, directory, warnings, formats: as `loading.load` gives them (the last
            one as ``stored``).
    """

    def __init__(self, loaded: LoadedModel, check: Callable[[], None]) -> None:
        self._plain, self._views = loaded.model.architecture, loaded.model.weights
        self._scales = loaded.scales
        self._check = check
        self.formats = loaded.stored
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
        w, b, scale = getattr(layer, f"w_{name}"), getattr(layer, f"b_{name}"), self._scale(index, name)
        if name in ATTENTION:
            w, b = w[heads], (b if name == "o" else b[heads])
            scale = None if scale is None else scale[heads]
        own: dict[str, Any] = {f"w_{name}": _floats(w, scale, packed=name in ATTENTION)}
        own[f"b_{name}"] = None if b is None else _own(b)
        return fold_linear(self._plain, index, replace(layer, **own), name)

    def stored(self, index: int, name: Linear, form: Format) -> tuple[Quantized, Tensor | None] | None:
        """Reads one linear map of a layer as the checkpoint's own 8-bit codes.

        Args:
            index: of the layer.
            name: one of `linears`.
            form: of the codes.

        Returns:
            Weights, which are the numbers that `linear` gives up to float32 rounding, and bias; None if the
            checkpoint does not hold the map in this format, or not with one scale per output once it is
            folded: where outputs are centred, and where a fused matrix is stored input by input.
        """
        scale = self._scale(index, name)
        if scale is None:
            return None
        layer = _own_norms(self._layer(index))
        codes, b, factors = getattr(layer, f"w_{name}"), getattr(layer, f"b_{name}"), None
        if codes.dtype is DTYPES.get(form) and _per_output(scale):
            factors = fold_factors(self._plain, index, layer, name)
        if factors is None:
            return None
        inputs, factor = factors
        shift = layer.norm2_b if name in ("in", "gate") else layer.norm1_b
        if name not in ("o", "out") and shift is not None:
            b = self.linear(index, name)[1]
        elif b is not None:
            b = _own(b) * factor
        return _codes(codes, scale, inputs, factor), b

    def _scale(self, index: int, name: Linear) -> Tensor | None:
        """Returns a view of what the stored numbers of a map are multiplied by, in its shape."""
        if self._scales is None:
            return None
        scale: Tensor | None = getattr(self._scales.layers[index], f"w_{name}")
        return scale

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
        return FOLDING.embeddings(self._plain, _own_weights(self._outside_layers(), self._scales))

    def embed(self, token_ids: Tensor) -> Tensor:
        """Reads embeddings of tokens: [..., D] for token ids int64 [...]."""
        return self._rows("w_e", token_ids)

    def embed_positions(self, positions: Tensor) -> Tensor:
        """Reads position embeddings, of a model that has them: [..., D] for positions int64 [...]."""
        assert self.embeds_positions
        return self._rows("w_pos", positions)

    def unembedding(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Reads the unembedding in pieces of `folding.OUTPUTS` outputs: weights [D, n] and bias [n]."""
        for first in range(0, self.architecture.output_vocabulary, OUTPUTS):
            outputs = slice(first, first + OUTPUTS)
            part = _some_outputs(self._outside_layers(), outputs)
            scales = None if self._scales is None else _some_outputs(self._scales, outputs)
            yield fold_unembedding(_own_weights(part, scales))

    def stored_unembedding(self, form: Format) -> tuple[Quantized, Tensor | None] | None:
        """Reads the whole unembedding as the checkpoint's own codes; None if it has none, as for `stored`."""
        views, scales = self._outside_layers(), self._scales
        if scales is None or views.w_u.dtype is not DTYPES.get(form) or not _per_output(scales.w_u):
            return None
        b = None if views.b_u is None else _own(views.b_u)
        if views.norm_b is not None:
            b = torch.cat([part for _, part in self.unembedding() if part is not None])
        inputs = None if views.norm_w is None else _own(views.norm_w)
        return _codes(views.w_u, scales.w_u, inputs, 1.0), b

    @property
    def embeds_positions(self) -> bool:
        """Whether the model has position embeddings."""
        return self._views.w_pos is not None

    @property
    def rotary(self) -> Rotary | None:
        """The frequencies of rotary positions; None in models without them."""
        return self._views.rotary

    def _rows(self, name: Literal["w_e", "w_pos"], indices: Tensor) -> Tensor:
        def some(weights: Weights) -> Tensor:
            rows: Tensor = getattr(weights, name).as_subclass(Tensor)[indices]
            return rows

        scale = None if self._scales is None else some(self._scales)
        return fold_embedding(self._plain, _floats(some(self._outside_layers()), scale))

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


def _some_outputs(weights: Weights, outputs: slice) -> Weights:
    """Returns some outputs of the unembedding; of the embeddings nothing."""
    b_u = None if weights.b_u is None else weights.b_u[outputs]
    return replace(weights, w_e=weights.w_e[:0], w_u=weights.w_u[:, outputs], b_u=b_u, w_pos=None)


def _own_weights(weights: Weights, scales: Weights | None) -> Weights:
    """Copies the tensors outside the layers into memory of their own; the result has no layers."""
    own: dict[str, Any] = {
        name: _floats(value, None if scales is None else getattr(scales, name))
        for name, value in vars(weights).items()
        if isinstance(value, Tensor)
    }
    return replace(weights, layers=(), **own)


def _floats(view: Tensor, scale: Tensor | None, packed: bool = False) -> Tensor:
    """Does what `_own` does, for a view of floats or of codes with a view of their scales."""
    if view.dtype in FLOATS:
        return _own(view, packed)
    assert scale is not None
    floats = codes_to_floats(view.as_subclass(Tensor), torch.float32)
    floats = floats.contiguous() if packed else floats
    return floats.mul_(scale.as_subclass(Tensor))


def _codes(view: Tensor, scale: Tensor, inputs: Tensor | None, factor: float) -> Quantized:
    """Copies codes and scales, whose views have the shape of the matrices, into memory of their own."""
    data = view.as_subclass(Tensor).clone(memory_format=torch.contiguous_format)
    return Quantized.of(data, scale.as_subclass(Tensor)[..., :1, :] * factor, inputs)


def _per_output(scale: Tensor) -> bool:
    """Whether all inputs of an output have the same scale, in a view of scales [..., I, O]."""
    return scale.stride(-2) == 0


def _own(view: Tensor, packed: bool = False) -> Tensor:
    """Copies a view as float32, in the view's memory layout or, with ``packed``, contiguously."""
    layout = torch.contiguous_format if packed else torch.preserve_format
    return view.as_subclass(Tensor).to(torch.float32, copy=True, memory_format=layout)
