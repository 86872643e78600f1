"""Matrices of 8-bit numbers with one scale per output, and rows of them with one scale per row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_server.precision.policy import Format

DTYPES = {Format.INT8: torch.int8, Format.E4M3: torch.float8_e4m3fn}
# The largest number of each format.
LARGEST = {Format.INT8: 127.0, Format.E4M3: 448.0}
# What a second term is divided by. What the first leaves, at most half its largest step of 1 or 32, then has
# the range of the format.
FINER = {Format.INT8: 254.0, Format.E4M3: 16.0}
# Rows of smaller numbers are rounded as if this was their largest: the scale of zeros must not be 0, nor any
# scale so small that dividing by it overflows.
SMALLEST = 2.0**-100
# From so many numbers on, reading them twice is faster than writing their magnitudes.
MANY = 1 << 17


@dataclass(frozen=True)
class Quantized:
    """``data * scale`` stands for a matrix [..., I, O] that maps I inputs to O outputs.

    Args:
        data: int8 or float8_e4m3fn, [..., I, O].
        scale: float32, [..., 1, O].
    """

    data: Tensor
    scale: Tensor

    def __getitem__(self, index: int) -> Quantized:
        """One of a stack of matrices."""
        return Quantized(self.data[index], self.scale[index])

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scale.nbytes

    def outputs(self, first: int, last: int) -> Quantized:
        """The matrix of some outputs alone, ``last`` excluded."""
        return Quantized(self.data[..., first:last], self.scale[..., first:last])

    def to(self, device: torch.device) -> Quantized:
        return Quantized(_laid_out(self.data.to(device)), self.scale.to(device))

    def dequantized(self) -> Tensor:
        """float32, [..., I, O]."""
        return numbers(self.data, torch.float32).mul_(self.scale)


# A matrix in 8 bits with a scale per output, or a tensor as it is.
Matrix = Quantized | Tensor


def floats(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """What a matrix stands for, in float32 or float64: [..., I, O]."""
    if isinstance(matrix, Quantized):
        return numbers(matrix.data, dtype).mul_(matrix.scale)
    return matrix.to(dtype)


def quantize(w: Tensor, form: Format) -> Quantized:
    """Rounds to nearest with the scale of each output's largest weight.

    Args:
        w: float, [..., I, O]; outputs of zeros have scale 0 and give 0.
        form: `Format.INT8` or `Format.E4M3`.
    """
    scale = w.abs().amax(-2, keepdim=True).to(torch.float32) / LARGEST[form]
    return Quantized(_laid_out(rounded(w, scale, form)), scale)


def rounded(x: Tensor, scale: Tensor, form: Format) -> Tensor:
    """``x / scale`` in the format; 0 where the scale is 0."""
    scaled = x / torch.where(scale > 0, scale, 1.0)
    if form is Format.INT8:
        scaled = scaled.round_()
    return scaled.clamp_(-LARGEST[form], LARGEST[form]).to(DTYPES[form])


def rounded_rows(x: Tensor, form: Format, terms: int = 1) -> tuple[Tensor, Tensor]:
    """Rounds to nearest with the scale of each row's largest number.

    With two terms, a row is ``scale * (first + second / FINER[form])``: the second is what the first leaves,
    rounded in its turn. That is as good as 16-bit integers, or 8-bit floats with twice the fraction.
    What is not finite is lost in the numbers, but makes the scale of its row infinite or NaN.

    Args:
        x: float32 or float64, [N, I], with I > 0.
        form: `Format.INT8` or `Format.E4M3`.
        terms: 1 or 2.

    Returns:
        [terms * N, I] in the format, all first terms before the second, and scales as in ``x``, [N, 1].
    """
    scale = _largest(x).clamp_(min=SMALLEST).div_(LARGEST[form])
    # No clamp: with such a scale no quotient lies so far beyond the largest number that it rounds elsewhere.
    scaled = x / scale
    if terms == 1:
        return _nearest(scaled, form), scale
    data = torch.empty(2 * len(x), x.shape[-1], dtype=DTYPES[form], device=x.device)
    first, second = data.chunk(2)
    if form is Format.INT8:
        numbers_of_first = scaled.round()
        first.copy_(numbers_of_first)
    else:
        first.copy_(scaled)
        numbers_of_first = numbers(first, x.dtype)
    rest = scaled.sub_(numbers_of_first).mul_(FINER[form])
    second.copy_(rest.round_() if form is Format.INT8 else rest)
    return data, scale


def _nearest(scaled: Tensor, form: Format) -> Tensor:
    """In the format, for numbers in its range, which are lost."""
    return (scaled.round_() if form is Format.INT8 else scaled).to(DTYPES[form])


def _largest(x: Tensor) -> Tensor:
    """The largest magnitude of each row, [N, 1] for x [N, I]."""
    if x.numel() < MANY:
        return x.abs().amax(-1, keepdim=True)
    return torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())


def numbers(data: Tensor, dtype: torch.dtype) -> Tensor:
    """8-bit numbers as float32 or float64, in new memory; NaN of float8_e4m3fn becomes 480 on CPUs."""
    if data.dtype == torch.float8_e4m3fn and data.device.type == "cpu":
        return _e4m3_numbers(data).to(dtype)
    return data.to(dtype)


def _e4m3_numbers(data: Tensor) -> Tensor:
    """float32. A tenth of the time of a conversion by torch, which takes the numbers one at a time."""
    # Three bits of fraction below four of exponent, moved to where half precision has them: its exponents
    # are larger by 8. The conversion to 16 bits copied the sign upwards, and one copy must go.
    halves = data.view(torch.int8).to(torch.int16).mul_(1 << 7).bitwise_and_(~(1 << 14))
    return halves.view(torch.float16).to(torch.float32).mul_(2.0**8)


def _laid_out(data: Tensor) -> Tensor:
    """The same in the order that products read fastest: on CUDA, all inputs of an output in a row."""
    if data.device.type == "cuda":
        return data.mT.contiguous().mT
    return data.contiguous()
