"""What jobs share: the memory of a device, and per model its weights in the form the sweep wants."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol
from weakref import WeakSet

import torch

from pahq_server.core.graph import Graph
from pahq_server.engine.sparse.maps import Maps, Rounded
from pahq_server.engine.sparse.weights import Products, SparseWeights
from pahq_server.memory.pool import PagePool
from pahq_server.memory.prefix import PrefixCache
from pahq_server.models.architecture import Model

# Share of the memory for the values of a sweep; the rest is the pool.
SCRATCH_SHARE = 0.15
# Share of that for differences which the next sweep may go on from.
CUT_SHARE = 0.1
# A page holds so many tokens of one head, within limits.
PAGE_TOKENS = 256
MIN_PAGE_BYTES, MAX_PAGE_BYTES = 4 << 10, 256 << 10


class Preemptible(Protocol):
    """A job whose bases can be dropped."""

    def forget(self) -> bool:
        """Drops what can be computed again; returns whether there was anything."""
        ...

    def trim_cuts(self, room: int) -> int:
        """Drops remembered differences until they take at most ``room`` bytes; returns what they take."""
        ...


class DeviceMemory:
    """The memory of one device: a pool of pages, and scratch memory for sweeps.

    Args:
        memory_bytes: for both together.
        page_bytes: a multiple of 16.
        device: where it is.
    """

    def __init__(
        self, memory_bytes: int, page_bytes: int = 64 << 10, device: torch.device | str = "cpu"
    ) -> None:
        pages, self.scratch_bytes = divided(memory_bytes, page_bytes)
        self.pool = PagePool(pages * page_bytes, device, page_bytes)
        self.prefixes = PrefixCache(self.pool)
        self.jobs: WeakSet[Preemptible] = WeakSet()
        self.preemptions = 0
        self._products: dict[bytes, Products] = {}

    @property
    def cut_bytes(self) -> int:
        """Of the scratch memory: for differences that jobs remember between sweeps."""
        return int(CUT_SHARE * self.scratch_bytes)

    @property
    def sweep_bytes(self) -> int:
        """Of the scratch memory: for the values of a sweep."""
        return self.scratch_bytes - self.cut_bytes

    def products(self, namespace: bytes) -> Products:
        """What is kept of products of a model's weights, for all who use the model."""
        return self._products.setdefault(namespace, Products())

    def bound_cuts(self, recent: Sequence[Preemptible]) -> None:
        """Drops remembered differences beyond `cut_bytes`: those of jobs that are not ``recent`` first."""
        room = self.cut_bytes
        for job in [*recent, *(job for job in list(self.jobs) if job not in recent)]:
            room -= job.trim_cuts(room)

    def preempt(self, keep: Collection[Preemptible]) -> None:
        """Drops the bases of all jobs but some; they are computed again when these jobs go on."""
        for job in list(self.jobs):
            if job not in keep:
                self.preemptions += job.forget()


def divided(memory_bytes: int, page_bytes: int) -> tuple[int, int]:
    """How many pages there are, at least one, and the bytes that are left for sweeps."""
    pages = max(1, (memory_bytes - int(memory_bytes * SCRATCH_SHARE)) // page_bytes)
    return pages, max(0, memory_bytes - pages * page_bytes)


def page_bytes_for(models: Collection[Model]) -> int:
    """A page size that suits the widest heads of these models."""
    width = max((model.architecture.d_head * model.dtype.itemsize for model in models), default=256)
    size = 1 << (PAGE_TOKENS * width - 1).bit_length()
    return min(max(size, MIN_PAGE_BYTES), MAX_PAGE_BYTES)


class Shared:
    """A model and what its jobs share.

    Args:
        model: folded (see `models.folding`).
        memory: of the device that the model is on.
        namespace: names the model's weights among all models on the device.
        rounded: what rows multiply with; None for the model's weights.
    """

    def __init__(
        self, model: Model, memory: DeviceMemory, namespace: bytes, rounded: Rounded | None = None
    ) -> None:
        self.model, self.memory, self.namespace, self._rounded = model, memory, namespace, rounded
        self._weights: dict[Graph, SparseWeights] = {}

    def weights(self, graph: Graph) -> SparseWeights:
        """The model's weights under a graph."""
        if graph not in self._weights:
            layers = None if self._rounded is None else self._rounded.layers
            products = self.memory.products(self.namespace)
            self._weights[graph] = SparseWeights(self.model, graph, layers, products)
        return self._weights[graph]

    def maps(self, graph: Graph) -> Maps | None:
        """The linear maps of rows; None for full precision."""
        return None if self._rounded is None else Maps(self.weights(graph), self._rounded)
