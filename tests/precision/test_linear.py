"""Products with rounded matrices equal the reference's, and their rows do not depend on each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import linear as reference
from torch import Tensor

from pahq_server.precision import linear as module
from pahq_server.precision.linear import integer_matmul, linear
from pahq_server.precision.policy import Format
from pahq_server.precision.products import matmul
from pahq_server.precision.quantized import Quantized, quantize, rounded_rows, to_floats

INT8, E4M3, FP32 = Format.INT8, Format.E4M3, Format.FP32
# Formats of weights and inputs, and the number of terms.
PATHS = [
    (INT8, INT8, 1),
    (INT8, INT8, 2),
    (INT8, FP32, 1),
    (E4M3, FP32, 1),
    (E4M3, E4M3, 1),
    (E4M3, E4M3, 2),
]
TYPES = [torch.float32, torch.float64]
SHAPES = [(64, 64), (768, 64), (64, 768), (3, 5), (17, 1), (1, 9), (129, 33), (300, 7), (1100, 24)]
NO_NUMBERS = [float("nan"), float("inf"), -float("inf")]
EPSILON = {torch.float32: 2e-6, torch.float64: 3e-15}

paths = pytest.mark.parametrize(("weights", "inputs", "terms"), PATHS)
types = pytest.mark.parametrize("dtype", TYPES)
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@paths
@types
@settings(max_examples=40)
@given(
    seed=st.integers(0, 999),
    sizes=st.tuples(st.integers(0, 40), st.integers(1, 140), st.integers(1, 90)),
    magnitude=st.integers(-20, 20),
)
def test_products_are_those_of_the_twin(
    weights: Format,
    inputs: Format,
    terms: int,
    dtype: torch.dtype,
    seed: int,
    sizes: tuple[int, int, int],
    magnitude: int,
) -> None:
    torch.manual_seed(seed)
    rows, inner, outer = sizes
    x = torch.randn(rows, inner, dtype=dtype) * 10.0**magnitude * torch.rand(rows, 1) ** 9
    x[torch.rand(rows) < 0.2] = 0
    w = torch.randn(inner, outer)
    w[:, torch.rand(outer) < 0.2] = 0
    _assert_as_twin(x, quantize(w, weights), inputs, terms)


@paths
@types
@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_products_of_many_rows_are_those_of_the_twin(
    weights: Format, inputs: Format, terms: int, dtype: torch.dtype, inner: int, outer: int
) -> None:
    torch.manual_seed(0)
    _assert_as_twin(
        torch.randn(2, 33, inner, dtype=dtype), quantize(torch.randn(inner, outer), weights), inputs, terms
    )


@paths
def test_rounded_products_are_close_to_those_of_full_precision(
    weights: Format, inputs: Format, terms: int
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(100, 768), torch.randn(768, 64)
    error = linear(x, quantize(w, weights), inputs, terms) - x @ w
    assert 0 < float(error.norm() / (x @ w).norm()) < (0.015 if weights is INT8 else 0.05)


@pytest.mark.parametrize("form", [INT8, E4M3])
def test_a_second_term_leaves_only_the_error_of_the_weights(form: Format) -> None:
    torch.manual_seed(0)
    # Nearly all numbers are small and a few are large, as in differences of hidden units.
    x, w = torch.randn(100, 768) ** 5, torch.randn(768, 64)
    q = quantize(w, form)
    exact = x @ to_floats(q, torch.float32)
    one, two = (float((linear(x, q, form, terms) - exact).norm() / exact.norm()) for terms in (1, 2))
    assert two < one / 15
    assert two < 0.2 * float((exact - x @ w).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [*TYPES, torch.bfloat16])
def test_a_matrix_that_is_not_rounded_is_multiplied_as_it_is(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 20, 64).to(dtype), torch.randn(64, 48).to(dtype)
    assert torch.equal(linear(x, w, FP32), matmul(x, w))
    assert torch.equal(linear(x, w, Format.BF16), matmul(x, w))
    expected = reference.linear(x, w, FP32)
    assert expected.dtype == linear(x, w, FP32).dtype == dtype
    assert torch.allclose(
        linear(x, w, FP32), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4
    )


@paths
@types
@pytest.mark.parametrize("shape", [(64,), (1, 64), (0, 64), (2, 0, 64), (2, 3, 5, 64)])
def test_all_but_the_last_size_are_kept(
    weights: Format, inputs: Format, terms: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(shape, dtype=dtype), quantize(torch.randn(64, 12), weights)
    product = linear(x, w, inputs, terms)
    assert (product.shape, product.dtype) == ((*shape[:-1], 12), dtype)
    assert torch.equal(product.reshape(-1, 12), linear(x.reshape(-1, 64), w, inputs, terms))


# Without unrounded inputs in float64, for whose sums `products` promises nothing.
@pytest.mark.parametrize(
    ("weights", "inputs", "terms", "dtype"),
    [
        *((*path, torch.float32) for path in PATHS),
        *((*path, torch.float64) for path in PATHS if path[1] is not FP32),
    ],
)
@pytest.mark.parametrize(("inner", "outer"), [*SHAPES, (768, 768), (768, 3072)])
def test_a_row_has_the_same_bits_in_any_company(
    weights: Format, inputs: Format, terms: int, dtype: torch.dtype, inner: int, outer: int
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(400, inner, dtype=dtype), quantize(torch.randn(inner, outer), weights)
    everything = linear(x, w, inputs, terms)
    for rows in (*range(1, 36), 64, 100, 333):
        assert torch.equal(linear(x[:rows], w, inputs, terms), everything[:rows]), rows
        assert torch.equal(linear(x[7 : 7 + rows], w, inputs, terms), everything[7 : 7 + rows]), rows


@paths
def test_a_row_has_the_same_bits_however_it_lies_in_memory(
    weights: Format, inputs: Format, terms: int
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(40, 64), quantize(torch.randn(64, 33), weights)
    expected = linear(x, w, inputs, terms)
    shifted = torch.cat([torch.zeros(3), x.flatten()])[3:].view(40, 64)
    padded = torch.cat([x, torch.zeros(40, 5)], -1)[:, :64]
    for same in (shifted, padded, x.T.contiguous().T):
        assert torch.equal(linear(same, w, inputs, terms), expected)
    repeated = x[:1].expand(40, 64)
    assert torch.equal(linear(repeated, w, inputs, terms), expected[:1].expand(40, 33))
    lone = linear(x[:, None][:1].expand(1, 1, 64), w, inputs, terms)
    assert torch.equal(lone[0], expected[:1])


@paths
def test_inputs_are_left_as_they_are(weights: Format, inputs: Format, terms: int) -> None:
    x = torch.randn(20, 64)
    before = x.clone()
    linear(x, quantize(torch.randn(64, 8), weights), inputs, terms)
    assert torch.equal(x, before)


@paths
@types
@pytest.mark.parametrize("rows", [1, 5, 50])
def test_rows_of_zeros_give_zeros(
    weights: Format, inputs: Format, terms: int, dtype: torch.dtype, rows: int
) -> None:
    torch.manual_seed(0)
    w = quantize(torch.randn(64, 24), weights)
    x = torch.randn(rows, 64, dtype=dtype)
    x[0] = 0
    assert torch.equal(linear(x, w, inputs, terms)[0], torch.zeros(24, dtype=dtype))
    assert not linear(torch.zeros_like(x), w, inputs, terms).any()


@paths
@types
@pytest.mark.parametrize("number", NO_NUMBERS)
def test_what_is_no_number_spoils_its_row_alone(
    weights: Format, inputs: Format, terms: int, dtype: torch.dtype, number: float
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(20, 64, dtype=dtype), torch.randn(64, 24)
    w[:, 5] = 0
    q = quantize(w, weights)
    expected = linear(x, q, inputs, terms)
    x[3, 11] = number
    spoilt = linear(x, q, inputs, terms)
    assert not spoilt[3].isfinite().any()
    if number != number:
        assert spoilt[3].isnan().all()
    others = torch.arange(20) != 3
    assert torch.equal(spoilt[others], expected[others])


@paths
@pytest.mark.parametrize("number", NO_NUMBERS)
def test_a_weight_that_is_no_number_spoils_its_output_alone(
    weights: Format, inputs: Format, terms: int, number: float
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(20, 64), torch.randn(64, 24)
    expected = linear(x, quantize(w, weights), inputs, terms)
    w[11, 3] = number
    spoilt = linear(x, quantize(w, weights), inputs, terms)
    assert not spoilt[:, 3].isfinite().any()
    others = torch.arange(24) != 3
    assert torch.equal(spoilt[:, others], expected[:, others])


@pytest.mark.parametrize("weights", [INT8, E4M3])
@pytest.mark.parametrize("magnitude", [-45, -38, -30, 0, 30, 38])
def test_rows_of_any_size_are_rounded(weights: Format, magnitude: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(20, 64) * 10.0**magnitude
    q = quantize(torch.randn(64, 24) * 1e-3, weights)
    _assert_as_twin(x, q, weights)
    assert linear(x, q, weights).isfinite().all()


@paths
def test_a_stack_of_matrices_can_be_taken_apart(weights: Format, inputs: Format, terms: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(20, 64), torch.randn(3, 64, 40)
    stack = quantize(w, weights)
    for i in range(3):
        whole = linear(x, stack[i], inputs, terms)
        assert torch.equal(whole, linear(x, quantize(w[i], weights), inputs, terms))
        part = linear(x, stack[i].outputs(7, 20), inputs, terms)
        assert torch.allclose(part, whole[:, 7:20], rtol=1e-5, atol=1e-5)


@paths
def test_large_products_are_computed_in_parts(
    weights: Format, inputs: Format, terms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(50, 96), quantize(torch.randn(96, 41), weights)
    whole = linear(x, w, inputs, terms)
    monkeypatch.setattr(module, "LARGE_INPUTS", 1000)
    monkeypatch.setattr(module, "LARGE_WEIGHTS", 1000)
    parts = linear(x, w, inputs, terms)
    if inputs is INT8:
        assert torch.equal(parts, whole)
    _assert_as_twin(x, w, inputs, terms)
    assert torch.equal(linear(x[:20], w, inputs, terms), parts[:20])


@pytest.mark.parametrize("inner", [1, 64, 1039, 1040, 1041, 5000])
@pytest.mark.parametrize(
    "multiply", [integer_matmul, module._integers_by_floats, module._padded_integer_matmul]
)
def test_products_of_integers_are_exact(multiply: Callable[[Tensor, Tensor], Tensor], inner: int) -> None:
    torch.manual_seed(0)
    a = torch.randint(-127, 128, (5, inner), dtype=torch.int8)
    b = torch.randint(-127, 128, (inner, 6), dtype=torch.int8)
    a[0], b[:, 0], b[:, 1] = 127, 127, -127
    product = multiply(a, b)
    assert product.dtype == torch.int32
    assert torch.equal(product, (a.to(torch.int64) @ b.to(torch.int64)).to(torch.int32))


@pytest.mark.parametrize("multiply", [module.integer_matmul, module._integers_by_floats])
@pytest.mark.parametrize("inner", [64, module.EXACT_IN_FLOAT32, 3000])
def test_codes_that_others_rounded_go_down_to_minus_128(
    multiply: Callable[[Tensor, Tensor], Tensor], inner: int
) -> None:
    torch.manual_seed(0)
    a = torch.randint(-127, 128, (40, inner), dtype=torch.int8)
    b = torch.randint(-128, 128, (inner, 24), dtype=torch.int8)
    a[0], a[1], b[:, 0], b[:, 1] = 127, -127, -128, 127
    assert torch.equal(multiply(a, b).to(torch.int64), a.to(torch.int64) @ b.to(torch.int64))


@pytest.mark.parametrize("inner", [module.EXACT_INPUTS - 1, module.EXACT_INPUTS, module.EXACT_INPUTS + 1])
def test_the_largest_inputs_and_codes_do_not_overflow(inner: int) -> None:
    w = Quantized.of(torch.full((inner, 5), -128, dtype=torch.int8), torch.ones(1, 5))
    x = torch.full((3, inner), 127.0)
    assert linear(x, w, INT8, 2) == pytest.approx(-128 * 127 * inner, rel=1e-6)


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("inputs", [Format.FP32, Format.INT8])
def test_a_factor_on_each_input(inputs: Format, terms: int) -> None:
    """Is multiplied into inputs before they are rounded, and into the matrix where that becomes floats."""
    torch.manual_seed(0)
    x, factor, plain = torch.randn(30, 64), 1 + torch.rand(64), quantize(torch.randn(64, 24), INT8)
    w = Quantized.of(plain.data, plain.scale, factor)
    assert torch.equal(linear(x, w, inputs, terms), linear(x * factor, plain, inputs, terms))
    floats = to_floats(plain, torch.float32)
    assert torch.equal(to_floats(w, torch.float32), factor[:, None] * floats)
    assert torch.equal(to_floats(w.outputs(3, 9), torch.float32), (factor[:, None] * floats)[:, 3:9])
    assert torch.equal(w.to(torch.device("cpu")).inputs, factor)  # type: ignore[arg-type]
    assert w.nbytes == plain.nbytes + factor.nbytes


@pytest.mark.parametrize("inner", [module.EXACT_INPUTS - 1, module.EXACT_INPUTS, module.EXACT_INPUTS + 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_terms_do_not_overflow(inner: int, sign: int) -> None:
    """All codes of both terms are as large as possible; terms are summed as integers or as floats."""
    data = torch.full((2 * 3, inner), sign * 127, dtype=torch.int8)
    w = Quantized.of(torch.full((inner, 5), 127, dtype=torch.int8), torch.ones(1, 5))
    product = module._int8(data, torch.ones(3, 1), w, 2, torch.float32)
    assert product == pytest.approx(sign * inner * 127**2 * (1 + 1 / 254), rel=1e-6)


@types
def test_the_bits_do_not_depend_on_how_integers_are_multiplied(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(50, 1500, dtype=dtype), quantize(torch.randn(1500, 24), INT8)
    expected = linear(x, w, INT8)
    for multiply in (module._integers_by_floats, module._padded_integer_matmul):
        monkeypatch.setattr(module, "integer_matmul", multiply)
        assert torch.equal(linear(x, w, INT8), expected)


PRODUCT = """
import torch
from pahq_server.precision.linear import integer_matmul
largest = torch.full((40, 70), 127, dtype=torch.int8)
assert (integer_matmul(largest, largest.T) == 70 * 127**2).all()
"""


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_integers_do_not_overflow_where_onednn_may_not_use_all_instructions(instructions: str) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    subprocess.run([sys.executable, "-c", PRODUCT], env=environment, check=True)


def test_products_of_8_bit_floats_are_padded_to_sizes_that_hardware_takes() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(700, 33), quantize(torch.randn(33, 21), E4M3)
    data, _ = rounded_rows(x, E4M3)
    expected = data.to(torch.float64) @ w.data.to(torch.float64)
    product = module._by_tensor_cores(data, w.data)
    assert product.dtype == torch.float32
    assert torch.allclose(product.to(torch.float64), expected, rtol=1e-5, atol=0.1)


@on_cuda
@paths
@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_products_on_cuda_are_those_on_cpus(
    weights: Format, inputs: Format, terms: int, inner: int, outer: int
) -> None:
    torch.manual_seed(0)
    x, q = torch.randn(100, inner), quantize(torch.randn(inner, outer), weights)
    product = linear(x.cuda(), q.to(torch.device("cuda")), inputs, terms).cpu()
    # A scale may differ in its last bit, so that some inputs are rounded to the next code.
    expected = linear(x, q, inputs, terms)
    assert float((product - expected).norm()) <= 2e-3 * float(expected.norm())


@on_cuda
@paths
@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_a_row_has_the_same_bits_in_any_company_on_cuda(
    weights: Format, inputs: Format, terms: int, inner: int, outer: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(700, inner, device="cuda")
    q = quantize(torch.randn(inner, outer, device="cuda"), weights)
    everything = linear(x, q, inputs, terms)
    for rows in (1, 7, 16, 17, 33, 100, 512, 600):
        assert torch.equal(linear(x[:rows], q, inputs, terms), everything[:rows]), rows
        assert torch.equal(linear(x[9 : 9 + rows], q, inputs, terms), everything[9 : 9 + rows]), rows


@on_cuda
@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 1, 1), (16, 64, 64), (17, 9, 23), (100, 768, 65)])
def test_products_of_integers_are_exact_on_cuda(rows: int, inner: int, outer: int) -> None:
    a = torch.randint(-127, 128, (rows, inner), dtype=torch.int8)
    b = torch.randint(-127, 128, (inner, outer), dtype=torch.int8)
    product = integer_matmul(a.cuda(), Quantized.of(b, torch.ones(1, outer)).to(torch.device("cuda")).data)
    assert torch.equal(product.cpu(), integer_matmul(a, b))


def _assert_as_twin(x: Tensor, w: Quantized, inputs: Format, terms: int = 1) -> None:
    """Equal up to rounding errors of sums; with integers only scaling has any."""
    product, expected = linear(x, w, inputs, terms), reference.linear(x, w, inputs, terms)
    assert (product.shape, product.dtype) == (expected.shape, expected.dtype)
    if inputs is INT8 and terms == 1:
        size = expected.abs()
    else:
        largest = x.abs().to(torch.float64) @ to_floats(w, torch.float32).abs().to(torch.float64)
        size = largest.to(x.dtype)
    assert ((product - expected).abs() <= EPSILON[x.dtype] * size + 1e-42).all()
