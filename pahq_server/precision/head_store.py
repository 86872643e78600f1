"""A cache of full-precision weights of single heads and MLPs, read when they are needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Component:
    """A part of a model that is read and kept as a whole.

    Args:
        kind: the projection into queries, keys or values of one head, its output projection W_O, or the MLP
            of a layer.
        layer: index of the layer.
        unit: query head for ``q`` and ``o``, key/value head for ``k`` and ``v``, 0 for ``mlp``.
    """

    kind: Literal["q", "k", "v", "o", "mlp"]
    layer: int
    unit: int = 0


# The tensors of a component by their names in `models.architecture.LayerWeights`.
ComponentTensors = Mapping[str, Tensor]
# Reads a component into memory of its own on the CPU.
LoadComponent = Callable[[Component], ComponentTensors]


@dataclass(frozen=True)
class HeadStoreStatistics:
    """Counts since the store was made.

    Args:
        hits: calls of `HeadStore.get` that found the component.
        misses: calls of `HeadStore.get` that had to read it.
        prefetched: components that `HeadStore.prefetch` read.
        evictions: components that were dropped to make room.
        bytes_moved: bytes of all components that were read.
    """

    hits: int = 0
    misses: int = 0
    prefetched: int = 0
    evictions: int = 0
    bytes_moved: int = 0


class HeadStore:
    """A cache of components on a device that evicts the least recently used ones.

    Evicting a component only drops the store's reference to its tensors. Callers may go on using them; the
    memory of evicted tensors that are still in use comes on top of the capacity. Not thread-safe: use it from
    one thread.

    On CUDA, components are copied through pinned memory on a stream of the store's own while the device
    computes. `get` makes the caller's current stream wait for the copy, but not the caller. On other devices
    `prefetch` copies at once.

    Args:
        load: reads a component. Its errors are raised to the caller and leave the store unchanged.
        capacity: most bytes to keep. A component that alone is larger is never kept.
        device: where the tensors are kept.

    Attributes:
        nbytes: bytes of the components that are kept.
        statistics: counts since the store was made.
    """

    def __init__(self, load: LoadComponent, capacity: int, device: torch.device | str = "cpu") -> None:
        self.capacity = capacity
        self.nbytes = 0
        self.statistics = HeadStoreStatistics()
        self._load = load
        self._entries: OrderedDict[Component, _Entry] = OrderedDict()
        device = torch.device(device)
        self._transfer = (
            _OverlappedTransfer(device) if device.type == "cuda" else _SynchronousTransfer(device)
        )

    @property
    def overlaps(self) -> bool:
        """Whether `prefetch` copies while the device computes."""
        return isinstance(self._transfer, _OverlappedTransfer)

    def __contains__(self, component: Component) -> bool:
        """Whether a component is kept. Asking does not count as a use."""
        return component in self._entries

    def get(self, component: Component) -> ComponentTensors:
        """Returns a component's tensors on the device, ready for the current stream.

        They must not be written to.
        """
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
        """Reads components ahead, in order, as many as fit into the store together.

        Other components are evicted for them.
        """
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
    """A component that is kept.

    Args:
        tensors: on the device.
        copied: happens when the copy to the device has ended; None if it ended before the entry was made.
    """

    tensors: ComponentTensors
    copied: torch.cuda.Event | None = None


class _SynchronousTransfer:
    """Copies at once; tensors that are on the device already are not copied."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self, tensors: ComponentTensors) -> _Entry:
        return _Entry({name: tensor.to(self._device) for name, tensor in tensors.items()})

    def wait(self, entry: _Entry) -> None:
        """Does nothing: `start` has finished the copy."""


class _OverlappedTransfer:
    """Copies to a CUDA device on a stream of its own, while other streams compute."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def start(self, tensors: ComponentTensors) -> _Entry:
        with torch.cuda.stream(self._stream):
            # The pinned memory may be dropped here: torch does not reuse it before the copy has ended.
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
            # Without this, the memory of a component that is evicted now could be reused while this stream
            # still reads it.
            tensor.record_stream(stream)


def _nbytes(tensors: ComponentTensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
