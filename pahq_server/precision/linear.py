"""Products of inputs and matrices, both of which may be rounded to 8 bits.

As in `products`, the bits of a row depend on the row and the matrix alone: sums of products of integers are
exact in whatever order they are computed, and all other products go through `products.matmul`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from pahq_server.precision.policy import Format
from pahq_server.precision.products import TILE_ROWS, join_tiles, matmul, tiles
from pahq_server.precision.quantized import (
    DTYPES,
    SECOND_TERM_FACTOR,
    Quantized,
    codes_to_floats,
    rounded_rows,
)

# How many products of two 8-bit integers can be summed in float32 without rounding. Codes of weights that
# others have rounded go down to -128.
EXACT_IN_FLOAT32 = 2**24 // (127 * 128)
# Most inputs of a matrix for which the sum of both terms of an 8-bit product fits into 32 bits. No input is
# larger than 127 first terms: where the first term is 127, the second is not positive.
EXACT_INPUTS = (2**31 - 1) // (128 * 127 * int(SECOND_TERM_FACTOR[Format.INT8]))
# More weights than this are converted to floats in parts, and more inputs than this are rounded in parts: the
# kernel provides memory for large temporary tensors page by page, which takes longer than the arithmetic.
LARGE_WEIGHTS = 1 << 21
LARGE_INPUTS = 1 << 20
# With fewer inputs than this, scaling the weights is cheaper than scaling the products (except for very few
# rows).
FEW_INPUTS = 256
# cuBLAS accepts 8-bit matrices only if their sizes are multiples of this.
CUDA_MULTIPLE = 16
# cuBLAS multiplies integers only if there are more than 16 rows; this is the next multiple.
CUDA_MIN_ROWS = 32


def linear(x: Tensor, w: Tensor | Quantized, inputs: Format, terms: int = 1) -> Tensor:
    """Computes ``x @ w`` with rounded inputs and weights.

    Args:
        x: [..., I], in the dtype of ``w`` if that is a tensor, otherwise float32 or float64.
        w: [I, O].
        inputs: format to which x is rounded, with one scale per row: that of ``w``, or `Format.FP32` to leave
            x as it is. Ignored if ``w`` is a tensor.
        terms: by how many codes each number of x is represented, 1 or 2 (see `quantized.rounded_rows`).

    Returns:
        [..., O] in the dtype of x. A row of zeros gives zeros; a row with NaN or infinities gives nothing
        finite.
    """
    if isinstance(w, Tensor):
        return matmul(x, w)
    if w.inputs is not None:
        x, w = x * w.inputs, w.without_inputs()
    flat, (width, outputs) = x.reshape(-1, x.shape[-1]).contiguous(), w.data.shape
    if inputs is Format.INT8 and flat.numel() > LARGE_INPUTS and width > outputs:
        parts = flat.split(LARGE_INPUTS // width)
        product = torch.cat([RoundedInput.of(part, inputs, terms).times(w) for part in parts])
    else:
        product = RoundedInput.of(flat, inputs, terms).times(w)
    return product.view(*x.shape[:-1], outputs)


@dataclass(frozen=True)
class RoundedInput:
    """Input rows that are rounded once and then multiplied with any number of matrices.

    Args:
        inputs: format, as for `linear`.
        x: codes [terms, N, I], or with `Format.FP32` the rows themselves, [N, I].
        scale: of each row, [N, 1]; None with `Format.FP32`.
        dtype: of the rows before rounding, and of products.
    """

    inputs: Format
    x: Tensor
    scale: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, inputs: Format, terms: int = 1) -> RoundedInput:
        """Rounds rows [N, I]. The arguments are those of `linear`."""
        if inputs is Format.FP32 or not x.numel():
            return cls(Format.FP32, x, None, x.dtype)
        data, scale = rounded_rows(x, inputs, terms)
        return cls(inputs, data.view(terms, *x.shape), scale, x.dtype)

    def rows(self, some: slice) -> RoundedInput:
        """Returns some of the rows."""
        if self.scale is None:
            return replace(self, x=self.x[some])
        return replace(self, x=self.x[:, some], scale=self.scale[some])

    def values(self) -> Tensor:
        """Returns the rounded rows as numbers, [N, I]."""
        if self.scale is None:
            return self.x
        terms = codes_to_floats(self.x.flatten(0, 1), self.dtype)
        return _sum_terms(terms, len(self.x), self.inputs).mul_(self.scale)

    def times(self, w: Quantized) -> Tensor:
        """Computes the product with a matrix [I, O] of the same format, whose ``inputs`` is None: [N, O]."""
        assert w.inputs is None
        if not self.x.numel():
            return self.x.new_zeros(len(self.x), w.scale.shape[-1])
        if self.scale is None:
            return _by_floats(self.x, w)
        assert DTYPES[self.inputs] is w.data.dtype
        data, terms = self.x.flatten(0, 1), len(self.x)
        product = _int8 if self.inputs is Format.INT8 else _e4m3
        return product(data, self.scale, w, terms, self.dtype)


def _by_floats(x: Tensor, w: Quantized) -> Tensor:
    """Computes ``x @ w`` in the dtype of x [N, I], converting the matrix to floats part by part."""
    parts = -(-w.data.numel() // LARGE_WEIGHTS)
    if parts == 1:
        return _by_scaled_floats(x, w)
    ends = [w.scale.shape[-1] * part // parts for part in range(parts + 1)]
    return torch.cat([_by_scaled_floats(x, w.outputs(*span)) for span in pairwise(ends)], -1)


def _by_scaled_floats(x: Tensor, w: Quantized) -> Tensor:
    """Computes `_by_floats`, converting the whole matrix at once."""
    floats = codes_to_floats(w.data, x.dtype)
    if x.shape[-1] < FEW_INPUTS:
        return matmul(x, floats.mul_(w.scale))
    return matmul(x, floats).mul_(w.scale)


def _int8(data: Tensor, scale: Tensor, w: Quantized, terms: int, dtype: torch.dtype) -> Tensor:
    """Multiplies rows, given as int8 codes [terms * N, I] with scales [N, 1], with a matrix: [N, O]."""
    sums = integer_matmul(data, w.data)
    if terms == 2 and len(w.data) <= EXACT_INPUTS:
        # The sum of both terms is exact in 32 bits, and only half as many numbers are converted to floats.
        first, second = sums.chunk(2)
        factor = SECOND_TERM_FACTOR[Format.INT8]
        sums, scale, terms = second.add_(first, alpha=int(factor)), scale / factor, 1
    # Converted in place where the sizes are equal, as new memory takes longer than the arithmetic.
    floats = sums.view(dtype).copy_(sums) if dtype == torch.float32 else sums.to(dtype)
    return _sum_terms(floats, terms, Format.INT8).mul_(w.scale).mul_(scale)


def _e4m3(data: Tensor, scale: Tensor, w: Quantized, terms: int, dtype: torch.dtype) -> Tensor:
    """Multiplies codes of 8-bit floats; arguments and result as of `_int8`."""
    if dtype == torch.float32 and _multiplies_e4m3(data.device):
        products = _by_tensor_cores(data, w.data)
        return _sum_terms(products, terms, Format.E4M3).mul_(w.scale).mul_(scale)
    # A float holds the sum of both terms exactly.
    floats = _sum_terms(codes_to_floats(data, dtype), terms, Format.E4M3)
    return _by_floats(floats, w).mul_(scale)


def _sum_terms(of_terms: Tensor, terms: int, form: Format) -> Tensor:
    """Adds the second terms to the first ones in place: [N, ...] for [terms * N, ...]."""
    if terms == 1:
        return of_terms
    first, second = of_terms.chunk(2)
    # Not with `alpha`, which torch fuses with the addition for some numbers of a tensor and not for others.
    return first.add_(second.mul_(1 / SECOND_TERM_FACTOR[form]))


def integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Computes ``a @ b`` exactly: int32 [N, O] for int8 [N, I] from -127 to 127 and int8 [I, O]."""
    if a.device.type == "cuda":
        return _padded_integer_matmul(a, b)
    if a.device.type == "cpu" and _cpu_multiplies_integers():
        return torch._int_mm(a, b)
    return _integers_by_floats(a, b)


