"""Matrices of 8-bit numbers with one scale per output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_server.precision.policy import Format

DTYPES = {Format.INT8: torch.int8, Format.E4M3: torch.float8_e4m3fn}
# The largest number of each format.
LARGEST = {Format.INT8: 127.0, Format.E4M3: 448.0}


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

    def dequantized(self) -> Tensor:
        """float32, [..., I, O]."""
        return self.data.to(torch.float32) * self.scale


def quantize(w: Tensor, form: Format) -> Quantized:
    """Rounds to nearest with the scale of each output's largest weight.

    Args:
        w: float, [..., I, O]; outputs of zeros have scale 0 and give 0.
        form: `Format.INT8` or `Format.E4M3`.
    """
    scale = w.abs().amax(-2, keepdim=True).to(torch.float32) / LARGEST[form]
    return Quantized(rounded(w, scale, form), scale)


def rounded(x: Tensor, scale: Tensor, form: Format) -> Tensor:
    """``x / scale`` in the format; 0 where the scale is 0."""
    scaled = x / torch.where(scale > 0, scale, 1.0)
    if form is Format.INT8:
        scaled = scaled.round_()
    return scaled.clamp_(-LARGEST[form], LARGEST[form]).to(DTYPES[form])
