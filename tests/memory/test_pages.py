from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.memory.pages import FreeRuns, consecutive, distinct, expand, runs_of

PAGES = 40
page_sets = st.sets(st.integers(0, PAGES - 1), min_size=1)


def as_pages(pages: object) -> np.ndarray:
    return np.array(pages, dtype=np.int32)


def listed(free: FreeRuns) -> list[int]:
    return [page for start, end in zip(free.starts, free.ends, strict=True) for page in range(start, end)]


@given(page_sets)
def test_runs_and_pages_round_trip(pages: set[int]) -> None:
    ascending = as_pages(sorted(pages))
    assert expand(*runs_of(ascending)).tolist() == sorted(pages)
    assert distinct(as_pages([*pages, *pages])).tolist() == sorted(pages)


@given(page_sets)
def test_given_pages_join_the_runs_beside_them(used: set[int]) -> None:
    free = FreeRuns(PAGES)
    assert free.take(PAGES).tolist() == list(range(PAGES))
    free.give(as_pages(sorted(set(range(PAGES)) - used)))
    assert listed(free) == sorted(set(range(PAGES)) - used)
    free.give(as_pages(sorted(used)))
    assert (free.starts.tolist(), free.ends.tolist(), free.count) == ([0], [PAGES], PAGES)


@given(page_sets, st.data())
def test_taken_are_the_lowest_long_run_else_the_lowest_pages(pages: set[int], data: st.DataObject) -> None:
    free = FreeRuns(PAGES)
    free.take(PAGES)
    free.give(as_pages(sorted(pages)))
    count = data.draw(st.integers(1, len(pages)))
    runs = [list(range(start, start + count)) for start in range(PAGES)]
    expected = next((run for run in runs if pages.issuperset(run)), sorted(pages)[:count])
    taken = free.take(count)
    assert taken.tolist() == expected
    assert taken.dtype == np.int32
    assert listed(free) == sorted(pages - set(expected))
    assert free.count == len(pages) - count


def test_consecutive_means_ascending_by_one() -> None:
    assert consecutive(as_pages([]))
    assert consecutive(as_pages([7]))
    assert consecutive(as_pages([7, 8, 9]))
    for pages in ([8, 7], [1, 3], [0, 2, 1, 3], [0, 1, 1, 3]):
        assert not consecutive(as_pages(pages))
