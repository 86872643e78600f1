"""Matrix products whose rows do not depend on each other.

A row of ``x @ w`` must have the same bits whatever other rows stand in ``x``, and wherever it lies in
memory: scores are compared to a threshold, and must not depend on what happened to share a batch. On CPUs
oneDNN's kernels sum over the inner dimension in one order from a few rows on (a test holds this), and fewer
rows are padded. MKL's do so for single threads only: with several, each takes some rows or columns, and few
of them go another way. oneDNN is also the faster one for all but the smallest matrices, 2.2 times where MKL
does not use AVX-512 (AMD).
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn import functional

# MKL, which attention uses, gives other bits to matrices that begin at other addresses, unless told otherwise
# before its first use. No slower in any shape that was measured.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# oneDNN compiles a kernel for every number of rows, and by default keeps 1024 of them, 200 MB. With these
# many small jobs are about 3 % slower.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

# Fewer rows than this are padded with zeros.
MIN_ROWS = 16


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w`` for x [..., K] and w [K, O]."""
    flat = x.reshape(-1, x.shape[-1])
    product = _product(_pad(flat), w)
    return product[: len(flat)].view(*x.shape[:-1], w.shape[-1])


def add_matmul(total: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """``total += x @ w``; ``total`` must be contiguous."""
    flat, sums = x.reshape(-1, x.shape[-1]), total.view(-1, total.shape[-1])
    sums += _product(_pad(flat), w)[: len(flat)]
    return total


def _pad(x: Tensor) -> Tensor:
    """At least `MIN_ROWS` rows."""
    return x if len(x) >= MIN_ROWS else functional.pad(x, (0, 0, 0, MIN_ROWS - len(x)))


def _product(x: Tensor, w: Tensor) -> Tensor:
    if w.device.type == "cpu" and w.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise.default(x, w.T, None, "none", [], "")  # type: ignore[no-any-return]
    return x @ w
