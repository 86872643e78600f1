"""Terms that some variants hear, added run by run or by index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.engine.sparse import contributions
from pahq_server.engine.sparse.contributions import Contribution
from pahq_server.engine.sparse.variants import with_layout


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=40), st.booleans())
def test_runs_of_tokens_are_those_of_the_index(variants: list[tuple[int, bool]], even: bool) -> None:
    sizes = np.array([3 if even else size for size, _ in variants])
    heard = np.flatnonzero([hears for _, hears in variants])
    if not len(heard):
        return
    generator = torch.Generator().manual_seed(len(variants))
    y = with_layout(torch.randn(int(sizes[heard].sum()), 2, generator=generator), sizes[heard])
    w = torch.randn(2, 5, generator=generator)
    before = with_layout(torch.randn(int(sizes.sum()), 5, generator=generator), sizes)
    totals, runs = [], int((np.diff(heard, prepend=-2) > 1).sum())
    for most in (0, 1 << 30):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(contributions, "MAX_RUNS", most)
            tokens = contributions._token_ranges(heard, sizes, y.device)
        assert isinstance(tokens, torch.Tensor) if most == 0 else len(tokens) == runs
        totals.append(Contribution(y, heard, tokens).add_to(before.clone(), w, before.shape[:2]))
    assert torch.equal(*totals)
    # One variant after the other.
    expected, product, first = before.flatten(0, 1).clone(), (y @ w).flatten(0, 1), 0
    ends = np.cumsum(sizes)
    for number in heard:
        some = slice(ends[number] - sizes[number], ends[number])
        expected[some] += product[first : first + sizes[number]]
        first += sizes[number]
    assert torch.allclose(totals[0].flatten(0, 1), expected, atol=1e-5)
