"""Rounding to 8 bits: matrices with one scale per output, and inputs with one scale per row.

The formats are int8 and the 8-bit float E4M3 (``torch.float8_e4m3fn``). "Codes" are the 8-bit numbers
themselves, before they are multiplied by their scale.

Matrices are weights of torchao: `Int8Tensor` and `Float8Tensor` with one scale per output. torchao also
chooses the scales. Not used of it, but compared with in the tests, are

- its codes (`quantize_affine`): it multiplies by 1 / scale instead of dividing by the scale, which rounds
  some numbers halfway between two codes to the other one, and takes three times as long;
- its floats of codes (`dequantize`): the same bits, in 10 to 20 times the time on CPUs, and none in float64;
- its products (`int_scaled_matmul`): they multiply by the scales of rows before those of outputs, know no
  second term, and take twice the time; and where oneDNN's integers overflow they do, too (see
  `linear.integer_matmul`). Products of floats are no better: they depend on what else is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from pahq_server.precision.policy import Format

DTYPES = {Format.INT8: torch.int8, Format.E4M3: torch.float8_e4m3fn}
# The largest code of each format.
LARGEST = {Format.INT8: 127.0, Format.E4M3: 448.0}
# A value may be written as ``first + second / SECOND_TERM_FACTOR``. The first term's error is at most half of
# the format's largest step (1 or 32); times this factor it has the range of the format.
SECOND_TERM_FACTOR = {Format.INT8: 254.0, Format.E4M3: 16.0}
# Rows whose largest number is smaller are rounded as if it were this one, so that dividing by the scale never
# overflows and never divides by 0.
SMALLEST = 2.0**-100
# From so many numbers on, finding the largest and the smallest is faster than writing magnitudes to memory
# and finding the largest.
MANY_NUMBERS = 1 << 17


@cache
def _torchao() -> Any:
    # Imported here because it takes more than a second.
    import torchao.quantization

    return torchao.quantization


@dataclass(frozen=True, eq=False)
class Quantized:
    """A matrix ``inputs * data * scale`` [..., I, O] that maps I inputs to O outputs.

    Args:
        weight: `Int8Tensor` or `Float8Tensor` of torchao, symmetric, [..., O, I], with one scale per row.
        inputs: factor on each input, float32 [I]: the weight of a norm before the map, in models whose
            matrices were rounded without it; None for none.
    """

    weight: Tensor
    inputs: Tensor | None = None

    @classmethod
    def of(cls, data: Tensor, scale: Tensor, inputs: Tensor | None = None) -> Quantized:
        """Makes a matrix of codes [..., I, O] and scales [..., 1, O], which are not copied."""
        codes, scales = data.mT, scale.mT
        block_size = [1] * (codes.dim() - 1) + [codes.shape[-1]]
        if data.dtype == torch.int8:
            return cls(_torchao().Int8Tensor(codes, scales, block_size, torch.float32), inputs)
        weight = _torchao().Float8Tensor(codes, scales, block_size=block_size, dtype=torch.float32)
        return cls(weight, inputs)

    # Plain tensors, because operations on torchao's take ten times as long to begin.

    @cached_property
    def data(self) -> Tensor:
        """The codes, int8 or float8_e4m3fn [..., I, O]: a view of the weight's."""
        weight: Any = self.weight
        codes: Tensor = weight.qdata.mT
        return codes

    @cached_property
    def scale(self) -> Tensor:
        """The scale of each output, float32 [..., 1, O]: a view of the weight's."""
        weight: Any = self.weight
        scale: Tensor = weight.scale.mT
        return scale

    def __getitem__(self, index: int) -> Quantized:
        """Returns one matrix of a stack."""
        return Quantized.of(self.data[index], self.scale[index], self.inputs)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and factors."""
        return self.data.nbytes + self.scale.nbytes + (0 if self.inputs is None else self.inputs.nbytes)

    def outputs(self, first: int, last: int) -> Quantized:
        """Returns the matrix of outputs ``first`` to ``last``, the latter excluded."""
        return Quantized.of(self.data[..., first:last], self.scale[..., first:last], self.inputs)

    def without_inputs(self) -> Quantized:
        """Returns the matrix ``data * scale``, for inputs that have been multiplied by ``inputs`` already."""
        return self if self.inputs is None else Quantized(self.weight)

    def to(self, device: torch.device) -> Quantized:
        """Copies the matrix to a device."""
        inputs = None if self.inputs is None else self.inputs.to(device)
        return Quantized.of(laid_out(self.data.to(device)), self.scale.to(device), inputs)


# A matrix in 8 bits, or a tensor in any floating dtype.
Matrix = Quantized | Tensor


def to_floats(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """Returns a matrix as float32 or float64 [..., I, O]."""
    if isinstance(matrix, Quantized):
        floats = codes_to_floats(matrix.data, dtype).mul_(matrix.scale)
        return floats if matrix.inputs is None else floats.mul_(matrix.inputs[:, None])
    return matrix.to(dtype)


def quantize(w: Tensor, form: Format) -> Quantized:
    """Rounds a matrix to nearest, with a scale that maps each output's largest weight to the largest code.

    Args:
        w: float [..., I, O]. Outputs whose weights are all zero have scale 0.
        form: `Format.INT8` or `Format.E4M3`.
    """
    scale = _scale(w, form)
    return Quantized.of(laid_out(rounded(w, scale, form)), scale)


def _scale(w: Tensor, form: Format) -> Tensor:
    """Chooses the scale of each output: float32 [..., 1, O] for w [..., I, O]."""
    if w.dtype == torch.float64 or w.shape[-2] == 1:
        # torchao rounds scales of float64 after the division, and chooses one scale for all outputs where
        # each has a single input.
        return w.abs().amax(-2, keepdim=True).to(torch.float32) / LARGEST[form]
    scale: Tensor
    scale, _ = _torchao().choose_qparams_affine(
        w,
        _torchao().MappingType.SYMMETRIC,
        [1] * (w.dim() - 2) + [w.shape[-2], 1],
        DTYPES[form],
        -LARGEST[form],
        LARGEST[form],
        eps=0.0,  # the smallest scale
        scale_dtype=torch.float32,
        keepdim=True,
    )
    return scale


def rounded(x: Tensor, scale: Tensor, form: Format) -> Tensor:
    """Returns the codes of ``x / scale``; 0 where the scale is 0."""
    scaled = x / torch.where(scale > 0, scale, 1.0)
    if form is Format.INT8:
        scaled = scaled.round_()
    return scaled.clamp_(-LARGEST[form], LARGEST[form]).to(DTYPES[form])


def rounded_rows(x: Tensor, form: Format, terms: int = 1) -> tuple[Tensor, Tensor]:
    """Rounds rows to nearest, with a scale that maps each row's largest magnitude to the largest code.

    With two terms a row is ``scale * (first + second / SECOND_TERM_FACTOR[form])``, where the second term is
    the rounded error of the first. That is as accurate as 16-bit integers, or as 8-bit floats with twice the
    bits of fraction. Numbers that are not finite make the scale of their row infinite or NaN.

    Args:
        x: float32 or float64 [N, I], with I > 0.
        form: `Format.INT8` or `Format.E4M3`.
        terms: 1 or 2.

    Returns:
        Codes [terms * N, I], all first terms before all second terms; and scales [N, 1] in the dtype of
        ``x``.
    """
    scale = _largest(x).clamp_(min=SMALLEST).div_(LARGEST[form])
    # No clamp is needed: with this scale no quotient exceeds the largest code by enough to round to another
    # number.
    scaled = x / scale
    if terms == 1:
        return _nearest(scaled, form), scale
    data = torch.empty(2 * len(x), x.shape[-1], dtype=DTYPES[form], device=x.device)
    first, second = data.chunk(2)
    if form is Format.INT8:
        first_term = scaled.round()
        first.copy_(first_term)
    else:
        first.copy_(scaled)
        first_term = codes_to_floats(first, x.dtype)
    rest = scaled.sub_(first_term).mul_(SECOND_TERM_FACTOR[form])
    second.copy_(rest.round_() if form is Format.INT8 else rest)
    return data, scale


def _nearest(scaled: Tensor, form: Format) -> Tensor:
    """Returns the codes of numbers in the format's range. Overwrites its argument."""
    return (scaled.round_() if form is Format.INT8 else scaled).to(DTYPES[form])


