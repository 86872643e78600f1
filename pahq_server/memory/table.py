"""Block tables: which pages of a pool hold which tensors.

As in vLLM's paged attention, tensors are cut into blocks of one page each, and tables may share pages. A
shared page is copied when one of its holders writes to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pahq_server.memory.pages import Pages
from pahq_server.memory.pool import PagePool

# Stands in `BlockTable.pages` for no page.
ABSENT = -1


@dataclass(frozen=True)
class Layout:
    """How the tensor of a table's row is stored.

    Args:
        dtype, shape: of the tensor.
        blocks: how many pages it takes, the first ones of the row.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class BlockTable:
    """A list of tensors, one per row, in pages that other tables may share.

    Executors keep one table for each layer and kind of activation. The owner of a table must call `release`:
    a table that is only garbage-collected leaks its pages.

    Args:
        pool: whose pages are used.
        rows: number of rows, which have no tensor at first ("absent" rows).

    Attributes:
        pool: as given.
        pages: page of each block of each row, int32 [rows, width]; -1 where there is none. The width grows
            with the longest row.
    """

    def __init__(self, pool: PagePool, rows: int) -> None:
        self.pool = pool
        self.pages: Pages = np.full((rows, 0), ABSENT, dtype=np.int32)
        self._layouts: list[Layout | None] = [None] * rows
        pool.register(self)

    def held_pages(self) -> Pages:
        """Returns the pages of all blocks: int32 [blocks]."""
        held: Pages = self.pages[self.pages != ABSENT]
        return held

    def __contains__(self, row: int) -> bool:
        return 0 <= row < len(self._layouts) and self._layouts[row] is not None

    def rows(self) -> list[int]:
        """Returns the rows that have a tensor, ascending."""
        return [row for row, layout in enumerate(self._layouts) if layout is not None]

    @property
    def num_rows(self) -> int:
        return len(self._layouts)

    def grow(self, rows: int) -> None:
        """Adds ``rows`` absent rows."""
        self.pages = np.pad(self.pages, ((0, rows), (0, 0)), constant_values=ABSENT)
        self._layouts += [None] * rows

    def get(self, row: int) -> Tensor:
        """Reads a row's tensor: a view, valid until the row changes, or a copy if its pages are scattered.

        Raises KeyError if the row is absent.
        """
        layout = self._layout(row)
        return self.pool.read(self.blocks(row), layout.dtype, layout.shape)

    def put(self, row: int, tensor: Tensor) -> None:
        """Stores a tensor of any dtype and shape in a row, instead of the one that the row had.

        The row's pages are overwritten if they are enough and not shared. Raises OutOfPagesError and leaves
        the row as it was.
        """
        assert 0 <= row < len(self._layouts), f"row {row} of {len(self._layouts)}"
        old, count = self.blocks(row), self.pool.pages_for(tensor.nbytes)
        if self._layouts[row] is None:
            pages = self._written(count, tensor)
            self._set(row, pages, Layout(tensor.dtype, tuple(tensor.shape), count))
            return
        alone = bool((self.pool.counts[old] == 1).all())
        if alone and count <= len(old):
            pages, surplus = old[:count], old[count:]
            self.pool.write(pages, tensor)
        else:
            pages, surplus = self._written(count, tensor), old
            self.pool.copies_on_write += int(np.count_nonzero(self.pool.counts[old] > 1))
        self.pool.release(surplus)
        self._set(row, pages, Layout(tensor.dtype, tuple(tensor.shape), count))

    def _written(self, count: int, tensor: Tensor) -> Pages:
        """Allocates pages and writes a tensor to them."""
        pages = self.pool.allocate(count)
        try:
            self.pool.write(pages, tensor)
        except BaseException:
            self.pool.release(pages)
            raise
        return pages

    def put_range(self, row: int, first: int, tensor: Tensor) -> None:
        """Overwrites a range of a row's elements. Shared blocks in the range are copied first.

        Args:
            row: which must have a tensor; KeyError otherwise.
            first: index of the range's first element in the flattened row.
            tensor: the new elements, in the row's dtype.

        Raises OutOfPagesError and leaves the row as it was.
        """
        layout = self._layout(row)
        assert tensor.dtype == layout.dtype, f"{tensor.dtype} into {layout.dtype}"
        assert 0 <= first <= layout.numel - tensor.numel(), f"{first}+{tensor.numel()} of {layout.numel}"
        if not tensor.numel():
            return
        begin = first * layout.dtype.itemsize
        low, high = begin // self.pool.page_bytes, self.pool.pages_for(begin + tensor.nbytes)
        self._own(row, low, high)
        self.pool.write(self.pages[row, low:high], tensor, begin - low * self.pool.page_bytes)

    def _own(self, row: int, low: int, high: int) -> None:
        """Replaces shared blocks among ``low`` to ``high - 1`` of a row by copies."""
        blocks = low + np.flatnonzero(self.pool.counts[self.pages[row, low:high]] > 1)
        if not len(blocks):
            return
        copies = self.pool.allocate(len(blocks))
        shared = self.pages[row, blocks]
        self.pool.write(copies, self.pool.read(shared, torch.uint8, (len(shared), self.pool.page_bytes)))
        self.pages[row, blocks] = copies
        self.pool.release(shared)
        self.pool.copies_on_write += len(blocks)

    def drop(self, row: int) -> None:
        """Makes a row absent. Raises KeyError if it is absent already."""
        self._layout(row)
        self.pool.release(self.blocks(row))
        self.pages[row], self._layouts[row] = ABSENT, None

    def share(self, row: int, other: BlockTable, other_row: int) -> None:
        """Gives a row the tensor of another table's row, in the same pages.

        Raises KeyError if the other row is absent.
        """
        assert other.pool is self.pool, "tables of different pools"
        assert 0 <= row < len(self._layouts), f"row {row} of {len(self._layouts)}"
        layout, pages = other._layout(other_row), other.blocks(other_row).copy()
        self.pool.retain(pages)
        self.pool.release(self.blocks(row))
        self._set(row, pages, layout)

    def fork(self) -> BlockTable:
        """Returns a table with the same tensors in the same pages. Writes to one do not change the other."""
        self.pool.retain(self.held_pages())
        fork = BlockTable(self.pool, 0)
        fork.pages, fork._layouts = self.pages.copy(), self._layouts.copy()
        return fork

    def release(self) -> None:
        """Makes all rows absent and releases their pages. May be called more than once."""
        self.pool.release(self.held_pages())
        self.pages.fill(ABSENT)
        self._layouts = [None] * len(self._layouts)

    def _layout(self, row: int) -> Layout:
        layout = self._layouts[row] if row in self else None
        if layout is None:
            raise KeyError(row)
        return layout

    def blocks(self, row: int) -> Pages:
        """Returns a view of a row's pages, int32 [blocks]; empty for an absent row."""
        layout = self._layouts[row]
        return self.pages[row, : layout.blocks if layout else 0]

    def _set(self, row: int, pages: Pages, layout: Layout) -> None:
        missing = len(pages) - self.pages.shape[1]
        if missing > 0:
            self.pages = np.pad(self.pages, ((0, 0), (0, missing)), constant_values=ABSENT)
        self.pages[row, : len(pages)] = pages
        self.pages[row, len(pages) :] = ABSENT
        self._layouts[row] = layout