@cache
def _cpu_multiplies_integers() -> bool:
    """Whether torch's integer product on this CPU is fast and exact.

    Without AVX512-VNNI it is a loop over single numbers. If ONEDNN_MAX_CPU_ISA forbids these instructions,
    oneDNN sums pairs of products in 16 bits, which overflow.
    """
    largest = torch.full((64, 64), 127, dtype=torch.int8)
    return torch.cpu._is_vnni_supported() and bool((torch._int_mm(largest, largest) == 64 * 127**2).all())


def _padded_integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Computes `integer_matmul` with matrices padded to sizes that cuBLAS accepts."""
    return torch._int_mm(_padded(a, CUDA_MIN_ROWS), _padded(b))[: len(a), : b.shape[-1]]


def _integers_by_floats(a: Tensor, b: Tensor) -> Tensor:
    """Computes `integer_matmul` on any device, by exact products in float32."""
    total = torch.zeros(len(a), b.shape[-1], dtype=torch.int32, device=a.device)
    parts = zip(a.split(EXACT_IN_FLOAT32, 1), b.split(EXACT_IN_FLOAT32), strict=True)
    for some_a, some_b in parts:
        total += matmul(some_a.to(torch.float32), some_b.to(torch.float32)).to(torch.int32)
    return total


@cache
def _multiplies_e4m3(device: torch.device) -> bool:
    """Whether a device has tensor cores for 8-bit floats."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _by_tensor_cores(a: Tensor, b: Tensor) -> Tensor:
    """Computes ``a @ b`` on tensor cores: float32 [N, O] for float8_e4m3fn a [N, I] and b [I, O]."""
    outputs = b.shape[-1]
    one, b = torch.ones((), device=a.device), _by_output(_padded(b))
    products = [
        torch._scaled_mm(part.view(a.dtype), b, scale_a=one, scale_b=one, out_dtype=torch.float32)
        for part in tiles(_padded(a).view(torch.int8), TILE_ROWS)
    ]
    return join_tiles(products, len(a))[:, :outputs]


def _padded(matrix: Tensor, rows: int = 0) -> Tensor:
    """Pads a matrix with zeros to multiples of `CUDA_MULTIPLE` and to at least ``rows`` rows."""
    height, width = matrix.shape
    below, right = max(_multiple(height), rows) - height, _multiple(width) - width
    if not below and not right:
        return matrix
    # Viewed as integers, since padding does not support 8-bit floats; zero has the same bits in both.
    return functional.pad(matrix.view(torch.int8), (0, right, 0, below)).view(matrix.dtype)


def _by_output(matrix: Tensor) -> Tensor:
    """Stores all inputs of an output in a row, the only order that products of 8-bit floats accept."""
    return matrix.mT.contiguous().mT


def _multiple(size: int, of: int = CUDA_MULTIPLE) -> int:
    """Rounds a size up to a multiple."""
    return -(-size // of) * of
