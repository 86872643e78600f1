"""Matrix products whose rows do not depend on each other.

A row of ``x @ w`` must have the same bits whatever other rows stand in ``x``, and wherever it lies in
memory: scores are compared to a threshold, and must not depend on what happened to share a batch. Libraries
choose other kernels for very few rows, so these are padded; above that the kernels in use sum over the
inner dimension in one order (a test holds this).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# The default BLAS, where that is MKL, gives other bits to matrices that begin at other addresses, unless
# told otherwise before its first use. No slower in any shape that was measured.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

# Fewer rows than this are padded with zeros.
MIN_ROWS = 16
# From this many weights on, oneDNN beats the default BLAS on CPUs: 2.2x from some hundred rows on where MKL
# does not use AVX-512 (AMD), 1.2-1.7x elsewhere. Below, its call costs more than the product.
LARGE = 1 << 13


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w`` for x [..., K] and w [K, O]."""
    flat = x.reshape(-1, x.shape[-1])
    product = _product(_pad(flat), w)
    return product[: len(flat)].view(*x.shape[:-1], w.shape[-1])


def batched(xs: Sequence[Tensor], ws: Sequence[Tensor]) -> Tensor:
    """``x @ w`` for every pair: [B, N, O] for x [N, K] and w [K, O]."""
    if _odd(ws[0]):
        return torch.stack([matmul(x, w) for x, w in zip(xs, ws, strict=True)])
    return torch.bmm(torch.stack([_pad(x) for x in xs]), torch.stack(list(ws)))[:, : len(xs[0])]


def add_matmul(total: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """``total += x @ w``; ``total`` must be contiguous."""
    flat, sums = x.reshape(-1, x.shape[-1]), total.view(-1, total.shape[-1])
    if _by_onednn(w):
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
    return any(size % 4 for size in w.shape) and _fp32_on_cpu(w)


def _by_onednn(w: Tensor) -> bool:
    return _fp32_on_cpu(w) and (w.numel() >= LARGE or _odd(w))


def _fp32_on_cpu(w: Tensor) -> bool:
    return w.device.type == "cpu" and w.dtype == torch.float32


def _product(x: Tensor, w: Tensor) -> Tensor:
    if _by_onednn(w):
        return torch.ops.mkldnn._linear_pointwise.default(x, w.T, None, "none", [], "")  # type: ignore[no-any-return]
    return x @ w
