"""The pool: equal pages of a device's memory with reference counts.

`PagePool.check_integrity` recounts all references from what their holders say, and names the first page that
is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from pahq_server.memory.pages import FreeRuns, Pages, PageStorage, as_index, distinct


class OutOfPagesError(Exception):
    """Fewer pages are free than an allocation needs; none was allocated. Callers use smaller batches or wait.

    Args:
        needed: pages that were asked for.
        free: pages that were free after all evictors had been called.
    """

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"{needed} pages needed, {free} free")
        self.needed = needed
        self.free = free


class IntegrityError(Exception):
    """The reference counts of a pool are wrong: a bug in this server.

    Args:
        page: the lowest page whose count is wrong.
        detail: in which way.
    """

    def __init__(self, page: int, detail: str) -> None:
        super().__init__(f"page {page}: {detail}")
        self.page = page
        self.detail = detail


class PageOwner(Protocol):
    """An object that holds references to pages, such as a `BlockTable`."""

    def held_pages(self) -> Pages:
        """Returns the pages, each as often as there are references: int32 [references]."""
        ...


def check_counts(counts: Pages, held: Iterable[Pages]) -> None:
    """Raises IntegrityError unless each page is in ``held`` as often as ``counts`` says.

    Args:
        counts: references to each page, int32 [pages].
        held: the pages of each holder, int32 [references] each.
    """
    mentioned = np.concatenate([np.empty(0, dtype=np.int32), *held])
    mentions = np.bincount(mentioned, minlength=len(counts))
    wrong = np.flatnonzero(counts != mentions)
    if len(wrong):
        page = int(wrong[0])
        raise IntegrityError(page, _difference(int(counts[page]), int(mentions[page])))


def _difference(count: int, held: int) -> str:
    if not held:
        return f"leaked: counts {count} references, held by nobody"
    if not count:
        return f"used after free: counts no reference, held {held} times"
    return f"count too {'high' if count > held else 'low'}: counts {count} references, held {held} times"


def check_free_runs(free: FreeRuns, counts: Pages) -> None:
    """Raises IntegrityError unless the free runs are exactly the pages without references, each page once.

    Runs must be merged, too: no run may begin where another one ends.
    """
    changes = np.zeros(len(counts) + 1, dtype=np.int64)
    np.add.at(changes, free.starts, 1)
    np.add.at(changes, free.ends, -1)
    listed = np.cumsum(changes)[:-1]
    wrong = np.flatnonzero(listed != (counts == 0))
    if len(wrong):
        page = int(wrong[0])
        raise IntegrityError(
            page, f"free list: listed {listed[page]} times, counts {counts[page]} references"
        )
    unmerged = np.flatnonzero(free.starts[1:] <= free.ends[:-1])
    if len(unmerged):
        raise IntegrityError(int(free.starts[unmerged[0] + 1]), "free list: run starts where another ends")
    if free.count != listed.sum():
        raise IntegrityError(0, f"free list: says {free.count} pages, lists {listed.sum()}")


_ONE = np.int32(1)  # in the dtype of the counts, since numpy's ufunc.at is slow for mixed ones


@dataclass(frozen=True)
class PoolStatistics:
    """The state of a pool, and counts since it was made.

    Args:
        page_bytes: size of a page.
        pages: all pages, free ones and used ones.
        free: pages without references.
        used: pages with references.
        shared: pages with more than one reference.
        peak_used: most pages that were ever in use at once.
        allocations: successful calls of `PagePool.allocate`.
        copies_on_write: shared blocks that were copied because one holder wrote to them.
        evictions: pages that evictors freed for allocations.
    """

    page_bytes: int
    pages: int
    free: int
    used: int
    shared: int
    peak_used: int
    allocations: int
    copies_on_write: int
    evictions: int


class PagePool:
    """Equal pages of one device's memory, with reference counts.

    Args:
        capacity_bytes: size of the pool, rounded down to whole pages. On a CPU, pages take no physical memory
            before they are written, and low pages are handed out first.
        device: where the pages are.
        page_bytes: size of a page, a positive multiple of 16.

    Attributes:
        storage: uint8 [pages, page_bytes]. Kernels may read it in place through a table's pages.
        counts: references to each page, int32 [pages]; 0 for free pages.
        copies_on_write: shared blocks that were copied because one holder wrote to them; tables count them
            here.
    """

    def __init__(
        self, capacity_bytes: int, device: str | torch.device = "cpu", page_bytes: int = 64 * 1024
    ) -> None:
        self.page_bytes = page_bytes
        self.num_pages = capacity_bytes // page_bytes
        self._storage = PageStorage(self.num_pages, page_bytes, device)
        self.storage = self._storage.pages
        self.counts = np.zeros(self.num_pages, dtype=np.int32)
        self.copies_on_write = 0
        self._free = FreeRuns(self.num_pages)
        self._owners: WeakSet[PageOwner] = WeakSet()
        self._evictors: list[Callable[[int], int]] = []
        self._peak_used = self._allocations = self._evictions = 0

    def pages_for(self, num_bytes: int) -> int:
        """Returns the number of pages that ``num_bytes`` bytes take."""
        return -(-num_bytes // self.page_bytes)

    @property
    def free(self) -> int:
        """Number of free pages."""
        return self._free.count

    @property
    def shared(self) -> int:
        """Number of pages with more than one reference."""
        return int(np.count_nonzero(self.counts > 1))

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            page_bytes=self.page_bytes,
            pages=self.num_pages,
            free=self.free,
            used=self.num_pages - self.free,
            shared=self.shared,
            peak_used=self._peak_used,
            allocations=self._allocations,
            copies_on_write=self.copies_on_write,
            evictions=self._evictions,
        )

    def register(self, owner: PageOwner) -> None:
        """Has `check_integrity` count the owner's references, as long as the owner is alive."""
        self._owners.add(owner)

    def add_evictor(self, evict: Callable[[int], int]) -> None:
        """Adds a function that frees pages when an allocation needs more than are free.

        Args:
            evict: called with how many pages are missing; returns how many pages became free, maybe fewer.
                Functions are called in the order in which they were added.
        """
        self._evictors.append(evict)

    def allocate(self, count: int) -> Pages:
        """Allocates ``count`` pages with one reference each, consecutive if a free run is long enough.

        Returns:
            Page numbers, int32 [count].

        Raises OutOfPagesError if evictors cannot free enough pages; nothing is allocated then.
        """
        assert count >= 0, f"{count} pages"
        self._make_room(count)
        self._allocations += 1
        if not count:
            return np.empty(0, dtype=np.int32)
        pages = self._free.take(count)
        self.counts[pages] = 1
        self._peak_used = max(self._peak_used, self.num_pages - self.free)
        return pages

    def _make_room(self, count: int) -> None:
        if self.free < count <= self.num_pages:  # evicting is of no use if the pool is too small anyway
            for evict in self._evictors:
                if self.free < count:
                    self._evictions += evict(count - self.free)
        if self.free < count:
            raise OutOfPagesError(count, self.free)

    def retain(self, pages: Pages) -> None:
        """Adds a reference to each page, and two to a page that is given twice. Pages must be in use."""
        index = as_index(pages)
        assert (self.counts[index] > 0).all(), f"free page among {pages}"
        np.add.at(self.counts, index, _ONE)

    def release(self, pages: Pages) -> None:
        """Removes a reference from each page; pages without references become free.

        Raises AssertionError and changes nothing if a page is given more often than it has references.
        """
        index = as_index(pages)
        np.subtract.at(self.counts, index, _ONE)
        left = self.counts[index]
        if (left < 0).any():
            np.add.at(self.counts, index, _ONE)
            raise AssertionError(f"page {index[left < 0][0]} is released more often than it has references")
        self._free.give(distinct(pages[left == 0]))

    def write(self, pages: Pages, tensor: Tensor, first_byte: int = 0) -> None:
        """Copies a tensor into pages; see `PageStorage.write`."""
        self._storage.write(pages, tensor, first_byte)

    def read(self, pages: Pages, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Reads a tensor from pages, as a view if they are consecutive; see `PageStorage.read`."""
        return self._storage.read(pages, dtype, shape)

    def check_integrity(self, held: Iterable[Pages] = ()) -> None:
        """Recounts all references. Raises IntegrityError for the first page that is wrong.

        Args:
            held: pages that callers of `allocate` hold and that belong to no registered owner.
        """
        check_free_runs(self._free, self.counts)
        check_counts(self.counts, [*(owner.held_pages() for owner in self._owners), *held])
