"""Recounting the references of a pool: the slow, obvious twin of its bookkeeping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from pahq_server.memory.errors import IntegrityError
from pahq_server.memory.runs import FreeRuns, Pages


class PageOwner(Protocol):
    """Who holds references to pages."""

    def held_pages(self) -> Pages:
        """Pages, each mentioned once per reference: int32, shape [references]."""
        ...


def check_counts(counts: Pages, held: Iterable[Pages]) -> None:
    """Raises IntegrityError unless every page is mentioned in ``held`` as often as ``counts`` says."""
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
    """Raises IntegrityError unless exactly the pages without references are free, once, in merged runs."""
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
