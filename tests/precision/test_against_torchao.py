"""Rounding and products give the same numbers as torchao, PyTorch's quantization library."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchao import kernel
from torchao.quantization import Float8Tensor, Int8Tensor
from torchao.quantization import quant_primitives as primitives

from pahq_server.precision.linear import linear
from pahq_server.precision.policy import Format
from pahq_server.precision.quantized import LARGEST, Quantized, quantize, rounded_rows, to_floats

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


@pytest.mark.parametrize("form", [Format.INT8, Format.E4M3])
@pytest.mark.parametrize("shape", [(64, 24), (3, 33, 5), (1, 7), (2, 1, 4)])
def test_matrices_are_weights_of_torchao(form: Format, shape: tuple[int, ...]) -> None:
    """Symmetric, with one scale per output; the same floats; and torchao multiplies with them."""
    torch.manual_seed(0)
    w = torch.randn(shape)
    matrix = quantize(w, form)
    weight: Any = matrix.weight
    assert type(weight) is (Int8Tensor if form is Format.INT8 else Float8Tensor)
    assert weight.shape == w.mT.shape
    assert weight.scale.shape == (*w.mT.shape[:-1], 1)
    assert weight.block_size == [1] * (w.dim() - 1) + [w.shape[-2]]
    assert torch.equal(weight.dequantize().mT, to_floats(matrix, torch.float32))
    assert weight.qdata.data_ptr() == matrix.data.data_ptr()
    if w.dim() == 2:
        x = torch.randn(6, w.shape[0])
        product = torch.nn.functional.linear(x, weight)
        assert torch.allclose(product, linear(x, matrix, Format.FP32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [Format.INT8, Format.E4M3])
def test_outputs_of_zeros_and_tiny_weights(form: Format) -> None:
    """torchao's smallest scale would be that of a weight of 1e-5: none is set."""
    w = torch.randn(16, 6) * torch.tensor([1.0, 0.0, 1e-12, 1e-30, 1e-38, 0.0])
    matrix = quantize(w, form)
    assert torch.equal(matrix.scale, w.abs().amax(0, keepdim=True) / LARGEST[form])
    assert not matrix.data.float()[:, 1].any()


@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_int8_products_are_the_same(inner: int, outer: int) -> None:
    x, w = _matrix(20, inner), quantize(torch.randn(inner, outer), Format.INT8)
    # Without scales of outputs, which torchao and this server multiply in another order.
    unscaled = Quantized.of(w.data, torch.ones(1, outer))
    data, scale = rounded_rows(x, Format.INT8)
    expected = kernel.int_scaled_matmul(data, w.data, scale)
    assert torch.equal(linear(x, unscaled, Format.INT8), expected)
    assert torch.allclose(linear(x, w, Format.INT8), expected * w.scale, rtol=1e-6, atol=0)
