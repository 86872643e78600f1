"""Products with matrices that may be rounded to 8 bits. `reference` is their slow, obvious twin.

The bits of a row are a function of the row and the matrix alone, as in `products`: products of integers are
exact in whatever way they are computed, and the others go through `products.matmul`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from pahq_server.precision.policy import Format
from pahq_server.precision.products import TILE_ROWS, matmul, tiles, together
from pahq_server.precision.quantized import DTYPES, FINER, Quantized, numbers, rounded_rows

# So many products of two 8-bit integers have a sum that float32 represents, and all partial sums too.
EXACT_IN_FLOAT32 = 2**24 // 127**2
# With so many inputs at most, the sum of both terms of an 8-bit product fits into 32 bits.
EXACT_INPUTS = (2**31 - 1) // (127**2 * (int(FINER[Format.INT8]) + 1))
# More weights than this are made floats in parts, more inputs than this are rounded in parts: large temporary
# tensors come from the kernel page by page, which takes longer than the arithmetic.
LARGE_WEIGHTS = 1 << 21
LARGE_INPUTS = 1 << 20
# With fewer inputs than this there are fewer weights than products to scale, but for a handful of rows.
FEW_INPUTS = 256
# cuBLAS takes 8-bit numbers only in matrices whose sizes are multiples of this...
CUDA_MULTIPLE = 16
# ...and integers only if there are more than 16 rows.
CUDA_MIN_ROWS = 32


def linear(x: Tensor, w: Tensor | Quantized, inputs: Format, terms: int = 1) -> Tensor:
    """``x @ w``, with x and w rounded.

    Args:
        x: [..., I], of the type of ``w`` if that is a tensor, otherwise float32 or float64.
        w: [I, O].
        inputs: what x is rounded to, with a scale per row: the format of ``w``, or `Format.FP32` for x as it
            is. Where ``w`` is a tensor, x is left as it is.
        terms: as how many numbers of that format each of x is written: 1 or 2.

    Returns:
        [..., O], of the type of x. Rows of zeros give zeros, rows with NaN or infinities nothing finite.
    """
    if isinstance(w, Tensor):
        return matmul(x, w)
    flat, (rows, outputs) = x.reshape(-1, x.shape[-1]).contiguous(), w.data.shape
    if inputs is Format.INT8 and flat.numel() > LARGE_INPUTS and rows > outputs:
        parts = flat.split(LARGE_INPUTS // rows)
        product = torch.cat([Operand.of(part, inputs, terms).times(w) for part in parts])
    else:
        product = Operand.of(flat, inputs, terms).times(w)
    return product.view(*x.shape[:-1], outputs)


@dataclass(frozen=True)
class Operand:
    """Rows that are rounded once, and multiplied with any number of matrices.

    Args:
        inputs: as for `linear`.
        x: [N, I], where ``inputs`` is `Format.FP32`; else their numbers in that format, [terms, N, I].
        scale: of each row, [N, 1]; None where ``inputs`` is `Format.FP32`.
        dtype: of what was rounded, and of the products.
    """

    inputs: Format
    x: Tensor
    scale: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor, inputs: Format, terms: int = 1) -> Operand:
        """Rounds [N, I]; see `linear` for the arguments."""
        if inputs is Format.FP32 or not x.numel():
            return cls(Format.FP32, x, None, x.dtype)
        data, scale = rounded_rows(x, inputs, terms)
        return cls(inputs, data.view(terms, *x.shape), scale, x.dtype)

    def rows(self, some: slice) -> Operand:
        """Some of the rows."""
        if self.scale is None:
            return replace(self, x=self.x[some])
        return replace(self, x=self.x[:, some], scale=self.scale[some])

    def values(self) -> Tensor:
        """What the rows stand for: [N, I]."""
        if self.scale is None:
            return self.x
        terms = numbers(self.x.flatten(0, 1), self.dtype)
        return _together(terms, len(self.x), self.inputs).mul_(self.scale)

    def times(self, w: Quantized) -> Tensor:
        """The product with a matrix [I, O] of the same format: [N, O]."""
        if not self.x.numel():
            return self.x.new_zeros(len(self.x), w.scale.shape[-1])
        if self.scale is None:
            return _by_floats(self.x, w)
        assert DTYPES[self.inputs] is w.data.dtype
        data, terms = self.x.flatten(0, 1), len(self.x)
        product = _int8 if self.inputs is Format.INT8 else _e4m3
        return product(data, self.scale, w, terms, self.dtype)


def _by_floats(x: Tensor, w: Quantized) -> Tensor:
    """[N, O] for x [N, I]: the product with the matrix as floats of the type of x."""
    parts = -(-w.data.numel() // LARGE_WEIGHTS)
    if parts == 1:
        return _by_scaled_floats(x, w)
    ends = [w.scale.shape[-1] * part // parts for part in range(parts + 1)]
    return torch.cat([_by_scaled_floats(x, w.outputs(*span)) for span in pairwise(ends)], -1)


def _by_scaled_floats(x: Tensor, w: Quantized) -> Tensor:
    """As `_by_floats`, the whole matrix at once."""
    floats = numbers(w.data, x.dtype)
    if x.shape[-1] < FEW_INPUTS:
        return matmul(x, floats.mul_(w.scale))
    return matmul(x, floats).mul_(w.scale)


def _int8(data: Tensor, scale: Tensor, w: Quantized, terms: int, dtype: torch.dtype) -> Tensor:
    """[N, O] for the terms [terms * N, I] of rows and their scales [N, 1]."""
    sums = integer_matmul(data, w.data)
    if terms == 2 and len(w.data) <= EXACT_INPUTS:
        # The sum of both terms fits into 32 bits: exact, and half as many numbers become floats.
        first, second = sums.chunk(2)
        sums, scale = second.add_(first, alpha=int(FINER[Format.INT8])), scale / FINER[Format.INT8]
        terms = 1
    # In place where the sizes allow it, as fresh memory costs more than the arithmetic.
    floats = sums.view(dtype).copy_(sums) if dtype == torch.float32 else sums.to(dtype)
    return _together(floats, terms, Format.INT8).mul_(w.scale).mul_(scale)


def _e4m3(data: Tensor, scale: Tensor, w: Quantized, terms: int, dtype: torch.dtype) -> Tensor:
    """As `_int8`, for 8-bit floats."""
    if dtype == torch.float32 and _multiplies_e4m3(data.device):
        products = _by_tensor_cores(data, w.data)
        return _together(products, terms, Format.E4M3).mul_(w.scale).mul_(scale)
    # Floats hold the sum of both terms.
    floats = _together(numbers(data, dtype), terms, Format.E4M3)
    return _by_floats(floats, w).mul_(scale)


def _together(of_terms: Tensor, terms: int, form: Format) -> Tensor:
    """The sum of all terms, in place: [N, ...] for [terms * N, ...]."""
    if terms == 1:
        return of_terms
    first, second = of_terms.chunk(2)
    # Not with `alpha`, which is fused with the sum in some numbers and not in others.
    return first.add_(second.mul_(1 / FINER[form]))


def integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    """int32 [N, O], exact, for int8 in -127 ... 127, a [N, I] and b [I, O]."""
    if a.device.type == "cuda":
        return _padded_integer_matmul(a, b)
    if a.device.type == "cpu" and _cpu_multiplies_integers():
        return torch._int_mm(a, b)
    return _integers_by_floats(a, b)


@cache
def _cpu_multiplies_integers() -> bool:
    """Whether the integer product on CPUs is fast and exact.

    Without AVX512-VNNI it is a loop over single numbers. Where oneDNN was told not to use what the processor
    has (ONEDNN_MAX_CPU_ISA), pairs of products overflow in 16 bits.
    """
    largest = torch.full((64, 64), 127, dtype=torch.int8)
    return torch.cpu._is_vnni_supported() and bool((torch._int_mm(largest, largest) == 64 * 127**2).all())


def _padded_integer_matmul(a: Tensor, b: Tensor) -> Tensor:
    """As `integer_matmul`, in sizes that cuBLAS takes."""
    return torch._int_mm(_padded(a, CUDA_MIN_ROWS), _padded(b))[: len(a), : b.shape[-1]]


def _integers_by_floats(a: Tensor, b: Tensor) -> Tensor:
    """As `integer_matmul`, anywhere."""
    total = torch.zeros(len(a), b.shape[-1], dtype=torch.int32, device=a.device)
    parts = zip(a.split(EXACT_IN_FLOAT32, 1), b.split(EXACT_IN_FLOAT32), strict=True)
    for some_a, some_b in parts:
        total += matmul(some_a.to(torch.float32), some_b.to(torch.float32)).to(torch.int32)
    return total


@cache
def _multiplies_e4m3(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def _by_tensor_cores(a: Tensor, b: Tensor) -> Tensor:
    """float32 [N, O] for float8_e4m3fn, a [N, I] and b [I, O]."""
    outputs = b.shape[-1]
    one, b = torch.ones((), device=a.device), _by_output(_padded(b))
    products = [
        torch._scaled_mm(part.view(a.dtype), b, scale_a=one, scale_b=one, out_dtype=torch.float32)
        for part in tiles(_padded(a).view(torch.int8), TILE_ROWS)
    ]
    return together(products, len(a))[:, :outputs]


def _padded(matrix: Tensor, rows: int = 0) -> Tensor:
    """With zeros, up to multiples of `CUDA_MULTIPLE` and at least so many rows."""
    height, width = matrix.shape
    below, right = max(_multiple(height), rows) - height, _multiple(width) - width
    if not below and not right:
        return matrix
    # As integers, since not all operations know 8-bit floats; zeros are zeros in both.
    return functional.pad(matrix.view(torch.int8), (0, right, 0, below)).view(matrix.dtype)


def _by_output(matrix: Tensor) -> Tensor:
    """The same with all inputs of an output in a row, the only order that products of 8-bit floats take."""
    return matrix.mT.contiguous().mT


def _multiple(size: int, of: int = CUDA_MULTIPLE) -> int:
    """The next multiple."""
    return -(-size // of) * of
