"""The memory of a device: a pool of pages, scratch memory for batches, and tensors that are kept in pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Protocol
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from pahq_server.engine.sparse.weights import WeightProducts
from pahq_server.memory.pool import PagePool
from pahq_server.memory.prefix import PrefixCache
from pahq_server.memory.table import BlockTable
from pahq_server.models.architecture import Model

# Rows by which a block table grows.
GROWTH = 16

Shapes = tuple[tuple[int, ...], ...]


class PagedTensors:
    """Tensors by layer and name, in pages that several sets may share. Whoever makes a set releases it.

    Args:
        pool: where the pages come from.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.tables: dict[int, BlockTable] = {}
        # By layer and name: the row in the layer's table, and the shapes of the tensors.
        self._rows: dict[tuple[int, Hashable], tuple[int, Shapes]] = {}
        # By layer: how many rows of its table have been used, and those among them that were dropped.
        self._filled: dict[int, int] = {}
        self._dropped: dict[int, list[int]] = {}
        # Tensors that are read in place; they stay valid until they are written to or released.
        self._views: dict[tuple[int, Hashable], tuple[Tensor, ...]] = {}

    def has(self, layer: int, name: Hashable) -> bool:
        """Tells whether there are tensors of this name."""
        return (layer, name) in self._rows

    def get(self, layer: int, name: Hashable) -> Tensor:
        """Returns the one tensor of a name: a view if its pages are consecutive, otherwise a copy.

        Raises KeyError if there is none.
        """
        return self.get_all(layer, name)[0]

    def get_all(self, layer: int, name: Hashable) -> tuple[Tensor, ...]:
        """Returns the tensors of a name: views if their pages are consecutive, otherwise copies.

        Raises KeyError if there are none.
        """
        views = self._views.get((layer, name))
        if views is None:
            row, shapes = self._rows[layer, name]
            flat = self.tables[layer].get(row)
            parts = flat.split([math.prod(shape) for shape in shapes])
            views = tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
            if flat.untyped_storage().data_ptr() == self.pool.storage.untyped_storage().data_ptr():
                self._views[layer, name] = views
        return views

    def get_or_put(self, layer: int, name: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """Returns the tensor of a name, made and stored if there is none; see `put`."""
        return self.get(layer, name) if self.has(layer, name) else self.put(layer, name, make())

    def put(self, layer: int, name: Hashable, tensor: Tensor) -> Tensor:
        """Stores a tensor, instead of what had the name, and returns it as stored.

        Raises OutOfPagesError, and then keeps what there was.
        """
        return self.put_all(layer, name, (tensor,))[0]

    def put_all(self, layer: int, name: Hashable, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Stores tensors of one dtype under one name; see `put`."""
        table = self.tables.get(layer)
        if table is None:
            table = self.tables[layer] = BlockTable(self.pool, GROWTH)
        row = self._row(layer, name)
        if row == table.num_rows:
            table.grow(row)
        flat = [tensor.flatten() for tensor in tensors]
        table.put(row, torch.cat(flat) if len(flat) > 1 else flat[0])
        self._filled[layer] = max(self._filled.get(layer, 0), row + 1)
        if row in self._dropped.get(layer, ()):
            self._dropped[layer].remove(row)
        self._rows[layer, name] = row, tuple(tuple(tensor.shape) for tensor in tensors)
        self._views.pop((layer, name), None)
        return self.get_all(layer, name)

    def drop(self, layer: int, name: Hashable) -> None:
        """Forgets the tensors of a name, if there are any."""
        if self.has(layer, name):
            row, _ = self._rows.pop((layer, name))
            self._views.pop((layer, name), None)
            self.tables[layer].drop(row)
            self._dropped.setdefault(layer, []).append(row)

    def _row(self, layer: int, name: Hashable) -> int:
        """Returns the row of a name, or a free one for a new name."""
        if self.has(layer, name):
            return self._rows[layer, name][0]
        dropped = self._dropped.get(layer)
        return dropped[-1] if dropped else self._filled.get(layer, 0)

    def shares(self, other: PagedTensors, layer: int, name: Hashable) -> bool:
        """Tells whether both sets hold the tensors of a name in the same pages."""
        if not (self.has(layer, name) and other.has(layer, name)):
            return False
        pages, others = (each.tables[layer].blocks(each._rows[layer, name][0]) for each in (self, other))
        return np.array_equal(pages, others)

    def fork(self) -> PagedTensors:
        """Returns a set with the same tensors in the same pages.

        Writes to either set do not show in the other.
        """
        fork = PagedTensors(self.pool)
        fork.tables = {layer: table.fork() for layer, table in self.tables.items()}
        fork._rows, fork._filled, fork._views = dict(self._rows), dict(self._filled), dict(self._views)
        fork._dropped = {layer: list(rows) for layer, rows in self._dropped.items()}
        return fork

    def release(self) -> None:
        """Forgets all tensors. May be called again."""
        for table in self.tables.values():
            table.release()
        self.tables.clear()
        self._rows.clear()
        self._filled.clear()
        self._dropped.clear()
        self._views.clear()


# Share of the memory for the values of a batch; the rest is the pool.
SCRATCH_SHARE = 0.15
# Share of the scratch memory for changes by removed edges that the next batch may go on from.
ABLATION_SHARE = 0.1
# How many tokens of one head a page holds, as far as the limits of its size allow.
PAGE_TOKENS = 256
MIN_PAGE_BYTES, MAX_PAGE_BYTES = 4 << 10, 256 << 10


class Preemptible(Protocol):
    """A job that can free memory on request."""

    def drop_bases(self) -> bool:
        """Drops base activations, which can be computed again; returns whether there were any."""
        ...

    def trim_ablations(self, room: int) -> int:
        """Drops remembered changes by removed edges until they take at most ``room`` bytes.

        Returns the bytes that the remaining ones take.
        """
        ...


class DeviceMemory:
    """The memory of one device: a pool of pages, and scratch memory for batches.

    Args:
        memory_bytes: for the pages and the scratch memory together.
        page_bytes: a multiple of 16.
        device: where the memory is.
    """

    def __init__(
        self, memory_bytes: int, page_bytes: int = 64 << 10, device: torch.device | str = "cpu"
    ) -> None:
        pages, self.scratch_bytes = divided(memory_bytes, page_bytes)
        self.pool = PagePool(pages * page_bytes, device, page_bytes)
        self.prefixes = PrefixCache(self.pool)
        self.jobs: WeakSet[Preemptible] = WeakSet()
        self.preemptions = 0
        self._products: dict[bytes, WeightProducts] = {}

    @property
    def ablation_bytes(self) -> int:
        """The part of the scratch memory in which jobs keep changes by removed edges between batches."""
        return int(ABLATION_SHARE * self.scratch_bytes)

    @property
    def batch_bytes(self) -> int:
        """The part of the scratch memory for the values of a batch."""
        return self.scratch_bytes - self.ablation_bytes

    def products(self, namespace: bytes) -> WeightProducts:
        """Returns the products of a model's weights that are kept, for all jobs on the model."""
        return self._products.setdefault(namespace, WeightProducts())

    def bound_ablations(self, recent: Sequence[Preemptible]) -> None:
        """Drops changes by removed edges beyond `ablation_bytes`, those of ``recent`` jobs last."""
        room = self.ablation_bytes
        for job in [*recent, *(job for job in list(self.jobs) if job not in recent)]:
            room -= job.trim_ablations(room)

    def preempt(self, keep: Collection[Preemptible]) -> None:
        """Drops the base activations of all jobs except ``keep``; jobs that go on compute them again."""
        for job in list(self.jobs):
            if job not in keep:
                self.preemptions += job.drop_bases()


def divided(memory_bytes: int, page_bytes: int) -> tuple[int, int]:
    """Divides memory: returns the number of pages, at least one, and the bytes that are left for batches."""
    pages = max(1, (memory_bytes - int(memory_bytes * SCRATCH_SHARE)) // page_bytes)
    return pages, max(0, memory_bytes - pages * page_bytes)


def page_bytes_for(models: Collection[Model]) -> int:
    """Returns a page size that suits the widest heads of these models."""
    width = max((model.architecture.d_head * model.dtype.itemsize for model in models), default=256)
    size = 1 << (PAGE_TOKENS * width - 1).bit_length()
    return min(max(size, MIN_PAGE_BYTES), MAX_PAGE_BYTES)
