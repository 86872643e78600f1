from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pahq_server.memory.pool import OutOfPagesError, PagePool
from pahq_server.memory.table import BlockTable

PAGE = 64
ELEMENTS = PAGE // 4  # float32 per block


@pytest.fixture
def pool() -> PagePool:
    return PagePool(32 * PAGE, page_bytes=PAGE)


def numbers(blocks: float, start: int = 0) -> Tensor:
    return torch.arange(start, start + int(blocks * ELEMENTS), dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (16, 4), (3, 5, 7)])
def test_rows_hold_any_tensor(pool: PagePool, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    table = BlockTable(pool, 4)
    tensor = torch.randint(0, 100, shape).to(dtype)
    table.put(2, tensor)
    read = table.get(2)
    assert (read.dtype, read.shape) == (dtype, tensor.shape)
    assert torch.equal(read, tensor)
    assert table.rows() == [2]
    pool.check_integrity()


def test_absent_rows(pool: PagePool) -> None:
    table = BlockTable(pool, 2)
    table.put(1, torch.zeros(0))
    assert [row in table for row in (-1, 0, 1, 2)] == [False, False, True, False]
    table.drop(1)
    assert table.rows() == []
    for use in (table.get, table.drop, lambda row: table.put_range(row, 0, torch.zeros(1))):
        with pytest.raises(KeyError):
            use(1)
    with pytest.raises(AssertionError):
        table.put(2, torch.zeros(1))


def test_the_table_is_as_wide_as_its_longest_row(pool: PagePool) -> None:
    table = BlockTable(pool, 3)
    assert table.pages.shape == (3, 0)
    table.put(0, numbers(1))
    table.put(2, numbers(2.5))
    assert table.pages.tolist() == [[0, -1, -1], [-1, -1, -1], [1, 2, 3]]
    table.put(2, numbers(1.5))
    assert table.pages.tolist() == [[0, -1, -1], [-1, -1, -1], [1, 2, -1]]
    assert pool.free == 29
    assert table.held_pages().tolist() == [0, 1, 2]


def test_own_pages_are_overwritten_in_place(pool: PagePool) -> None:
    table = BlockTable(pool, 1)
    table.put(0, numbers(2))
    before = table.pages.copy()
    table.put(0, numbers(2).double()[:ELEMENTS])
    assert (table.pages == before).all()
    assert pool.statistics().allocations == 1
    table.put(0, numbers(3))
    assert torch.equal(table.get(0), numbers(3))
    assert pool.free == 29
    assert pool.statistics().copies_on_write == 0


def test_a_fork_shares_all_blocks_until_one_side_writes(pool: PagePool) -> None:
    table = BlockTable(pool, 2)
    table.put(0, numbers(2))
    table.put(1, numbers(3, 100))
    fork = table.fork()
    assert (pool.free, pool.shared) == (27, 5)
    fork.put(0, -numbers(2))
    assert (pool.free, pool.shared, pool.statistics().copies_on_write) == (25, 3, 2)
    table.put(1, numbers(1))
    assert pool.shared == 0
    assert torch.equal(table.get(0), numbers(2))
    assert torch.equal(fork.get(0), -numbers(2))
    assert torch.equal(table.get(1), numbers(1))
    assert torch.equal(fork.get(1), numbers(3, 100))
    pool.check_integrity()


def test_a_range_copies_only_the_shared_blocks_that_it_touches(pool: PagePool) -> None:
    table = BlockTable(pool, 1)
    table.put(0, numbers(6).view(3, -1))
    fork = table.fork()
    first = 2 * ELEMENTS - 3
    fork.put_range(
        0, first, torch.full((ELEMENTS + 5,), -1.0)
    )  # the end of block 1, block 2, some of block 3
    assert (table.pages == fork.pages).tolist() == [[True, False, False, False, True, True]]
    assert pool.statistics().copies_on_write == 3
    expected = numbers(6)
    expected[first : first + ELEMENTS + 5] = -1
    assert torch.equal(fork.get(0), expected.view(3, -1))  # the pages are no longer consecutive
    assert torch.equal(table.get(0), numbers(6).view(3, -1))
    fork.put_range(0, first, torch.zeros(ELEMENTS + 5))
    assert pool.statistics().copies_on_write == 3
    pool.check_integrity()


def test_a_range_in_own_scattered_pages(pool: PagePool) -> None:
    table = BlockTable(pool, 1)
    table.put(0, numbers(4))
    fork = table.fork()
    fork.put_range(0, 2 * ELEMENTS, torch.zeros(1))
    table.release()
    fork.put_range(0, 3, torch.full((3 * ELEMENTS,), 7.0))
    expected = numbers(4)
    expected[3 : 3 + 3 * ELEMENTS] = 7
    assert torch.equal(fork.get(0), expected)
    assert pool.free == 28


@pytest.mark.parametrize("first", [0, 5, 2 * ELEMENTS])
def test_an_empty_range_changes_nothing(pool: PagePool, first: int) -> None:
    table = BlockTable(pool, 1)
    table.put(0, numbers(2))
    fork = table.fork()
    fork.put_range(0, first, torch.zeros(0))
    assert pool.shared == 2


def test_a_range_must_lie_in_the_row_and_have_its_dtype(pool: PagePool) -> None:
    table = BlockTable(pool, 1)
    table.put(0, numbers(1.5))
    for first, tensor in ((ELEMENTS, numbers(1)), (-1, numbers(0.5)), (0, numbers(1).double())):
        with pytest.raises(AssertionError):
            table.put_range(0, first, tensor)


def test_a_row_may_be_written_from_a_view_of_itself(pool: PagePool) -> None:
    table = BlockTable(pool, 1)
    table.put(0, numbers(4).view(8, 8))
    table.put(0, table.get(0).T)
    assert torch.equal(table.get(0), numbers(4).view(8, 8).T)
    table.put_range(0, 1, table.get(0).flatten()[:-1])
    assert torch.equal(table.get(0).flatten()[1:], numbers(4).view(8, 8).T.flatten()[:-1])


def test_a_shared_row_is_the_same_pages(pool: PagePool) -> None:
    table, other = BlockTable(pool, 2), BlockTable(pool, 1)
    table.put(0, numbers(2))
    other.put(0, numbers(5))
    other.share(0, table, 0)
    table.share(1, table, 0)
    table.share(0, table, 0)
    assert (pool.free, pool.counts[:2].tolist()) == (30, [3, 3])
    assert torch.equal(other.get(0), table.get(1))
    table.put_range(1, 0, torch.full((1,), 9.0))
    assert other.get(0)[0] == table.get(0)[0] == 0
    with pytest.raises(KeyError):
        table.share(0, BlockTable(pool, 1), 0)
    with pytest.raises(AssertionError):
        table.share(0, BlockTable(PagePool(PAGE, page_bytes=PAGE), 1), 0)
    pool.check_integrity()


def test_release_is_idempotent_and_frees_what_nobody_shares(pool: PagePool) -> None:
    table = BlockTable(pool, 2)
    table.put(0, numbers(2))
    fork = table.fork()
    for _ in range(2):
        table.release()
        assert table.rows() == []
        assert pool.free == 30
    assert torch.equal(fork.get(0), numbers(2))
    fork.release()
    assert pool.free == 32


def test_a_write_without_room_leaves_the_row(pool: PagePool) -> None:
    table = BlockTable(pool, 2)
    table.put(0, numbers(20))
    fork = table.fork()
    for write in (
        lambda: fork.put(0, numbers(20, 1)),
        lambda: fork.put(1, numbers(13)),
        lambda: fork.put_range(0, 0, numbers(13, 1)),
        lambda: fork.put(0, torch.empty(1).expand(2**50)),
    ):
        with pytest.raises(OutOfPagesError):
            write()
        assert fork.rows() == [0]
        assert torch.equal(fork.get(0), numbers(20))
        assert (pool.free, pool.shared) == (12, 20)
        pool.check_integrity()
