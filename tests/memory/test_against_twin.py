"""Thousands of random operations, compared with a simple model that keeps tensors in dicts."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from pahq_server.memory.pool import OutOfPagesError, PagePool
from pahq_server.memory.prefix import PrefixCache, chain
from pahq_server.memory.table import BlockTable

PAGE, PAGES, ROWS, OPERATIONS = 64, 96, 5, 3000
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int8]
Rows = dict[int, Tensor]


def equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


class Machine:
    """Applies each operation to tables and to plain dicts of tensors."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pool = PagePool(PAGES * PAGE, page_bytes=PAGE)
        self.cache = PrefixCache(self.pool)
        self.tables: list[tuple[BlockTable, Rows]] = [(BlockTable(self.pool, ROWS), {})]
        self.cached: dict[bytes, tuple[Rows, bytes | None]] = {}
        self.loose: list[tuple[np.ndarray, Tensor]] = []
        self.refused = 0

    def step(self) -> None:
        operations = [self.put] * 4 + [self.put_range] * 6 + [self.drop, self.share] * 2
        operations += [self.fork, self.release, self.make, self.insert, self.lookup]
        operations += [self.evict, self.take_pages, self.give_pages]
        try:
            self.random.choice(operations)()
        except OutOfPagesError:  # nothing may have changed but evictions, which the next check shows
            self.refused += 1
        self.forget_evicted()

    def tensor(self, elements: int, dtype: torch.dtype) -> Tensor:
        return torch.tensor([self.random.randrange(-100, 100) for _ in range(elements)]).to(dtype)

    def any(self) -> tuple[BlockTable, Rows]:
        return self.random.choice(self.tables)

    def put(self) -> None:
        table, twin = self.any()
        row, dtype = self.random.randrange(ROWS), self.random.choice(DTYPES)
        elements = self.random.choice([0, 1, self.random.randrange(120)])
        tensor = self.tensor(elements * 2, dtype).view(2, elements).T
        table.put(row, tensor)
        twin[row] = tensor.clone()

    def put_range(self) -> None:
        table, twin = self.any()
        if twin:
            row = self.random.choice(sorted(twin))
            first = self.random.randint(0, twin[row].numel())
            tensor = self.tensor(self.random.randint(0, twin[row].numel() - first), twin[row].dtype)
            table.put_range(row, first, tensor)
            flat = twin[row].flatten()
            flat[first : first + tensor.numel()] = tensor
            twin[row] = flat.view(twin[row].shape)

    def drop(self) -> None:
        table, twin = self.any()
        if twin:
            row = self.random.choice(sorted(twin))
            table.drop(row)
            del twin[row]

    def share(self) -> None:
        (table, twin), (other, other_twin) = self.any(), self.any()
        if other_twin:
            row, other_row = self.random.randrange(ROWS), self.random.choice(sorted(other_twin))
            table.share(row, other, other_row)
            twin[row] = other_twin[other_row].clone()

    def fork(self) -> None:
        table, twin = self.any()
        if len(self.tables) < 6:
            self.tables.append((table.fork(), {row: tensor.clone() for row, tensor in twin.items()}))

    def release(self) -> None:
        table, twin = self.any()
        table.release()
        twin.clear()
        if len(self.tables) > 1:
            self.tables = [kept for kept in self.tables if kept[0] is not table]

    def make(self) -> None:
        if len(self.tables) < 6:
            self.tables.append((BlockTable(self.pool, ROWS), {}))

    def keys(self) -> list[bytes]:
        """The keys of one of few prompts that begin with the same tokens."""
        return chain(b"", [self.random.randrange(2) for _ in range(self.random.randint(1, 4))], 1)

    def insert(self) -> None:
        table, twin = self.any()
        parents: list[bytes | None] = [None]
        for key in self.keys():
            if key not in self.cached:
                self.cache.insert(key, table, parents[-1])
                self.cached[key] = ({row: tensor.clone() for row, tensor in twin.items()}, parents[-1])
                return
            parents.append(key)

    def lookup(self) -> None:
        keys = self.keys()
        found = self.cache.lookup(keys)
        assert len(found) == next((i for i, key in enumerate(keys) if key not in self.cached), len(keys))
        for key, table in zip(keys, found, strict=False):
            self.compare(table, self.cached[key][0])
        for table in found[: len(found) - (len(self.tables) < 6)]:
            table.release()
        if len(self.tables) < 6 and found:
            rows = self.cached[keys[len(found) - 1]][0]
            self.tables.append((found[-1], {row: tensor.clone() for row, tensor in rows.items()}))

    def evict(self) -> None:
        before = self.pool.free
        assert self.cache.evict(self.random.randint(1, 8)) == self.pool.free - before

    def forget_evicted(self) -> None:
        self.cached = {key: value for key, value in self.cached.items() if key in self.cache}
        assert self.cache.statistics().entries == len(self.cached)
        assert all(parent is None or parent in self.cached for _, parent in self.cached.values())

    def take_pages(self) -> None:
        pages = self.pool.allocate(self.random.randint(0, 12))
        tensor = self.tensor(len(pages) * PAGE, torch.int8)
        self.pool.write(pages, tensor)
        self.loose.append((pages, tensor))

    def give_pages(self) -> None:
        self.random.shuffle(self.loose)
        for pages, _ in self.loose[2:]:
            self.pool.release(pages)
        del self.loose[2:]

    def compare(self, table: BlockTable, twin: Rows) -> None:
        assert table.rows() == sorted(twin)
        assert all(equal(table.get(row), tensor) for row, tensor in twin.items())

    def check(self) -> None:
        self.pool.check_integrity([pages for pages, _ in self.loose])
        for table, twin in self.tables:
            self.compare(table, twin)
        for key, (twin, _) in self.cached.items():
            self.compare(self.cache._entries[key].table, twin)
        assert all(equal(self.pool.read(p, torch.int8, (len(p) * PAGE,)), t) for p, t in self.loose)


@pytest.mark.parametrize("seed", range(3))
def test_the_pool_holds_what_plain_copies_hold(seed: int) -> None:
    machine = Machine(seed)
    for operation in range(OPERATIONS):
        machine.step()
        if operation % 50 == 0:
            machine.check()
    machine.check()
    statistics = machine.pool.statistics()
    assert machine.refused > 10
    assert statistics.copies_on_write > 100
    assert statistics.evictions > 10
    assert machine.cache.statistics().hits > 100

    for table, _ in machine.tables:
        table.release()
    machine.cache.clear()
    for pages, _ in machine.loose:
        machine.pool.release(pages)
    machine.pool.check_integrity()
    assert (machine.pool.free, len(machine.pool._free.starts)) == (PAGES, 1)
