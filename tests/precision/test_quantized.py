"""Rounding to 8 bits: to the nearest code, with the right scale; converting back is exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import linear as reference

from pahq_server.precision import quantized as module
from pahq_server.precision.policy import Format
from pahq_server.precision.quantized import (
    DTYPES,
    LARGEST,
    SECOND_TERM_FACTOR,
    SMALLEST,
    Quantized,
    codes_to_floats,
    quantize,
    rounded,
    rounded_rows,
    to_floats,
)

FORMATS = [Format.INT8, Format.E4M3]
TYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40)
@given(seed=st.integers(0, 999), inputs=st.integers(1, 70), outputs=st.integers(1, 40))
def test_weights_are_rounded_to_nearest_per_output(
    form: Format, seed: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(seed)
    w = torch.randn(inputs, outputs) * 10.0 ** torch.randint(-6, 6, (outputs,))
    w[:, torch.rand(outputs) < 0.2] = 0
    q = quantize(w, form)
    assert (q.data.shape, q.data.dtype) == (w.shape, DTYPES[form])
    assert (q.scale.shape, q.scale.dtype) == ((1, outputs), torch.float32)
    assert torch.equal(q.scale[0], w.abs().amax(0) / LARGEST[form])
    ratio = torch.where(q.scale > 0, w / q.scale, 0)
    assert torch.equal(q.data.to(torch.float32), reference.nearest(ratio, form))
    assert torch.equal(to_floats(q, torch.float32), q.data.to(torch.float32) * q.scale)


@pytest.mark.parametrize("form", FORMATS)
def test_the_largest_weight_of_each_output_is_kept(form: Format) -> None:
    torch.manual_seed(0)
    w = torch.randn(300, 200) * torch.rand(200) ** 8
    kept = to_floats(quantize(w, form), torch.float32)
    largest = w.abs().argmax(0, keepdim=True)
    assert torch.allclose(kept.gather(0, largest), w.gather(0, largest), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("form", "error"), [(Format.INT8, 0.0077), (Format.E4M3, 0.0265)])
def test_the_error_of_gaussian_weights_is_what_the_format_allows(form: Format, error: float) -> None:
    torch.manual_seed(0)
    w = torch.randn(768, 400)
    assert float((to_floats(quantize(w, form), torch.float32) - w).norm() / w.norm()) == pytest.approx(
        error, rel=0.05
    )


@pytest.mark.parametrize("form", FORMATS)
def test_a_stack_of_matrices_is_a_matrix_each(form: Format) -> None:
    torch.manual_seed(0)
    w = torch.randn(3, 20, 6)
    stack = quantize(w, form)
    assert stack.scale.shape == (3, 1, 6)
    assert stack.nbytes == 3 * 20 * 6 + 4 * 3 * 6
    for i in range(3):
        _assert_same(stack[i], quantize(w[i], form))
        _assert_same(stack[i].outputs(2, 5), quantize(w[i, :, 2:5], form))
    _assert_same(stack.to(torch.device("cpu")), stack)


@pytest.mark.parametrize("form", FORMATS)
def test_weights_lie_in_one_order_whatever_order_they_came_in(form: Format) -> None:
    w = torch.randn(4, 12, 20)
    assert quantize(w.mT, form).data.is_contiguous()
    _assert_same(quantize(w.mT.contiguous(), form), quantize(w.mT, form))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_spoils_its_output_alone(form: Format, number: float) -> None:
    w = torch.ones(5, 3)
    w[2, 1] = number
    kept = to_floats(quantize(w, form), torch.float32)
    assert not kept[2, 1].isfinite()
    assert torch.equal(kept[:, [0, 2]], torch.ones(5, 2))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40)
@given(seed=st.integers(0, 999), rows=st.integers(1, 30), inputs=st.integers(1, 100))
def test_rows_are_rounded_as_by_the_reference(
    form: Format, dtype: torch.dtype, seed: int, rows: int, inputs: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(rows, inputs, dtype=dtype) * 10.0 ** torch.randint(-44, 38, (rows, 1))
    x[torch.rand(rows) < 0.2] = 0
    data, scale = rounded_rows(x, form)
    assert (data.dtype, scale.dtype, scale.shape) == (DTYPES[form], dtype, (rows, 1))
    for i, row in enumerate(x):
        expected, its_scale = reference.rounded_row(row, form)
        assert torch.equal(data[i].to(torch.float64), expected)
        assert scale[i] == its_scale
    assert torch.equal(rounded(x, scale, form).to(dtype), data.to(dtype))


@pytest.mark.parametrize("form", FORMATS)
def test_the_numbers_of_rows_stay_in_range(form: Format) -> None:
    torch.manual_seed(0)
    # Random numbers, since the largest code times the rounded scale may be above the largest number.
    largest = torch.rand(100_000, 1) * 10.0 ** torch.randint(-44, 38, (100_000, 1))
    data, _ = rounded_rows(torch.cat([largest, -largest], -1), form)
    assert (data.to(torch.float32).abs() <= LARGEST[form]).all()
    assert (data.to(torch.float32).abs() == LARGEST[form])[largest[:, 0] > SMALLEST].all()


@pytest.mark.parametrize("form", FORMATS)
def test_few_and_many_rows_are_rounded_alike(form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 40) * 10.0 ** torch.randint(-44, 38, (50, 1))
    x[0] = 0
    few = rounded_rows(x, form)
    monkeypatch.setattr(module, "MANY_NUMBERS", 0)
    many = rounded_rows(x, form)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(few, many, strict=True))


@pytest.mark.parametrize("many", [0, 1 << 20])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("form", FORMATS)
def test_rows_that_are_no_numbers_have_a_scale_that_is_none(
    form: Format, dtype: torch.dtype, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MANY_NUMBERS", many)
    x = torch.ones(4, 3, dtype=dtype)
    x[1, 0], x[2, 1], x[3, 2] = float("nan"), float("inf"), -float("inf")
    _, scale = rounded_rows(x, form)
    assert scale.isfinite()[:, 0].tolist() == [True, False, False, False]


@pytest.mark.parametrize("dtype", TYPES)
def test_every_8_bit_number_is_read_as_what_it_is(dtype: torch.dtype) -> None:
    codes = torch.arange(256).to(torch.uint8)
    assert torch.equal(codes_to_floats(codes.view(torch.int8), dtype), codes.view(torch.int8).to(dtype))
    floats = codes.view(torch.float8_e4m3fn)
    read, expected = codes_to_floats(floats, dtype), floats.to(dtype)
    assert read.dtype == dtype
    assert torch.equal(read[~expected.isnan()], expected[~expected.isnan()])
    assert torch.equal(codes_to_floats(floats.view(16, 16).mT, dtype), read.view(16, 16).mT)


def _assert_same(a: Quantized, b: Quantized) -> None:
    assert torch.equal(a.data.to(torch.float32), b.data.to(torch.float32))
    assert torch.equal(a.scale, b.scale)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("form", "error"), [(Format.INT8, 0.5 / 254), (Format.E4M3, 0.5)])
def test_a_second_term_is_what_the_first_leaves(form: Format, error: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 300, dtype=dtype) * torch.rand(50, 1, dtype=dtype) ** 6
    x[7] = 0
    one, scale = rounded_rows(x, form)
    both, same_scale = rounded_rows(x, form, 2)
    first, second = both.chunk(2)
    assert torch.equal(same_scale, scale)
    assert torch.equal(first.to(dtype), one.to(dtype))
    assert float(second.to(dtype).abs().max()) <= LARGEST[form]
    left = (x / scale - first.to(dtype) - second.to(dtype) / SECOND_TERM_FACTOR[form]).abs()
    # For 8-bit floats the error is half a step of the second term.
    assert float(left.max()) <= error * (1 + 1e-4)
    assert not both[7].to(dtype).any()
