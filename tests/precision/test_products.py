"""Rows of a matrix product must not depend on each other: scores rest on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from pahq_server.precision.products import add_matmul, matmul


@pytest.fixture(params=[1, 2, 7], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Libraries split products among threads, and few rows go another way than many."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


ROWS = (*range(1, 40), 64, 100, 333)


@pytest.mark.parametrize("by_output", [False, True])
@pytest.mark.parametrize(("rows", "inner", "outer"), [(5, 4, 135), (13, 8, 13), (16, 32, 16), (40, 64, 24)])
def test_a_product_has_the_same_bits_at_any_address(rows: int, inner: int, outer: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 1, rows, inner), torch.randn(2, 1, outer, inner)
    expected = torch.matmul(x, w.transpose(-1, -2))
    for offset in range(1, 16):
        moved_x, moved_w = _moved(x, offset), _moved(w, 3 * offset)
        assert torch.equal(torch.matmul(moved_x, moved_w.transpose(-1, -2)), expected), offset
        assert torch.equal(matmul(moved_x, moved_w[0, 0].T), matmul(x, w[0, 0].T)), offset


def _moved(x: torch.Tensor, offset: int) -> torch.Tensor:
    """The same values so many elements further on in memory than where an allocation begins."""
    return torch.cat([torch.zeros(offset), x.flatten()])[offset:].view(x.shape)
