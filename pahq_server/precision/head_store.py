"""Full-precision copies of single heads and MLPs, read when they are wanted and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Component:
    """What is copied as one.

    Args:
        kind: the queries, keys, values or W_O of one head, or the MLP of a layer.
        layer: index of the layer.
        unit: query head for ``q`` and ``o``, key/value head for ``k`` and ``v``, 0 for ``mlp``.
    """

    kind: Literal["q", "k", "v", "o", "mlp"]
    layer: int
    unit: int = 0


# The tensors of a component by name.
Copy = Mapping[str, Tensor]
# Reads a component into memory of its own, on the CPU.
Loader = Callable[[Component], Copy]


@dataclass(frozen=True)
class Statistics:
    """Since the store was made.

    Args:
        hits, misses: components that `HeadStore.get` found, and that it had to wait for.
        prefetched: components that were read ahead.
        evictions: components that were let go of for others.
        bytes_moved: of all that was read.
    """

    hits: int = 0
    misses: int = 0
    prefetched: int = 0
    evictions: int = 0
    bytes_moved: int = 0


class HeadStore:
    """A cache of components on a device; the least recently wanted go first.

    What `get` gives belongs to whoever got it: evicting only drops the store's own reference, so nothing is
    overwritten while it is in use, and the memory that callers hold of evicted components comes on top of
    the capacity. For one thread alone: nothing is locked.

    On CUDA, components are copied through pinned memory on a stream of the store's own, beside what the
    device computes; `get` makes the caller's current stream wait for the copy, never the caller. On other
    devices `prefetch` reads at once.

    Args:
        load: reads a component; what it raises goes to whoever asked, and the store stays as it was.
        capacity: bytes that the store keeps at most. A component that is larger alone is never kept.
        device: where copies are kept.
    """

    def __init__(self, load: Loader, capacity: int, device: torch.device | str = "cpu") -> None:
        self.capacity = capacity
        self.nbytes = 0
        self.statistics = Statistics()
        self._load = load
        self._entries: OrderedDict[Component, _Entry] = OrderedDict()
        device = torch.device(device)
        self._transfer = _Streamed(device) if device.type == "cuda" else _Direct(device)

    @property
    def overlaps(self) -> bool:
        """Whether `prefetch` copies beside what the device computes."""
        return isinstance(self._transfer, _Streamed)

    def __contains__(self, component: Component) -> bool:
        """Whether a component is kept. Does not count as wanting it."""
        return component in self._entries

    def get(self, component: Component) -> Copy:
        """A component's tensors on the device, ready for the current stream. Not to be written to."""
        entry = self._entries.get(component)
        if entry is None:
            self._count(misses=1)
            entry = self._transfer.start(self._load(component))
            self._keep(component, entry)
        else:
            self._count(hits=1)
            self._entries.move_to_end(component)
        self._transfer.wait(entry)
        return entry.tensors

    def prefetch(self, components: Iterable[Component]) -> None:
        """Reads ahead what is not there yet: in order, and as many as fit together. Others go for them."""
        together = 0
        for component in dict.fromkeys(components):
            entry = self._entries.get(component)
            tensors = self._load(component) if entry is None else entry.tensors
            together += _nbytes(tensors)
            if together > self.capacity:
                return
            if entry is None:
                self._count(prefetched=1)
                self._keep(component, self._transfer.start(tensors))
            else:
                self._entries.move_to_end(component)

    def _keep(self, component: Component, entry: _Entry) -> None:
        size = _nbytes(entry.tensors)
        self._count(bytes_moved=size)
        if size > self.capacity:
            return
        while self.nbytes + size > self.capacity:
            _, oldest = self._entries.popitem(last=False)
            self.nbytes -= _nbytes(oldest.tensors)
            self._count(evictions=1)
        self._entries[component] = entry
        self.nbytes += size

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self.statistics, name) + number for name, number in more.items()}
        self.statistics = replace(self.statistics, **counts)


@dataclass(frozen=True)
class _Entry:
    tensors: Copy
    copied: torch.cuda.Event | None = None


class _Direct:
    """Copies at once, or not at all where tensors are on the device as they come."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, tensors: Copy) -> _Entry:
        return _Entry({name: tensor.to(self._device) for name, tensor in tensors.items()})

    def wait(self, entry: _Entry) -> None:
        """What was started is done."""


class _Streamed:
    """Copies to a CUDA device on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, tensors: Copy) -> _Entry:
        with torch.cuda.stream(self._stream):
            # torch keeps pinned memory from being used again until the copies out of it are done.
            moved = {
                name: tensor.pin_memory().to(self._device, non_blocking=True)
                for name, tensor in tensors.items()
            }
            return _Entry(moved, self._stream.record_event())

    def wait(self, entry: _Entry) -> None:
        stream = torch.cuda.current_stream(self._device)
        assert entry.copied is not None
        stream.wait_event(entry.copied)
        for tensor in entry.tensors.values():
            # Evicted while this stream still reads it, its memory would go to the next copy.
            tensor.record_stream(stream)


def _nbytes(tensors: Copy) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
