from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pahq_server.memory.pool import OutOfPagesError, PagePool

PAGE = 64
Allocate = Callable[[PagePool, int], np.ndarray]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int8]


def make_pool(pages: int = 16) -> PagePool:
    return PagePool(pages * PAGE, page_bytes=PAGE)


def numbers(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(count).remainder(120).to(dtype)


def scattered(pool: PagePool, count: int) -> np.ndarray:
    """A pool in which every other page is free."""
    pages = pool.allocate(pool.num_pages)
    pool.release(pages[: 2 * count : 2])
    return pool.allocate(count)


def test_the_lowest_pages_come_first_and_lie_side_by_side() -> None:
    pool = make_pool()
    first, second = pool.allocate(3), pool.allocate(2)
    assert first.dtype == np.int32
    assert (first.tolist(), second.tolist()) == ([0, 1, 2], [3, 4])
    pool.release(first)
    assert pool.allocate(4).tolist() == [5, 6, 7, 8]  # lower free runs are too short
    assert pool.allocate(2).tolist() == [0, 1]


def test_scattered_pages_are_taken_when_no_run_is_long_enough() -> None:
    pool = make_pool()
    assert scattered(pool, 3).tolist() == [0, 2, 4]


def test_out_of_pages_is_all_or_nothing() -> None:
    pool = make_pool()
    pool.allocate(10)
    before = pool.statistics()
    with pytest.raises(OutOfPagesError, match="7 pages needed, 6 free") as raised:
        pool.allocate(7)
    assert (raised.value.needed, raised.value.free) == (7, 6)
    assert pool.statistics() == before
    assert pool.allocate(6).tolist() == [10, 11, 12, 13, 14, 15]


def test_evictors_are_asked_in_turn_and_only_for_what_is_missing() -> None:
    pool = make_pool()
    spare = [pool.allocate(2), pool.allocate(3), pool.allocate(11)]
    asked: list[tuple[int, int]] = []

    def evict_with(index: int) -> None:
        def evict(wanted: int) -> int:
            asked.append((index, wanted))
            pool.release(spare[index])
            return len(spare[index])

        pool.add_evictor(evict)

    for index in range(3):
        evict_with(index)
    assert pool.allocate(4).tolist() == [0, 1, 2, 3]
    assert asked == [(0, 4), (1, 2)]
    assert pool.statistics().evictions == 5


def test_nothing_is_evicted_for_a_request_that_can_never_be_met() -> None:
    pool = make_pool()
    pool.allocate(16)
    pool.add_evictor(lambda wanted: pytest.fail(f"asked for {wanted}"))
    with pytest.raises(OutOfPagesError):
        pool.allocate(10**12)


def test_a_page_is_free_after_as_many_releases_as_references() -> None:
    pool = make_pool()
    pages = pool.allocate(2)
    pool.retain(pages)
    pool.retain(pages[[0, 0]])
    assert pool.counts[:3].tolist() == [4, 2, 0]
    assert pool.shared == 2
    pool.release(pages)
    pool.release(pages[[1, 0, 0]])
    assert pool.counts[:2].tolist() == [1, 0]
    pool.release(pages[:1])
    assert pool.free == 16


@pytest.mark.parametrize("wrong", [[5], [0, 1, 5], [0, 0], [0, -1]])
def test_releasing_a_free_page_is_refused_and_changes_nothing(wrong: list[int]) -> None:
    pool = make_pool()
    pages = pool.allocate(2)
    with pytest.raises(AssertionError):
        pool.release(np.array(wrong, dtype=np.int32))
    assert (pool.counts[pages] == 1).all()
    pool.check_integrity([pages])


def test_a_free_page_cannot_be_retained() -> None:
    pool = make_pool()
    with pytest.raises(AssertionError):
        pool.retain(np.array([3], dtype=np.int32))
    pool.check_integrity()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 7, 16, 128, 129])
