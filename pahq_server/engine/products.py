"""Matrix products whose rows do not depend on each other.

A row of ``x @ w`` must have the same bits whatever other rows stand in ``x``: scores are compared to a
threshold, and must not depend on what happened to share a batch. Libraries choose other kernels for very
few rows, so these are padded; above that the kernels in use sum over the inner dimension in one order
(a test holds this).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# Fewer rows than this are padded with zeros.
MIN_ROWS = 16
# From this many weights on, oneDNN beats the default BLAS on CPUs (1.2-1.7x measured at 1-2 threads).
LARGE = 1 << 18


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w`` for x [..., K] and w [K, O]."""
    flat = x.reshape(-1, x.shape[-1])
    rows = len(flat)
    if rows < MIN_ROWS:
        flat = functional.pad(flat, (0, 0, 0, MIN_ROWS - rows))
    product = _product(flat, w)
    return product[:rows].view(*x.shape[:-1], w.shape[-1])


def add_matmul(total: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """``total += x @ w``; ``total`` must be contiguous."""
    flat = x.reshape(-1, x.shape[-1])
    if len(flat) < MIN_ROWS:
        return total.add_(matmul(x, w))
    total.view(-1, total.shape[-1]).addmm_(flat, w)
    return total


def _product(x: Tensor, w: Tensor) -> Tensor:
    if w.numel() >= LARGE and w.device.type == "cpu" and w.dtype == torch.float32 and w.T.is_contiguous():
        return torch.ops.mkldnn._linear_pointwise(x, w.T, None, "none", [], "")  # type: ignore[no-any-return]
    return x @ w
