"""Errors of the paged pool.

OutOfPagesError   fewer pages are free than needed; the caller makes its batch smaller or preempts
IntegrityError    the bookkeeping contradicts itself: a bug of ours; carries the page
"""

from __future__ import annotations


class OutOfPagesError(Exception):
    """An allocation did not happen, not even in part.

    Args:
        needed: pages asked for.
        free: pages that were free after all evictors had been asked.
    """

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"{needed} pages needed, {free} free")
        self.needed = needed
        self.free = free


class IntegrityError(Exception):
    """References and bookkeeping of a pool disagree.

    Args:
        page: the first page (lowest number) found wrong.
        detail: in which way.
    """

    def __init__(self, page: int, detail: str) -> None:
        super().__init__(f"page {page}: {detail}")
        self.page = page
        self.detail = detail
