"""The head store, compared with a simple model of it that keeps a list."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pahq_server.precision.head_store import Component, HeadStore, HeadStoreStatistics

COMPONENTS = [
    *(Component(kind, layer, unit) for kind in ("q", "k", "v", "o") for layer in (0, 1) for unit in (0, 1)),
    *(Component("mlp", layer) for layer in (0, 1)),
]


# Lengths of the tensors of each kind.
SIZES = {"q": (3, 2), "k": (2, 2), "v": (2, 2), "o": (3,), "mlp": (5, 5, 1)}


class Source:
    """Makes components whose numbers identify them, and records which ones were read.

    A query head takes 20 bytes, keys and values 16, W_O 12 and an MLP 44.
    """

    def __init__(self) -> None:
        self.read: list[Component] = []

    def __call__(self, component: Component) -> dict[str, Tensor]:
        self.read.append(component)
        number = float(COMPONENTS.index(component))
        sizes = enumerate(SIZES[component.kind])
        return {f"{component.kind}{i}": torch.full((size,), number + i / 8) for i, size in sizes}

    @staticmethod
    def nbytes(component: Component) -> int:
        return 4 * sum(SIZES[component.kind])


class Twin:
    """What the store should hold: a list of components, the next one to be evicted first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held: list[Component] = []
        self.read: list[Component] = []
        self.counts = dict.fromkeys(("hits", "misses", "prefetched", "evictions", "bytes_moved"), 0)

    def get(self, component: Component) -> None:
        if component in self.held:
            self.counts["hits"] += 1
            self._want(component)
        else:
            self.counts["misses"] += 1
            self.read.append(component)
            self._keep(component)

    def prefetch(self, components: Sequence[Component]) -> None:
        room = self.capacity
        for component in dict.fromkeys(components):
            if component not in self.held:
                self.read.append(component)
            room -= Source.nbytes(component)
            if room < 0:
                break
            if component in self.held:
                self._want(component)
            else:
                self.counts["prefetched"] += 1
                self._keep(component)

    def _want(self, component: Component) -> None:
        self.held.remove(component)
        self.held.append(component)

    def _keep(self, component: Component) -> None:
        size = Source.nbytes(component)
        self.counts["bytes_moved"] += size
        if size > self.capacity:
            return
        while sum(map(Source.nbytes, self.held)) + size > self.capacity:
            self.held.pop(0)
            self.counts["evictions"] += 1
        self.held.append(component)


WANTED = st.lists(st.sampled_from(COMPONENTS), max_size=5)


@given(capacity=st.integers(0, 200), steps=st.lists(st.sampled_from(COMPONENTS) | WANTED, max_size=30))
def test_the_store_is_its_twin(capacity: int, steps: list[Component | list[Component]]) -> None:
    source, twin = Source(), Twin(capacity)
    store = HeadStore(source, capacity)
    given_out: list[tuple[Component, dict[str, Tensor]]] = []
    for step in steps:
        if isinstance(step, Component):
            twin.get(step)
            given_out.append((step, dict(store.get(step))))
        else:
            twin.prefetch(step)
            store.prefetch(step)
        assert {c for c in COMPONENTS if c in store} == set(twin.held)
        assert source.read == twin.read
        assert store.statistics == HeadStoreStatistics(**twin.counts)
        assert store.nbytes == sum(map(Source.nbytes, twin.held)) <= capacity
    # Tensors that were returned are unchanged, even if they have been evicted since.
    for component, tensors in given_out:
        expected = Source()(component)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_what_is_read_ahead_is_there_when_it_is_wanted() -> None:
    source = Source()
    store = HeadStore(source, 1000)
    wanted = COMPONENTS[:4]
    store.prefetch(wanted)
    for component in wanted:
        store.get(component)
    assert source.read == wanted
    assert store.statistics == HeadStoreStatistics(hits=4, prefetched=4, bytes_moved=store.nbytes)


def test_reading_ahead_never_costs_what_it_has_just_read() -> None:
    store = HeadStore(Source(), 50)
    store.prefetch(c for c in COMPONENTS if c.kind == "q")  # four of 20 bytes each
    assert [c for c in COMPONENTS if c in store] == COMPONENTS[:2]
    assert store.statistics.evictions == 0


def test_a_component_that_is_too_large_is_given_but_not_kept() -> None:
    source = Source()
    store = HeadStore(source, 43)
    small, large = Component("q", 0), Component("mlp", 0)
    store.get(small)
    for _ in range(2):
        assert set(store.get(large)) == {"mlp0", "mlp1", "mlp2"}
    assert large not in store
    assert small in store
    assert store.statistics == HeadStoreStatistics(misses=3, bytes_moved=20 + 2 * 44)


def test_a_failing_reader_leaves_the_store_as_it_was() -> None:
    failing: set[Component] = {COMPONENTS[1]}
    source = Source()

    def read(component: Component) -> dict[str, Tensor]:
        if component in failing:
            raise OSError("gone")
        return source(component)

    store = HeadStore(read, 1000)
    store.get(COMPONENTS[0])
    with pytest.raises(OSError, match="gone"):
        store.get(COMPONENTS[1])
    with pytest.raises(OSError, match="gone"):
        store.prefetch(COMPONENTS[:3])
    assert [c for c in COMPONENTS if c in store] == COMPONENTS[:1]
    failing.clear()
    store.get(COMPONENTS[1])
    assert store.nbytes == 40


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_on_a_device_are_whole_under_eviction() -> None:
    """Each component is used while later ones are being copied, in a store with room for two."""
    size = 1 << 20

    def read(component: Component) -> dict[str, Tensor]:
        return {"w": torch.full((size,), float(component.layer)).view(1024, -1).T}

    store = HeadStore(read, 2 * 4 * size, "cuda")
    totals = []
    for layer in range(40):
        store.prefetch([Component("q", layer), Component("q", layer + 1)])
        w = store.get(Component("q", layer))["w"]
        assert w.device.type == "cuda"
        assert w.stride() == (1, 1024)
        totals.append((w * 1.0).amax() + (w * 1.0).amin())
    assert [float(total) for total in totals] == [2.0 * layer for layer in range(40)]
    assert store.statistics.hits == 40
    assert store.nbytes <= store.capacity
