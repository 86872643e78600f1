"""A full-precision model whose matrices are read from its checkpoint's files whenever they are used.

It serves passes in full precision beside rounded weights (`resident`). It looks like a folded model in
memory: its weights have the attributes of `Weights` and its layers those of `LayerWeights`, but each matrix
is read when it is asked for, single heads and MLPs through a `HeadStore` that keeps the most recent ones.
Biases and norms, which are small, are those of the resident weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast, overload

import torch
from torch import Tensor

from pahq_server.models.architecture import LayerWeights, Model, Weights
from pahq_server.models.building import to_device
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.loading import LoadedModel
from pahq_server.models.resident import QuantizedLayer, ResidentWeights, make_resident
from pahq_server.precision.head_store import Component, HeadStore
from pahq_server.precision.policy import Policy

# The matrices of a head in the order in which a pass uses them.
KINDS: tuple[Literal["q", "k", "v", "o"], ...] = ("q", "k", "v", "o")
# Capacity of the head store, as a share of the model's bytes in float32.
STORE_SHARE = 0.015


def streamed(resident: ResidentWeights, store: HeadStore) -> Model:
    """Returns the full-precision model of resident weights.

    Args:
        resident: whose checkpoint is read.
        store: keeps copies of single heads; must load them with `CheckpointWeights.load_component`.
    """
    weights = StreamedWeights(resident, store)
    return Model(resident.architecture, cast(Weights, weights), resident.checkpoint.parameters)


def head_store(resident: ResidentWeights) -> HeadStore:
    """Makes an empty store with a capacity of `STORE_SHARE` of the model in float32."""
    capacity = int(resident.checkpoint.parameters * 4 * STORE_SHARE)
    return HeadStore(resident.checkpoint.load_component, capacity, resident.device)


class StreamedWeights:
    """Stands in for `Weights`: has the same attributes, but reads matrices when they are asked for."""

    def __init__(self, resident: ResidentWeights, store: HeadStore) -> None:
        checkpoint, device = resident.checkpoint, resident.device
        self._checkpoint, self._device, self.store = checkpoint, device, store
        self.layers = StreamedLayers(resident, store)
        self.w_e = _Embedding(checkpoint.embed, device)
        self.w_pos = _Embedding(checkpoint.embed_positions, device) if checkpoint.embeds_positions else None
        self.b_u, self.rotary = resident.b_u, resident.rotary
        self.norm_w = self.norm_b = None

    @property
    def copies_ahead(self) -> bool:
        """Whether `read_ahead` copies while the device computes."""
        return self.store.overlaps

    def read_ahead(self, heads: Iterable[tuple[int, int]]) -> None:
        """Starts copying the matrices of heads, given as (layer, head), that will be used next."""
        arch = self._checkpoint.architecture
        group = arch.heads // arch.kv_heads
        self.store.prefetch(
            Component(kind, layer, head // group if kind in ("k", "v") else head)
            for layer, head in heads
            for kind in KINDS
        )

    @property
    def w_u(self) -> Tensor:
        """The unembedding, float32 [D, U]. Read anew each time, and not kept."""
        arch = self._checkpoint.architecture
        by_output, first = torch.empty(arch.output_vocabulary, arch.d_model, device=self._device), 0
        for w, _ in self._checkpoint.unembedding():
            by_output[first : first + w.shape[-1]].copy_(w.T)
            first += w.shape[-1]
        return by_output.T


class StreamedLayers(Sequence["LayerWeights"]):
    """The layers of `StreamedWeights`.

    ``layers[i]`` is a `StreamedLayer`, whose matrices are read one by one when they are asked for. Iterating
    gives whole layers on the device, one at a time, as `whole` does.
    """

    def __init__(self, resident: ResidentWeights, store: HeadStore) -> None:
        self._checkpoint, self._device = resident.checkpoint, resident.device
        self._layers = [
            cast(LayerWeights, StreamedLayer(small, store, index))
            for index, small in enumerate(resident.layers)
        ]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[LayerWeights]:
        return (self.whole(index) for index in range(len(self)))

    def whole(self, index: int) -> LayerWeights:
        """Reads all matrices of a layer."""
        return to_device(self._checkpoint.layer(index), self._device)

    @overload
    def __getitem__(self, index: int) -> LayerWeights: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerWeights]: ...
    def __getitem__(self, index: int | slice) -> LayerWeights | Sequence[LayerWeights]:
        return self._layers[index]


class StreamedLayer:
    """Stands in for `LayerWeights`. Stacks of heads can only be indexed, by the number of a head."""

    def __init__(self, small: QuantizedLayer, store: HeadStore, index: int) -> None:
        self._store, self._index, self._gated = store, index, small.w_gate is not None
        self.w_q, self.w_k = _Heads(store, "q", index), _Heads(store, "k", index)
        self.w_v, self.w_o = _Heads(store, "v", index), _Heads(store, "o", index)
        self.b_q, self.b_k, self.b_v, self.b_o = small.b_q, small.b_k, small.b_v, small.b_o
        self.q_norm, self.k_norm = small.q_norm, small.k_norm
        self.b_in, self.b_gate, self.b_out = small.b_in, small.b_gate, small.b_out

    @property
    def w_in(self) -> Tensor:
        return self._of_mlp("w_in")

    @property
    def w_gate(self) -> Tensor | None:
        return self._of_mlp("w_gate") if self._gated else None

    @property
    def w_out(self) -> Tensor:
        return self._of_mlp("w_out")

    def _of_mlp(self, name: str) -> Tensor:
        return self._store.get(Component("mlp", self._index))[name]


@dataclass(frozen=True)
class _Heads:
    """The matrices of one kind in a layer. Indexing with the number of a head reads that head's."""

    store: HeadStore
    kind: Literal["q", "k", "v", "o"]
    layer: int

    def __getitem__(self, unit: int) -> Tensor:
        return self.store.get(Component(self.kind, self.layer, unit))[f"w_{self.kind}"]


@dataclass(frozen=True)
class _Embedding:
    """An embedding matrix. Indexing it with a tensor of ids reads these rows only."""

    read: Callable[[Tensor], Tensor]
    device: torch.device
    dtype = torch.float32

    def __getitem__(self, ids: Tensor) -> Tensor:
        return self.read(ids.cpu()).to(self.device)


@dataclass(frozen=True)
class ResidentModel(LoadedModel):
    """A served model of which only rounded weights stay in memory.

    Args:
        resident: the rounded weights.
        store: keeps full-precision copies of recently used heads. ``model`` is in full precision and reads
            through it.
    """

    resident: ResidentWeights
    store: HeadStore


def load_rounded(source: str, policy: Policy, device: torch.device | str = "cpu") -> ResidentModel:
    """Loads a model whose weights stay in memory rounded, each piece rounded before the next one is read.

    Args:
        source: checkpoint directory or hub id. What it holds in the policy's 8-bit format already is kept as
            it is.
        policy: how weights are rounded.
        device: on which the rounded weights are kept.

    Raises InvalidRequestError (field ``model``) as `loading.load` does.
    """
    checkpoint = CheckpointWeights.open(source)
    resident = make_resident(checkpoint, policy, device)
    store = head_store(resident)
    return ResidentModel(
        streamed(resident, store),
        checkpoint.tokenizer,
        checkpoint.revision,
        resident,
        store,
        directory=checkpoint.directory,
        warnings=checkpoint.warnings,
        stored=checkpoint.formats,
    )
