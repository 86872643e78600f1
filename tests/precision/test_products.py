"""Rows of a matrix product must not depend on each other, so that scores do not depend on batches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers.simulated import DEVICE, Elsewhere, simulated_device

from pahq_server.precision.products import (
    TILE_MATRICES,
    TILE_ROWS,
    add_matmul,
    inner,
    matmul,
    matmul_each,
    sums,
    tiles,
)


@pytest.fixture(params=[1, 2, 7], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Libraries split products among threads, and use other kernels for few rows than for many."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


ROWS = (*range(1, 40), 64, 100, 333)


@pytest.mark.parametrize("by_output", [False, True])
@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        (8, 5),
        (8, 1),
        (11, 8),
        (9, 8),
        (14, 7),
        (3, 3),
        (8, 8),
        (16, 20),
        (8, 104),
        (64, 64),
        (12, 40),
        (768, 64),
        (768, 768),
        (128, 4099),
    ],
)
def test_a_row_has_the_same_bits_in_any_company(inner: int, outer: int, by_output: bool) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(512, inner), torch.randn(inner, outer)
    w = w.T.contiguous().T if by_output else w
    everything = matmul(x, w)
    assert torch.allclose(everything, x @ w, atol=1e-3)
    total = torch.randn_like(everything)
    sums = add_matmul(total.clone(), x, w)
    for rows in ROWS:
        assert torch.equal(add_matmul(total[:rows].clone(), x[:rows], w), sums[:rows]), rows
        assert torch.equal(matmul(x[:rows], w), everything[:rows]), rows
        assert torch.equal(matmul(x[7 : 7 + rows], w), everything[7 : 7 + rows]), rows


@pytest.mark.parametrize("rows", [1, 15, 16, 100])
def test_adding_a_product_of_zeros_changes_nothing(rows: int) -> None:
    torch.manual_seed(0)
    total, w = torch.randn(rows, 24), torch.randn(8, 24)
    assert torch.equal(add_matmul(total.clone(), torch.zeros(rows, 8), w), total)
    x = torch.randn(rows, 8)
    assert torch.allclose(add_matmul(total.clone(), x, w), total + x @ w, atol=1e-5)


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
    """The same values, so many elements after the beginning of an allocation."""
    return torch.cat([torch.zeros(offset), x.flatten()])[offset:].view(x.shape)


@pytest.mark.parametrize("rows", [0, 1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 2 * TILE_ROWS + 76])
def test_products_elsewhere_are_made_of_tiles(rows: int) -> None:
    x, y, w = torch.randn(rows, 40), torch.randn(rows, 40), torch.randn(40, 7)
    with simulated_device():
        x_there, y_there, w_there = (tensor.to(DEVICE) for tensor in (x, y, w))
        product, total = matmul(x_there, w_there), torch.ones(rows, 7).to(DEVICE)
        add_matmul(total, x_there, w_there)
        found = (product, total, inner(x_there, y_there), sums(x_there))
    expected = (x @ w, 1 + x @ w, (x * y).sum(-1), x.sum(-1))
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Elsewhere)
        torch.testing.assert_close(one.here, other, rtol=1e-4, atol=1e-4)
    assert product.untyped_storage().nbytes() == product.nbytes, "a tile's padding is kept"


@pytest.mark.parametrize("count", [1, TILE_MATRICES - 1, TILE_MATRICES, TILE_MATRICES + 1])
def test_matrices_elsewhere_are_multiplied_in_tiles(count: int) -> None:
    a, b = torch.randn(count, 2, 5, 8), torch.randn(count, 2, 6, 8)
    with simulated_device():
        product = matmul_each(a.to(DEVICE), b.to(DEVICE).transpose(-1, -2))
    assert isinstance(product, Elsewhere)
    torch.testing.assert_close(product.here, a @ b.mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 24])
def test_tiles_are_alike(count: int) -> None:
    """Tiles have the same strides, whatever the layout of the tensor."""
    found = tiles(torch.randn(count, 3, 5).mT, 8)
    assert {(tile.shape, tile.stride()) for tile in found} == {((8, 5, 3), (15, 3, 1))}
    assert len(found) == max(1, -(-count // 8))
