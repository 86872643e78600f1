"""The bytes of pages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pahq_server.memory.runs import Pages, as_index, consecutive

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
