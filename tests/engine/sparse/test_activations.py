"""The executor's activations: the right function, and the same bits at every place."""

from __future__ import annotations

import pytest
import torch

from pahq_server.engine import transformer
from pahq_server.engine.sparse.weights import ACTIVATIONS


@pytest.mark.parametrize("name", sorted(transformer.ACTIVATIONS))
def test_it_is_the_same_function(name: str) -> None:
    x = torch.linspace(-30, 30, 10_007, dtype=torch.float64).view(1, -1)
    assert torch.allclose(ACTIVATIONS[name](x), transformer.ACTIVATIONS[name](x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", sorted(transformer.ACTIVATIONS))
def test_an_element_has_the_same_bits_at_every_place(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 70_003) * 4
    everything = ACTIVATIONS[name](x)
    for start in (0, 1, 3, 8, 13):
        for count in (1, 2, 3, 7, 8, 9, 15, 17, 31, 33, 1001, 40_000):
            part = slice(start, start + count)
            assert torch.equal(ACTIVATIONS[name](x[:, part].contiguous()), everything[:, part])
