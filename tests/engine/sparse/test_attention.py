"""Attention of one variant must not depend on the variants beside it: scores rest on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.random_passes import random_task
from helpers.zoo import Zoo

from pahq_server.engine.sparse.positions import PositionSet, TokenLayout, attend

VARIANTS = 12


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("lengths", [(90, 81, 150), (135,)], ids=str)
@pytest.mark.parametrize("places", PositionSet)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 10, 15, 64])
def test_a_variant_has_the_same_bits_in_any_company(
    width: int, places: PositionSet, lengths: tuple[int, ...], threads: int, zoo: Zoo, restored_threads: None
) -> None:
    torch.set_num_threads(threads)
    model = zoo["gpt2"]
    task = random_task(model, lengths)
    tokens = TokenLayout.of(model.architecture, task, "resample")
    torch.manual_seed(0)
    count, before = tokens.count(PositionSet.WINDOW), (tokens.prompts, tokens.start)
    q, k, v = (torch.randn(VARIANTS, n, width) for n in (tokens.count(places), count, count))
    past = [torch.randn(VARIANTS, *before, width) for _ in "kv"] if tokens.start else None
    together = attend(tokens, 0, places, (q, k, v), past)
    assert together.shape == q.shape
    for first in range(VARIANTS):
        for some in (slice(first, first + 1), slice(first, first + 3)):
            qkv = (q[some].clone(), k[some].clone(), v[some].clone())
            alone = attend(tokens, 0, places, qkv, past and [x[some].clone() for x in past])
            assert torch.equal(alone, together[some])
