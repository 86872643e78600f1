"""Which pages are free, and their bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pages = NDArray[np.int32]


def as_index(pages: Pages) -> NDArray[np.int64]:
    """Page numbers as an index, copied. One that stands for an absent block would mean the last page."""
    assert not (pages < 0).any(), f"no page numbers: {pages}"
    return pages.astype(np.int64)


def consecutive(pages: Pages) -> bool:
    """Whether the pages are one ascending run, so that their bytes lie side by side."""
    if len(pages) < 2:
        return True
    return bool(pages[-1] - pages[0] == len(pages) - 1 and (pages[1:] - pages[:-1] == 1).all())


def distinct(pages: Pages) -> Pages:
    """Each page once, ascending. `numpy.unique` hashes, which takes longer."""
    if len(pages) < 2:
        return pages
    pages = np.sort(pages)
    return pages[np.concatenate(([True], pages[1:] != pages[:-1]))]


def expand(starts: Pages, ends: Pages) -> Pages:
    """The pages of runs, in the order of the runs: int32, shape [sum(ends - starts)]."""
    if len(starts) == 1:
        return np.arange(starts[0], ends[0], dtype=np.int32)
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum(), dtype=np.int32) + np.repeat(starts - before, lengths).astype(np.int32)


def runs_of(pages: Pages) -> tuple[Pages, Pages]:
    """Starts and ends of the runs that ascending, distinct pages (at least one) form."""
    breaks = np.flatnonzero(pages[1:] - pages[:-1] != 1)
    starts = pages[np.concatenate(([0], breaks + 1))]
    ends = pages[np.concatenate((breaks, [len(pages) - 1]))] + np.int32(1)
    return starts, ends


class FreeRuns:
    """The free pages among 0 … pages - 1.

    Invariant: run i is starts[i] … ends[i] - 1 (int32, shape [runs]); runs ascend, and between two of them
    lies at least one page in use. ``count`` is the number of free pages.
    """

    def __init__(self, pages: int) -> None:
        self.starts = np.zeros(min(pages, 1), dtype=np.int32)
        self.ends = np.full(min(pages, 1), pages, dtype=np.int32)
        self.count = pages

    def take(self, count: int) -> Pages:
        """The lowest run that is long enough, else the lowest pages. 0 < count <= self.count."""
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
        """Takes back pages: ascending, distinct, none of them free."""
        if not len(pages):
            return
        starts, ends = runs_of(pages)
        insert_at = np.searchsorted(self.starts, starts)
        starts, ends = np.insert(self.starts, insert_at, starts), np.insert(self.ends, insert_at, ends)
        apart = starts[1:] != ends[:-1]
        self.starts = starts[np.concatenate(([True], apart))]
        self.ends = ends[np.concatenate((apart, [True]))]
        self.count += len(pages)


# Every page starts on a multiple of the widest element, complex128.
_ALIGNMENT = 16


class PageStorage:
    """Memory of one device, cut into pages.

    Args:
        num_pages: number of pages.
        page_bytes: a positive multiple of 16.
        device: where the memory is. On a CPU, what was never written takes no room.

    Attributes:
        pages: uint8, shape [num_pages, page_bytes].
    """

    def __init__(self, num_pages: int, page_bytes: int, device: str | torch.device) -> None:
        assert page_bytes > 0, f"page_bytes={page_bytes}"
        assert page_bytes % _ALIGNMENT == 0, f"page_bytes={page_bytes}"
        with torch.inference_mode(False):  # else it could not be written outside of that mode
            self.pages = torch.empty(num_pages, page_bytes, dtype=torch.uint8, device=device)

    def write(self, pages: Pages, tensor: Tensor, first_byte: int = 0) -> None:
        """Copies the elements, in their logical order, into the pages from ``first_byte`` on.

        The tensor may have any dtype, shape, strides and device. The other bytes keep their values.
        """
        tensor = tensor.detach()
        if tensor.untyped_storage().data_ptr() == self.pages.untyped_storage().data_ptr():
            tensor = tensor.clone()  # a view of these pages, maybe: copying could overtake itself
        if consecutive(pages):
            _window(self._run(pages), first_byte, tensor.dtype, tensor.shape).copy_(tensor)
            return
        gathered = self._gather(pages)
        _window(gathered.view(-1), first_byte, tensor.dtype, tensor.shape).copy_(tensor)
        self.pages.index_copy_(0, self._index(pages), gathered)

    def read(self, pages: Pages, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """The tensor that was written to the pages.

        Consecutive pages give a view that later writes change, and that means nothing once the pages are
        released; others are gathered into a new tensor.
        """
        if consecutive(pages):
            return _window(self._run(pages), 0, dtype, shape)
        return _window(self._gather(pages).view(-1), 0, dtype, shape)

    def _run(self, pages: Pages) -> Tensor:
        """The bytes of consecutive pages, a view: uint8, shape [pages * page_bytes]."""
        begin = int(pages[0]) if len(pages) else 0
        return self.pages[begin : begin + len(pages)].view(-1)

    def _index(self, pages: Pages) -> Tensor:
        return torch.from_numpy(as_index(pages)).to(self.pages.device)

    def _gather(self, pages: Pages) -> Tensor:
        return self.pages.index_select(0, self._index(pages))


def _window(memory: Tensor, begin: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """The view of one-dimensional bytes, from ``begin`` on, as a tensor."""
    end = begin + dtype.itemsize * math.prod(shape)
    assert end <= len(memory), f"bytes {begin}:{end} of {len(memory)}"
    return memory[begin:end].view(dtype).view(tuple(shape))
