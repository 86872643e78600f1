from __future__ import annotations

import pytest
import torch

from pahq_server.memory.pool import OutOfPagesError, PagePool
from pahq_server.memory.prefix import PrefixCache, chain
from pahq_server.memory.table import BlockTable

PAGE = 64
A, B, C, D = (bytes([letter]) * 32 for letter in b"ABCD")


@pytest.fixture
def pool() -> PagePool:
    return PagePool(8 * PAGE, page_bytes=PAGE)


@pytest.fixture
def cache(pool: PagePool) -> PrefixCache:
    return PrefixCache(pool)


def cached(cache: PrefixCache, key: bytes, parent: bytes | None = None, pages: int = 1) -> None:
    """Caches a block whose pages only the cache uses."""
    table = BlockTable(cache.pool, 1)
    table.put(0, torch.full((pages * PAGE // 4,), float(key[0])))
    cache.insert(key, table, parent)
    table.release()


def test_a_key_stands_for_all_tokens_up_to_the_end_of_its_block() -> None:
    keys = chain(b"model", range(10), 4)
    assert [len(key) for key in keys] == [32, 32]
    assert chain(b"model", list(range(8)), 4) == keys
    assert chain(b"model", [*range(8), 99, 99, 99, 99], 4)[:2] == keys
    changed_late = chain(b"model", [*range(7), 99], 4)
    assert changed_late[0] == keys[0]
    assert changed_late[1] != keys[1]
    changed_early = chain(b"model", [99, *range(1, 8)], 4)
    assert not set(changed_early) & set(keys)
    assert not set(chain(b"other", range(8), 4)) & set(keys)
    assert not set(chain(b"model", range(8), 2)) & set(keys)
    assert chain(b"model", range(3), 4) == chain(b"model", [], 4) == []


def test_lookup_finds_the_longest_run_and_keeps_it_alive(cache: PrefixCache) -> None:
    cached(cache, A)
    cached(cache, B, A)
    cached(cache, D)
    found = cache.lookup([A, B, C, D])
    assert [table.get(0)[0].item() for table in found] == [A[0], B[0]]
    assert cache.lookup([C, A]) == []
    assert cache.lookup([]) == []
    cache.clear()
    assert [table.get(0)[0].item() for table in found] == [A[0], B[0]]
    assert cache.pool.free == 6
    statistics = cache.statistics()
    assert (statistics.entries, statistics.hits, statistics.misses) == (0, 2, 4)
    cache.pool.check_integrity()


def test_neither_side_of_an_insertion_sees_the_other_write(cache: PrefixCache) -> None:
    table = BlockTable(cache.pool, 1)
    table.put(0, torch.zeros(16))
    cache.insert(A, table)
    table.put(0, torch.ones(16))
    (found,) = cache.lookup([A])
    found.put_range(0, 0, torch.full((4,), 2.0))
    (again,) = cache.lookup([A])
    assert not again.get(0).any()


def test_a_key_that_is_cached_keeps_its_values(cache: PrefixCache) -> None:
    cached(cache, A)
    table = BlockTable(cache.pool, 1)
    table.put(0, torch.zeros(16))
    cache.insert(A, table)
    assert cache.lookup([A])[0].get(0)[0] == A[0]


def test_a_block_needs_its_parent(cache: PrefixCache) -> None:
    with pytest.raises(KeyError):
        cache.insert(B, BlockTable(cache.pool, 1), A)
    assert B not in cache
    cache.pool.check_integrity()


def test_the_least_recently_used_goes_first(cache: PrefixCache) -> None:
    for key in (A, B, C, D):
        cached(cache, key)
    for table in cache.lookup([A]):
        table.release()
    cached(cache, B)
    assert cache.evict(1) == 1
    assert [key in cache for key in (A, B, C, D)] == [True, True, False, True]
    assert cache.evict(2) == 2
    assert [key in cache for key in (A, B, C, D)] == [False, True, False, False]
    assert cache.statistics().evicted == 3


def test_children_go_before_parents_however_recent(cache: PrefixCache) -> None:
    cached(cache, A)
    cached(cache, B, A)
    cached(cache, C, B)
    cached(cache, D, A)
    for table in cache.lookup([A, B]):
        table.release()
    order = []
    while cache.evict(1):
        order.append([key for key in (A, B, C, D) if key in cache])
    assert order == [[A, B, D], [A, B], [A], []]


def test_entries_in_use_stay_and_so_do_their_parents(cache: PrefixCache) -> None:
    cached(cache, A)
    cached(cache, B, A)
    cached(cache, C, A)
    parent, child = cache.lookup([A, B])
    parent.release()
    assert cache.evict(8) == 1
    assert [key in cache for key in (A, B, C)] == [True, True, False]
    child.release()
    assert cache.evict(8) == 2


def test_an_entry_of_which_one_page_is_in_use_stays(cache: PrefixCache) -> None:
    cached(cache, A, pages=3)
    (found,) = cache.lookup([A])
    found.put_range(0, 0, torch.zeros(32))  # shares the last page only
    assert cache.evict(1) == 0
    assert cache.pool.shared == 1


def test_entries_that_share_pages_only_among_themselves_can_go(cache: PrefixCache) -> None:
    cached(cache, A, pages=2)
    (found,) = cache.lookup([A])
    cache.insert(B, found)
    found.release()
    assert cache.evict(1) == 2
    assert cache.statistics().entries == 0


def test_allocations_evict_what_they_need(cache: PrefixCache) -> None:
    for key in (A, B, C, D):
        cached(cache, key, pages=2)
    held = cache.lookup([D])
    table = BlockTable(cache.pool, 1)
    table.put(0, torch.zeros(3 * PAGE // 4))
    assert [key in cache for key in (A, B, C, D)] == [False, False, True, True]
    assert cache.pool.statistics().evictions == 4
    with pytest.raises(OutOfPagesError, match="4 pages needed, 3 free"):
        cache.pool.allocate(4)
    assert held[0].get(0)[0] == D[0]
    cache.pool.check_integrity()


def test_a_cleared_cache_holds_nothing(cache: PrefixCache) -> None:
    cached(cache, A)
    cached(cache, B, A)
    cache.clear()
    assert cache.pool.free == 8
    cached(cache, A)
    assert cache.evict(1) == 1
