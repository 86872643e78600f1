"""Grouping passes by the variants of their inputs, against a plain loop."""

from __future__ import annotations

from itertools import groupby
from unittest import mock

import numpy as np
import pytest

from pahq_server.engine.sparse import variants
from pahq_server.engine.sparse.variants import Index, merge, runs


def columns(rng: np.random.Generator, passes: int, count: int) -> list[Index]:
    """Variants of some inputs: few distinct ones, and some passes that change nothing."""
    found: list[Index] = [rng.integers(-1, rng.integers(1, 5), passes) for _ in range(count)]
    unchanged = rng.random(passes) < 0.3
    return [np.where(unchanged, -1, column) for column in found]


@pytest.mark.parametrize("few", [0, 1 << 30], ids=["many passes", "few passes"])
@pytest.mark.parametrize("seed", range(20))
def test_passes_share_a_variant_where_they_agree_on_all_inputs(seed: int, few: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = columns(rng, int(rng.integers(1, 120)), int(rng.integers(1, 6)))
    with mock.patch.object(variants, "FEW_PASSES", few):
        merged = merge(inputs)
    combinations = list(zip(*(column.tolist() for column in inputs), strict=True))
    distinct = [c for c in dict.fromkeys(combinations) if any(number >= 0 for number in c)]
    if not distinct:
        assert merged is None
        return
    assert merged is not None
    assert merged.count == len(distinct)
    assert merged.variant.tolist() == [distinct.index(c) if c in distinct else -1 for c in combinations]
    assert merged.first.tolist() == [combinations.index(c) for c in distinct]
    assert [pick.tolist() for pick in merged.picks] == [list(pick) for pick in zip(*distinct, strict=True)]


@pytest.mark.parametrize("few", [0, 1 << 30])
def test_nothing_to_merge(few: int) -> None:
    with mock.patch.object(variants, "FEW_PASSES", few):
        assert merge([]) is None
        assert merge([np.full(3, -1), np.full(3, -1)]) is None


def test_many_inputs_do_not_overflow() -> None:
    """Their combinations are more than there are numbers of 64 bits."""
    rng = np.random.default_rng(0)
    inputs: list[Index] = [rng.permutation(200) for _ in range(12)]
    merged = merge(inputs)
    assert merged is not None
    assert merged.variant.tolist() == list(range(200))


@pytest.mark.parametrize("numbers", [[], [3], [0, 0], [0, 1, 1, 0], [5, 5, 2, 2, 2, 7]])
def test_runs_of_equal_numbers(numbers: list[int]) -> None:
    found = runs(np.array(numbers, dtype=np.int64))
    lengths = [len(list(group)) for _, group in groupby(numbers)]
    assert [end - begin for begin, end in found] == lengths
    assert [n for begin, end in found for n in numbers[begin:end]] == numbers
