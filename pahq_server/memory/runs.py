"""Free pages as runs of consecutive ones.

What is kept is proportional to the number of holes, never to the number of pages: the untouched end of a
pool is one run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
        places = np.searchsorted(self.starts, starts)
        starts, ends = np.insert(self.starts, places, starts), np.insert(self.ends, places, ends)
        apart = starts[1:] != ends[:-1]
        self.starts = starts[np.concatenate(([True], apart))]
        self.ends = ends[np.concatenate((apart, [True]))]
        self.count += len(pages)
