"""Each error that is made in a pool's bookkeeping is found, and its page is named."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from pahq_server.memory.pool import IntegrityError, PagePool
from pahq_server.memory.prefix import PrefixCache
from pahq_server.memory.table import BlockTable


def filled() -> tuple[PagePool, BlockTable, BlockTable]:
    """A pool whose pages 0 to 5 are in use: 2 and 3 by both tables, 4 and 5 by a row of the second table."""
    pool = PagePool(16 * 64, page_bytes=64)
    table = BlockTable(pool, 3)
    table.put(0, torch.zeros(32))
    table.put(1, torch.ones(32))
    other = BlockTable(pool, 2)
    other.share(0, table, 1)
    other.put(1, torch.ones(32))
    pool.check_integrity()
    return pool, table, other


def check(pool: PagePool, page: int, detail: str) -> None:
    with pytest.raises(IntegrityError, match=f"^page {page}: {detail}") as raised:
        pool.check_integrity()
    assert raised.value.page == page


def test_a_dropped_reference() -> None:
    pool, _table, _other = filled()
    pool.counts[3] -= 1
    check(pool, 3, "count too low: counts 1 references, held 2 times")


def test_an_extra_reference() -> None:
    pool, _table, _other = filled()
    pool.counts[2] += 1
    check(pool, 2, "count too high: counts 3 references, held 2 times")


def test_a_table_that_was_forgotten_leaks() -> None:
    pool, _table, other = filled()
    del other
    gc.collect()
    check(pool, 2, "count too high")
    pool.release(np.array([2, 3], dtype=np.int32))
    check(pool, 4, "leaked: counts 1 references, held by nobody")


def test_a_page_used_after_it_was_freed() -> None:
    pool, _table, _other = filled()
    pool.release(np.array([1], dtype=np.int32))
    check(pool, 1, "used after free: counts no reference, held 1 times")


def test_a_page_in_the_free_list_that_is_in_use() -> None:
    pool, _table, _other = filled()
    pool._free.give(np.array([4], dtype=np.int32))
    check(pool, 4, "free list: listed 1 times, counts 1 references")


def test_a_page_twice_in_the_free_list() -> None:
    pool, _table, _other = filled()
    pool._free.give(np.array([9], dtype=np.int32))
    check(pool, 9, "free list: listed 2 times, counts 0 references")


def test_a_free_page_missing_from_the_free_list() -> None:
    pool, _table, _other = filled()
    pool._free.take(1)
    check(pool, 6, "free list: listed 0 times, counts 0 references")


def test_free_runs_that_were_not_joined() -> None:
    pool, _table, _other = filled()
    pool._free.starts = np.array([6, 8], dtype=np.int32)
    pool._free.ends = np.array([8, 16], dtype=np.int32)
    check(pool, 8, "free list: run starts where another ends")


def test_a_wrong_number_of_free_pages() -> None:
    pool, _table, _other = filled()
    pool._free.count += 1
    check(pool, 0, "free list: says 11 pages, lists 10")


def test_a_table_that_names_a_page_of_another() -> None:
    pool, table, _other = filled()
    table.pages[0, 1] = 5
    check(pool, 1, "leaked")


def test_entries_of_a_prefix_cache_count() -> None:
    pool, table, other = filled()
    cache = PrefixCache(pool)
    cache.insert(b"key", table)
    table.release()
    other.release()
    pool.check_integrity()
    pool.counts[0] += 1
    check(pool, 0, "count too high: counts 2 references, held 1 times")


def test_pages_without_a_table_are_told_by_their_holder() -> None:
    pool, _table, _other = filled()
    pages = pool.allocate(3)
    check(pool, 6, "leaked")
    pool.check_integrity([pages[:1], pages[1:]])
