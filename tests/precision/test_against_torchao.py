"""Rounding and products give the same numbers as torchao, PyTorch's quantization library."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchao import kernel
from torchao.quantization import quant_primitives as primitives

from pahq_server.precision.linear import linear
from pahq_server.precision.policy import Format
from pahq_server.precision.quantized import Quantized, quantize, rounded_rows

SHAPES = [(768, 64), (64, 768), (33, 5)]


def _matrix(rows: int, columns: int) -> Tensor:
    """Rows whose numbers have very different magnitudes."""
    torch.manual_seed(0)
    return torch.randn(rows, columns) * 10.0 ** torch.randint(-5, 5, (rows, 1))


def _int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of torchao, symmetric per row."""
    block, span = [1, x.shape[1]], {"quant_min": -127, "quant_max": 127}
    scale, zero = primitives.choose_qparams_affine(
        x,
        primitives.MappingType.SYMMETRIC,
        block,
        torch.int8,
        **span,
        scale_dtype=torch.float32,
        keepdim=True,
    )
    assert not zero.any()
    return primitives.quantize_affine(x, block, scale, zero, torch.int8, **span), scale


def _float8(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = primitives._choose_scale_float8(x, [1, x.shape[1]])
    return primitives._quantize_affine_float8(x, scale), scale


def _assert_same(data: Tensor, expected: Tensor, ratio: Tensor) -> None:
    """Equal, except halfway between two codes: torchao multiplies by 1 / scale instead of dividing."""
    between = ((ratio - ratio.floor()) - 0.5).abs() < 1e-4
    assert between.float().mean() < 1e-3
    assert torch.equal(data[~between], expected[~between])


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_int8_has_the_same_numbers(rows: int, columns: int) -> None:
    x = _matrix(rows, columns)
    expected, scale = _int8(x)
    data, our_scale = rounded_rows(x, Format.INT8)
    assert torch.equal(our_scale, scale)
    _assert_same(data, expected, x / scale)
    weights = quantize(x.T, Format.INT8)
    assert torch.equal(weights.scale.T, scale)
    _assert_same(weights.data.T, expected, x / scale)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_e4m3_has_the_same_numbers(rows: int, columns: int) -> None:
    x = _matrix(rows, columns)
    expected, scale = _float8(x)
    data, our_scale = rounded_rows(x, Format.E4M3)
    assert torch.equal(our_scale, scale)
    assert torch.equal(data.float(), expected.float())
    weights = quantize(x.T, Format.E4M3)
    assert torch.equal(weights.scale.T, scale)
    assert torch.equal(weights.data.T.float(), expected.float())


@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_int8_products_are_the_same(inner: int, outer: int) -> None:
    x, w = _matrix(20, inner), quantize(torch.randn(inner, outer), Format.INT8)
    # Without scales of outputs, which torchao and this server multiply in another order.
    unscaled = Quantized.of(w.data, torch.ones(1, outer))
    data, scale = rounded_rows(x, Format.INT8)
    expected = kernel.int_scaled_matmul(data, w.data, scale)
    assert torch.equal(linear(x, unscaled, Format.INT8), expected)
    assert torch.allclose(linear(x, w, Format.INT8), expected * w.scale, rtol=1e-6, atol=0)