def _largest(x: Tensor) -> Tensor:
    """Returns the largest magnitude of each row: [N, 1] for x [N, I]."""
    if x.numel() < MANY_NUMBERS:
        return x.abs().amax(-1, keepdim=True)
    return torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())


def codes_to_floats(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Converts codes to float32 or float64, in new memory. On CPUs, the NaN of float8_e4m3fn becomes 480."""
    if data.dtype == torch.float8_e4m3fn and data.device.type == "cpu":
        return _e4m3_to_floats(data).to(dtype)
    return data.to(dtype)


def has_nan(data: Tensor) -> bool:
    """Whether there is a NaN among codes. int8 has none."""
    if data.dtype != torch.float8_e4m3fn:
        return False
    return bool((data.view(torch.int8).bitwise_and(0x7F) == 0x7F).any())


def _e4m3_to_floats(data: Tensor) -> Tensor:
    """Converts E4M3 codes to float32 in a tenth of torch's time, which converts them one by one."""
    # The three bits of fraction and four bits of exponent are moved to where half precision has them, whose
    # exponents are larger by 8. The conversion to 16 bits has copied the sign into the bit above the
    # exponent, which is cleared.
    halves = data.view(torch.int8).to(torch.int16).mul_(1 << 7).bitwise_and_(~(1 << 14))
    return halves.view(torch.float16).to(torch.float32).mul_(2.0**8)


def laid_out(data: Tensor) -> Tensor:
    """Stores codes in the order in which products read them: on CUDA, all inputs of an output in a row."""
    if data.device.type == "cuda":
        return data.mT.contiguous().mT
    return data.contiguous()
