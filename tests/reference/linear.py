"""What `pahq_server.precision.linear` computes, one row at a time in float64: slow and obvious."""

from __future__ import annotations

import torch
from torch import Tensor

from pahq_server.precision.policy import Format
from pahq_server.precision.quantized import LARGEST, SECOND_TERM_FACTOR, SMALLEST, Quantized


def linear(x: Tensor, w: Tensor | Quantized, inputs: Format, terms: int = 1) -> Tensor:
    """Computes ``x @ w`` with rounded inputs and weights, as `precision.linear.linear` does."""
    products = [_row(row, w, inputs, terms) for row in x.reshape(-1, x.shape[-1])]
    outputs = w.shape[-1] if isinstance(w, Tensor) else w.scale.shape[-1]
    together = torch.stack(products) if products else x.new_zeros(0)
    return together.view(*x.shape[:-1], outputs)


def _row(row: Tensor, w: Tensor | Quantized, inputs: Format, terms: int) -> Tensor:
    """Computes one row of the product: [O] for a row [I]."""
    if isinstance(w, Tensor):
        return (row.to(torch.float64) @ w.to(torch.float64)).to(row.dtype)
    numbers, scale = rounded_row(row, inputs, terms)
    # The sums of products of rounded numbers are exact.
    return (numbers @ w.data.to(torch.float64) * w.scale[0] * scale).to(row.dtype)


def rounded_row(row: Tensor, form: Format, terms: int = 1) -> tuple[Tensor, Tensor]:
    """Rounds a row [I]: returns codes, or sums of two terms, float64 [I], and their scale, float64."""
    if form is Format.FP32:
        return row.to(torch.float64), torch.ones((), dtype=torch.float64)
    # In the type of the row: another scale would round other numbers up.
    scale = row.abs().max().clamp(min=SMALLEST) / LARGEST[form]
    scaled = row / scale
    first = nearest(scaled, form)
    factor = SECOND_TERM_FACTOR[form]
    second = nearest((scaled - first) * factor, form) if terms == 2 else torch.zeros_like(first)
    return first.to(torch.float64) + second.to(torch.float64) / factor, scale.to(torch.float64)


def nearest(x: Tensor, form: Format) -> Tensor:
    """Rounds numbers in the format's range to the nearest codes, ties to even."""
    if form is Format.INT8:
        return x.round()
    # Three bits after the first one; below 2**-6 the numbers are as far apart as just above.
    exponent = (torch.frexp(x).exponent - 1).clamp(min=-6)
    apart = torch.ldexp(torch.ones_like(x), exponent - 3)
    return (x / apart).round() * apart
