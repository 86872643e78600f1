"""Matrix products whose rows do not depend on each other.

A row of ``x @ w`` must have the same bits whatever other rows stand in ``x``: scores are compared to a
threshold, and must not depend on what happened to share a batch. Libraries choose other kernels for very
few rows, so these are padded; above that the kernels in use sum over the inner dimension in one order
(a test holds this).
"""

from __future__ import annotations

from collections.abc import Sequence

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
    product = _product(_pad(flat), w)
    return product[: len(flat)].view(*x.shape[:-1], w.shape[-1])


def batched(xs: Sequence[Tensor], ws: Sequence[Tensor]) -> Tensor:
    """``x @ w`` for every pair: [B, N, O] for x [N, K] and w [K, O]."""
    if _odd(ws[0]):
        return torch.stack([matmul(x, w) for x, w in zip(xs, ws, strict=True)])
    return torch.bmm(torch.stack(list(xs)), torch.stack(list(ws)))


def add_matmul(total: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """``total += x @ w``; ``total`` must be contiguous."""
    flat, sums = x.reshape(-1, x.shape[-1]), total.view(-1, total.shape[-1])
    if _odd(w):
        sums += _product(_pad(flat), w)[: len(flat)]
    elif len(flat) < MIN_ROWS:
        # Not matmul and add: fused, the sum may be rounded in another place.
        sums.copy_(_pad(sums).addmm_(_pad(flat), w)[: len(flat)])
    else:
        sums.addmm_(flat, w)
    return total


def _pad(x: Tensor) -> Tensor:
    """At least `MIN_ROWS` rows."""
    return x if len(x) >= MIN_ROWS else functional.pad(x, (0, 0, 0, MIN_ROWS - len(x)))


def _odd(w: Tensor) -> bool:
    """Whether the default BLAS treats rows differently by their place, as it does for some shapes."""
    return any(size % 4 for size in w.shape) and w.device.type == "cpu" and w.dtype == torch.float32


def _product(x: Tensor, w: Tensor) -> Tensor:
    large = w.numel() >= LARGE and w.device.type == "cpu" and w.dtype == torch.float32
    if _odd(w) or (large and w.T.is_contiguous()):
        by_output = w.T.contiguous()
        return torch.ops.mkldnn._linear_pointwise(x, by_output, None, "none", [], "")  # type: ignore[no-any-return]
    return x @ w
