"""Block tables: which pages hold which tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pahq_server.memory.pages import Pages
from pahq_server.memory.pool import PagePool

ABSENT = -1


@dataclass(frozen=True)
class Layout:
    """How a row is stored: its tensor's dtype and shape, in the row's first ``blocks`` pages."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class BlockTable:
    """The tensors of one layer of one set of values, a row each, in pages that other tables may share.

    Whoever makes a table releases it; one that is only forgotten leaks its pages.

    Args:
        pool: where the pages come from.
        rows: number of rows; all are absent at first.

    Attributes:
        pages: int32, shape [rows, width]: page of each block of each row, -1 where there is none. Width
            grows with the longest row.
    """

    def __init__(self, pool: PagePool, rows: int) -> None:
        self.pool = pool
        self.pages: Pages = np.full((rows, 0), ABSENT, dtype=np.int32)
        self._layouts: list[Layout | None] = [None] * rows
        pool.register(self)

    def held_pages(self) -> Pages:
        """The page of every block: int32, shape [blocks]."""
        held: Pages = self.pages[self.pages != ABSENT]
        return held

    def __contains__(self, row: int) -> bool:
        return 0 <= row < len(self._layouts) and self._layouts[row] is not None

    def rows(self) -> list[int]:
        """The rows that hold a tensor, ascending."""
        return [row for row, layout in enumerate(self._layouts) if layout is not None]

    @property
    def num_rows(self) -> int:
        return len(self._layouts)

    def grow(self, rows: int) -> None:
        """Adds so many absent rows."""
        self.pages = np.pad(self.pages, ((0, rows), (0, 0)), constant_values=ABSENT)
        self._layouts += [None] * rows

    def get(self, row: int) -> Tensor:
        """The row's tensor: a view that is good until the row changes, or a copy if its pages are scattered.

        Raises KeyError if the row is absent.
        """
        layout = self._layout(row)
        return self.pool.read(self.blocks(row), layout.dtype, layout.shape)

    def put(self, row: int, tensor: Tensor) -> None:
        """Stores a tensor of any dtype and shape in the row, in place of what it held.

        Pages that nobody shares are overwritten if they suffice. Raises OutOfPagesError and leaves the row.
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
        """New pages that hold the tensor."""
        pages = self.pool.allocate(count)
        try:
            self.pool.write(pages, tensor)
        except BaseException:
            self.pool.release(pages)
            raise
        return pages

    def put_range(self, row: int, first: int, tensor: Tensor) -> None:
        """Overwrites elements first … first + n - 1 of the flattened row with the n elements of the tensor.

        Of the blocks touched, those that are shared are copied first; all others stay shared. The dtype is
        the row's. Raises KeyError if the row is absent; OutOfPagesError and leaves the row.
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
        """Replaces the shared ones among blocks low … high - 1 of the row by copies."""
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
        """Makes the row absent. Raises KeyError if it is already."""
        self._layout(row)
        self.pool.release(self.blocks(row))
        self.pages[row], self._layouts[row] = ABSENT, None

    def share(self, row: int, other: BlockTable, other_row: int) -> None:
        """Lets the row hold what another table's row holds, in the same pages.

        Raises KeyError if the other row is absent.
        """
        assert other.pool is self.pool, "tables of different pools"
        assert 0 <= row < len(self._layouts), f"row {row} of {len(self._layouts)}"
        layout, pages = other._layout(other_row), other.blocks(other_row).copy()
        self.pool.retain(pages)
        self.pool.release(self.blocks(row))
        self._set(row, pages, layout)

    def fork(self) -> BlockTable:
        """A table with the same content in the same pages; writes to either do not show in the other."""
        self.pool.retain(self.held_pages())
        fork = BlockTable(self.pool, 0)
        fork.pages, fork._layouts = self.pages.copy(), self._layouts.copy()
        return fork

    def release(self) -> None:
        """Makes all rows absent. May be called again."""
        self.pool.release(self.held_pages())
        self.pages.fill(ABSENT)
        self._layouts = [None] * len(self._layouts)

    def _layout(self, row: int) -> Layout:
        layout = self._layouts[row] if row in self else None
        if layout is None:
            raise KeyError(row)
        return layout

    def blocks(self, row: int) -> Pages:
        """The row's pages, a view: int32, shape [blocks]; empty for an absent row."""
        layout = self._layouts[row]
        return self.pages[row, : layout.blocks if layout else 0]

    def _set(self, row: int, pages: Pages, layout: Layout) -> None:
        missing = len(pages) - self.pages.shape[1]
        if missing > 0:
            self.pages = np.pad(self.pages, ((0, 0), (0, missing)), constant_values=ABSENT)
        self.pages[row, : len(pages)] = pages
        self.pages[row, len(pages) :] = ABSENT
        self._layouts[row] = layout
