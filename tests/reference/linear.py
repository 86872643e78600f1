"""What `linear` computes, one row at a time in float64: slow and obvious, for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from pahq_server.precision.policy import Format
from pahq_server.precision.quantized import LARGEST, SMALLEST, Quantized
from pahq_server.precision.quantized import SECOND_TERM_FACTOR as FINER


def linear(x: Tensor, w: Tensor | Quantized, inputs: Format, terms: int = 1) -> Tensor:
    """``x @ w``, with x and w rounded; arguments and result as those of `linear.linear`."""
    products = [_row(row, w, inputs, terms) for row in x.reshape(-1, x.shape[-1])]
    outputs = w.shape[-1] if isinstance(w, Tensor) else w.scale.shape[-1]
    together = torch.stack(products) if products else x.new_zeros(0)
    return together.view(*x.shape[:-1], outputs)


def _row(row: Tensor, w: Tensor | Quantized, inputs: Format, terms: int) -> Tensor:
    """[O] for a row [I]."""
    if isinstance(w, Tensor):
        return (row.to(torch.float64) @ w.to(torch.float64)).to(row.dtype)
    numbers, scale = rounded_row(row, inputs, terms)
    # The sums of products of rounded numbers are exact.
    return (numbers @ w.data.to(torch.float64) * w.scale[0] * scale).to(row.dtype)


def rounded_row(row: Tensor, form: Format, terms: int = 1) -> tuple[Tensor, Tensor]:
    """A row [I] as numbers of the format or sums of two, float64 [I], times a scale, float64."""
    if form is Format.FP32:
        return row.to(torch.float64), torch.ones((), dtype=torch.float64)
    # In the type of the row: another scale would round other numbers up.
    scale = row.abs().max().clamp(min=SMALLEST) / LARGEST[form]
    scaled = row / scale
    first = nearest(scaled, form)
    second = nearest((scaled - first) * FINER[form], form) if terms == 2 else torch.zeros_like(first)
    return first.to(torch.float64) + second.to(torch.float64) / FINER[form], scale.to(torch.float64)


def nearest(x: Tensor, form: Format) -> Tensor:
    """The nearest numbers of the format, the even one of two, for numbers in its range."""
    if form is Format.INT8:
        return x.round()
    # Three bits after the first one; below 2**-6 the numbers are as far apart as just above.
    exponent = (torch.frexp(x).exponent - 1).clamp(min=-6)
    apart = torch.ldexp(torch.ones_like(x), exponent - 3)
    return (x / apart).round() * apart