def test_what_is_written_is_read(dtype: torch.dtype, count: int) -> None:
    for allocate in (PagePool.allocate, scattered):
        pool = make_pool(64)
        tensor = numbers(count, dtype)
        pages = allocate(pool, pool.pages_for(tensor.nbytes))
        pool.write(pages, tensor)
        read = pool.read(pages, dtype, (count, 1))
        assert read.dtype == dtype
        assert torch.equal(read, tensor[:, None])


@pytest.mark.parametrize("allocate", [PagePool.allocate, scattered])
def test_any_strides_and_scalars_are_written_in_logical_order(allocate: Allocate) -> None:
    pool = make_pool()
    pages = allocate(pool, 3)
    tensor = numbers(48).view(6, 8).T
    pool.write(pages, tensor)
    assert torch.equal(pool.read(pages, torch.float32, (8, 6)), tensor)
    pool.write(pages, torch.tensor(5.0, requires_grad=True))
    assert pool.read(pages, torch.float32, ()).item() == 5
    assert not pool.storage.requires_grad


@pytest.mark.parametrize("allocate", [PagePool.allocate, scattered])
def test_a_write_within_leaves_the_other_bytes(allocate: Allocate) -> None:
    pool = make_pool()
    pages = allocate(pool, 3)
    pool.write(pages, numbers(48))
    pool.write(pages, torch.full((20,), -1.0), first_byte=4 * 10)
    expected = numbers(48)
    expected[10:30] = -1
    assert torch.equal(pool.read(pages, torch.float32, (48,)), expected)


def test_consecutive_pages_are_read_in_place_and_scattered_ones_gathered() -> None:
    pool = make_pool()
    pages = pool.allocate(2)
    view = pool.read(pages, torch.float32, (32,))
    pool.write(pages, numbers(32))
    assert torch.equal(view, numbers(32))
    backwards = pool.read(pages[::-1].copy(), torch.float32, (32,))
    assert torch.equal(backwards, numbers(32).roll(16))
    assert backwards.untyped_storage().data_ptr() != pool.storage.untyped_storage().data_ptr()


def test_a_view_of_a_page_may_be_written_to_it() -> None:
    pool = make_pool()
    pages = pool.allocate(4)
    pool.write(pages, numbers(64))
    pool.write(pages, pool.read(pages, torch.float32, (8, 8)).T)
    assert torch.equal(pool.read(pages, torch.float32, (8, 8)), numbers(64).view(8, 8).T)


@pytest.mark.parametrize("allocate", [PagePool.allocate, scattered])
def test_more_bytes_than_the_pages_have_are_refused(allocate: Allocate) -> None:
    pool = make_pool()
    pages = allocate(pool, 2)
    with pytest.raises(AssertionError):
        pool.write(pages, numbers(33))
    with pytest.raises(AssertionError):
        pool.read(pages, torch.float32, (33,))


def test_a_pool_made_in_inference_mode_can_be_written_outside() -> None:
    with torch.inference_mode():
        pool = make_pool()
        pages = scattered(pool, 2)
        pool.write(pages, numbers(32))
    pool.write(pages, numbers(32) + 1)
    assert torch.equal(pool.read(pages, torch.float32, (32,)), numbers(32) + 1)


def test_statistics() -> None:
    pool = PagePool(10 * PAGE + 5, page_bytes=PAGE)
    pages = pool.allocate(7)
    pool.release(pages[2:])
    pool.retain(pages[:1])
    pool.allocate(0)
    statistics = pool.statistics()
    assert (statistics.page_bytes, statistics.pages) == (PAGE, 10)
    assert (statistics.free, statistics.used, statistics.shared, statistics.peak_used) == (8, 2, 1, 7)
    assert (statistics.allocations, statistics.copies_on_write, statistics.evictions) == (2, 0, 0)


def test_a_pool_without_a_page_has_room_for_nothing() -> None:
    pool = PagePool(PAGE - 1, page_bytes=PAGE)
    assert len(pool.allocate(0)) == 0
    with pytest.raises(OutOfPagesError):
        pool.allocate(1)
    pool.check_integrity()
