"""Device memory of a chosen number of pages, for tests of what happens when it is short."""

from __future__ import annotations

import gc
import math

from pahq_server.engine.sparse.memory import SCRATCH_SHARE, DeviceMemory
from pahq_server.memory.pages import Pages
from pahq_server.memory.pool import PagePool

# So small that most tensors of the small models take several pages.
PAGE_BYTES = 64


def device_memory(pages: int, scratch_bytes: int | None = None, page_bytes: int = PAGE_BYTES) -> DeviceMemory:
    """A pool of so many pages; ``scratch_bytes`` is roomy unless given."""
    memory = DeviceMemory(math.ceil(pages * page_bytes / (1 - SCRATCH_SHARE)), page_bytes)
    assert memory.pool.num_pages == pages
    memory.scratch_bytes = 1 << 30 if scratch_bytes is None else scratch_bytes
    return memory


def scatter(pool: PagePool) -> Pages:
    """Takes every third page, so that no three free ones stand together; returns what it took."""
    taken = pool.allocate(pool.num_pages)
    held, others = taken[::3], [*taken[1::3], *taken[2::3]]
    for page in others:
        pool.release(taken[taken == page])
    return held


def assert_intact(memory: DeviceMemory, *held: Pages, used: int | None = None) -> None:
    """The bookkeeping of the pool is right and, if given, so many pages are used.

    Args:
        memory: of which.
        held: pages that the test holds.
        used: beside these.
    """
    gc.collect()  # tables that only a traceback or a cycle kept alive would count as owners
    memory.pool.check_integrity(held)
    if used is not None:
        assert memory.pool.statistics().used - sum(map(len, held)) == used
