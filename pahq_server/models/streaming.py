"""A model in full precision that is read from its checkpoint's files piece by piece, whenever it is used.

It looks like a folded model in memory: its weights have the attributes of `Weights` and its layers those of
`LayerWeights`, but every matrix is read when it is asked for. Biases and norms, which are small, are those of
a resident model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast, overload

import torch
from torch import Tensor

from pahq_server.models.architecture import LayerWeights, Model, Weights
from pahq_server.models.building import placed
from pahq_server.models.checkpoint_weights import Masters
from pahq_server.models.loading import LoadedModel
from pahq_server.models.resident import QuantizedLayer, make_resident
from pahq_server.models.resident import ResidentWeights as Resident
from pahq_server.precision.head_store import Component, HeadStore
from pahq_server.precision.policy import Policy

# Of a head, in the order in which it uses them.
KINDS: tuple[Literal["q", "k", "v", "o"], ...] = ("q", "k", "v", "o")
# What the head store may take, as a share of the weights in full precision.
STORE_SHARE = 0.015


def streamed(resident: Resident, store: HeadStore) -> Model:
    """The full-precision model of a resident one.

    Args:
        resident: its masters are read.
        store: keeps copies of single heads, made with the masters' `Masters.copies`.
    """
    weights = StreamedWeights(resident, store)
    return Model(resident.architecture, cast(Weights, weights), resident.masters.parameters)


def head_store(resident: Resident) -> HeadStore:
    """A store that takes `STORE_SHARE` of what the model has in float32."""
    capacity = int(resident.masters.parameters * 4 * STORE_SHARE)
    return HeadStore(resident.masters.copies, capacity, resident.device)


class StreamedWeights:
    """Has the attributes of `Weights`."""

    def __init__(self, resident: Resident, store: HeadStore) -> None:
        masters, device = resident.masters, resident.device
        self._masters, self._device, self.store = masters, device, store
        self.layers = StreamedLayers(resident, store)
        self.w_e = _Embedding(masters.embed, device)
        self.w_pos = _Embedding(masters.embed_positions, device) if masters.positions else None
        self.b_u, self.rotary = resident.b_u, resident.rotary
        self.norm_w = self.norm_b = None

    @property
    def copies_ahead(self) -> bool:
        """As `Weights.copies_ahead`."""
        return self.store.overlaps

    def read_ahead(self, heads: Iterable[tuple[int, int]]) -> None:
        """As `Weights.read_ahead`: their copies are under way when this returns."""
        arch = self._masters.architecture
        group = arch.heads // arch.kv_heads
        self.store.prefetch(
            Component(kind, layer, head // group if kind in ("k", "v") else head)
            for layer, head in heads
            for kind in KINDS
        )

    @property
    def w_u(self) -> Tensor:
        """[D, U], as float32 for as long as it is held."""
        arch = self._masters.architecture
        by_output, first = torch.empty(arch.output_vocabulary, arch.d_model, device=self._device), 0
        for w, _ in self._masters.unembedding():
            by_output[first : first + w.shape[-1]].copy_(w.T)
            first += w.shape[-1]
        return by_output.T


class StreamedLayers(Sequence["LayerWeights"]):
    """Layers by number, whose matrices are read when they are asked for; whole ones in a loop."""

    def __init__(self, resident: Resident, store: HeadStore) -> None:
        self._masters, self._device = resident.masters, resident.device
        self._layers = [
            cast(LayerWeights, StreamedLayer(small, store, index))
            for index, small in enumerate(resident.layers)
        ]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[LayerWeights]:
        return (placed(self._masters.layer(index), self._device) for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> LayerWeights: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerWeights]: ...
    def __getitem__(self, index: int | slice) -> LayerWeights | Sequence[LayerWeights]:
        return self._layers[index]


class StreamedLayer:
    """Has the attributes of `LayerWeights`."""

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
    """Matrices of one kind by head."""

    store: HeadStore
    kind: Literal["q", "k", "v", "o"]
    layer: int

    def __getitem__(self, unit: int) -> Tensor:
        return self.store.get(Component(self.kind, self.layer, unit))[f"w_{self.kind}"]


@dataclass(frozen=True)
class _Embedding:
    """Rows by token or position."""

    read: Callable[[Tensor], Tensor]
    device: torch.device
    dtype = torch.float32

    def __getitem__(self, ids: Tensor) -> Tensor:
        return self.read(ids.cpu()).to(self.device)


@dataclass(frozen=True)
class ResidentModel(LoadedModel):
    """A model of which only rounded weights stay in memory; ``model`` reads the others when they are used.

    Single heads that are read so are kept for a while in ``store``.
    """

    resident: Resident
    store: HeadStore


def load_rounded(source: str, policy: Policy, device: torch.device | str = "cpu") -> ResidentModel:
    """Loads a checkpoint directory or hub id piece by piece, each rounded before the next is read.

    Args:
        source: directory or hub id.
        policy: how weights are rounded.
        device: where they are kept.

    Raises InvalidRequestError (field ``model``) as `load` does.
    """
    masters = Masters.open(source)
    resident = make_resident(masters, policy, device)
    store = head_store(resident)
    return ResidentModel(
        streamed(resident, store),
        masters.tokenizer,
        masters.revision,
        resident,
        store,
        directory=masters.directory,
        warnings=masters.warnings,
    )
