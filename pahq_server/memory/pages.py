"""Pages: which ones are free (`FreeRuns`), and their bytes (`PageStorage`).

Free pages are kept as runs of consecutive ones. So the bookkeeping grows with the number of holes and not
with the number of pages: the unused end of a pool is one run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pages = NDArray[np.int32]


def as_index(pages: Pages) -> NDArray[np.int64]:
    """Copies page numbers to int64, to index with. None may be negative, as those of absent blocks are."""
    assert not (pages < 0).any(), f"negative page number among {pages}"
    return pages.astype(np.int64)


def consecutive(pages: Pages) -> bool:
    """Whether pages are one ascending run, so that their bytes are contiguous."""
    if len(pages) < 2:
        return True
    return bool(pages[-1] - pages[0] == len(pages) - 1 and (pages[1:] - pages[:-1] == 1).all())


def distinct(pages: Pages) -> Pages:
    """Returns each page once, ascending. Faster than `numpy.unique`, which hashes."""
    if len(pages) < 2:
        return pages
    pages = np.sort(pages)
    return pages[np.concatenate(([True], pages[1:] != pages[:-1]))]


def expand(starts: Pages, ends: Pages) -> Pages:
    """Lists the pages of runs in the order of the runs: int32 [sum(ends - starts)]."""
    if len(starts) == 1:
        return np.arange(starts[0], ends[0], dtype=np.int32)
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum(), dtype=np.int32) + np.repeat(starts - before, lengths).astype(np.int32)


def runs_of(pages: Pages) -> tuple[Pages, Pages]:
    """Groups ascending, distinct pages (at least one) into runs: returns starts, and ends (excluded)."""
    breaks = np.flatnonzero(pages[1:] - pages[:-1] != 1)
    starts = pages[np.concatenate(([0], breaks + 1))]
    ends = pages[np.concatenate((breaks, [len(pages) - 1]))] + np.int32(1)
    return starts, ends


class FreeRuns:
    """The free pages among 0 to ``pages - 1``.

    Attributes:
        starts, ends: run i consists of the pages starts[i] to ends[i] - 1; int32 [runs]. Runs are in
            ascending order, and between two of them is at least one page in use.
        count: number of free pages.
    """

    def __init__(self, pages: int) -> None:
        self.starts = np.zeros(min(pages, 1), dtype=np.int32)
        self.ends = np.full(min(pages, 1), pages, dtype=np.int32)
        self.count = pages

    def take(self, count: int) -> Pages:
        """Takes pages from the first run that is long enough, or else the lowest pages.

        Args:
            count: of pages, from 1 to ``self.count``.

        Returns:
            Page numbers, ascending: int32 [count].
        """
        assert 0 < count <= self.count, f"{count} pages of {self.count}"
        fits = self.ends - self.starts >= count
        run = int(fits.argmax())
        self.count -= count
        return self._take_from(run, count) if fits[run] else self._take_scattered(count)

    def _take_from(self, run: int, count: int) -> Pages:
        start = int(self.starts[run])
        if start + count == self.ends[run]:
            self.starts, self.ends = np.delete(self.starts, run), np.delete(self.ends, run)
        else:
            self.starts[run] += count
        return np.arange(start, start + count, dtype=np.int32)

    def _take_scattered(self, count: int) -> Pages:
        total = np.cumsum(self.ends - self.starts)
        last = int(np.searchsorted(total, count))
        pages = expand(self.starts[: last + 1], self.ends[: last + 1])[:count]
        left = int(total[last]) - count
        keep_from = last if left else last + 1
        self.starts, self.ends = self.starts[keep_from:].copy(), self.ends[keep_from:].copy()
        if left:
            self.starts[0] = self.ends[0] - left
        return pages

    def give(self, pages: Pages) -> None:
        """Makes pages free: ascending, distinct ones that are in use."""
        if not len(pages):
            return
        starts, ends = runs_of(pages)
        insert_at = np.searchsorted(self.starts, starts)
        starts, ends = np.insert(self.starts, insert_at, starts), np.insert(self.ends, insert_at, ends)
        apart = starts[1:] != ends[:-1]
        self.starts = starts[np.concatenate(([True], apart))]
        self.ends = ends[np.concatenate((apart, [True]))]
        self.count += len(pages)


# Pages begin at multiples of the size of the widest element, complex128.
_ALIGNMENT = 16


class PageStorage:
    """Memory of one device, divided into pages.

    Args:
        num_pages: number of pages.
        page_bytes: size of a page, a positive multiple of 16.
        device: where the memory is. On a CPU, pages take no physical memory before they are written.

    Attributes:
        pages: uint8 [num_pages, page_bytes].
    """

    def __init__(self, num_pages: int, page_bytes: int, device: str | torch.device) -> None:
        assert page_bytes > 0, f"page_bytes={page_bytes}"
        assert page_bytes % _ALIGNMENT == 0, f"page_bytes={page_bytes}"
        with torch.inference_mode(False):  # tensors made in this mode cannot be written outside of it
            self.pages = torch.empty(num_pages, page_bytes, dtype=torch.uint8, device=device)

    def write(self, pages: Pages, tensor: Tensor, first_byte: int = 0) -> None:
        """Copies a tensor's elements, in row-major order, into pages.

        Args:
            pages: page numbers, int32 [blocks].
            tensor: of any dtype, shape, strides and device.
            first_byte: where in the concatenated pages the elements begin. Other bytes keep their values.
        """
        tensor = tensor.detach()
        if tensor.untyped_storage().data_ptr() == self.pages.untyped_storage().data_ptr():
            tensor = tensor.clone()  # it may be a view of the same pages, which a copy must not overlap
        if consecutive(pages):
            _window(self._run(pages), first_byte, tensor.dtype, tensor.shape).copy_(tensor)
            return
        gathered = self._gather(pages)
        _window(gathered.view(-1), first_byte, tensor.dtype, tensor.shape).copy_(tensor)
        self.pages.index_copy_(0, self._index(pages), gathered)

    def read(self, pages: Pages, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Reads the tensor that was written to pages.

        Args:
            pages: page numbers, int32 [blocks].
            dtype, shape: of the tensor.

        Returns:
            A view if the pages are consecutive: it shows later writes, and must not be used after the pages
            were released. Otherwise a copy.
        """
        if consecutive(pages):
            return _window(self._run(pages), 0, dtype, shape)
        return _window(self._gather(pages).view(-1), 0, dtype, shape)

    def _run(self, pages: Pages) -> Tensor:
        """Returns a view of the bytes of consecutive pages: uint8 [pages * page_bytes]."""
        begin = int(pages[0]) if len(pages) else 0
        return self.pages[begin : begin + len(pages)].view(-1)

    def _index(self, pages: Pages) -> Tensor:
        return torch.from_numpy(as_index(pages)).to(self.pages.device)

    def _gather(self, pages: Pages) -> Tensor:
        return self.pages.index_select(0, self._index(pages))


def _window(memory: Tensor, begin: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Views bytes, uint8 [n], from ``begin`` on as a tensor."""
    end = begin + dtype.itemsize * math.prod(shape)
    assert end <= len(memory), f"bytes {begin}:{end} of {len(memory)}"
    return memory[begin:end].view(dtype).view(tuple(shape))
