"""Matrix products whose rows do not depend on each other.

A row of ``x @ w`` must have the same bits whatever other rows stand in ``x``, and wherever it lies in
memory: scores are compared to a threshold, and must not depend on what happened to share a batch. On CPUs
oneDNN's kernels sum over the inner dimension in one order from a few rows on (a test holds this), and fewer
rows are padded. MKL's do so for single threads only: with several, each takes some rows or columns, and few
of them go another way. oneDNN is also the faster one for all but the smallest matrices, 2.2 times where MKL
does not use AVX-512 (AMD).

On other devices libraries choose a kernel, and with it an order of summation, by the sizes of all matrices.
So every call gets the same number of rows, or of matrices, the last ones padded with zeros: one kernel then.
Reductions are products with ones there, for the same reason.
"""

from __future__ import annotations

import math
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

# On CPUs, fewer rows than this are padded with zeros.
MIN_ROWS = 16
# On other devices, rows of every call, and matrices where their products are not larger than this together.
TILE_ROWS = 512
TILE_MATRICES, TILE_ELEMENTS = 256, 1 << 24


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w`` for x [..., K] and w [K, O]."""
    return _product(x.reshape(-1, x.shape[-1]), w).view(*x.shape[:-1], w.shape[-1])


def add_matmul(total: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """``total += x @ w``; ``total`` must be contiguous."""
    flat = total.view(-1, total.shape[-1])
    flat += _product(x.reshape(-1, x.shape[-1]), w)
    return total


def matmul_each(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, matrix by matrix, for [..., N, K] and [..., K, M] with the same leading dimensions."""
    if a.is_cpu:
        return torch.matmul(a, b)
    size = min(TILE_MATRICES, max(1, TILE_ELEMENTS // (a.shape[-2] * b.shape[-1])))
    parts = zip(tiles(a.flatten(0, -3), size), tiles(b.flatten(0, -3), size), strict=True)
    products = together([torch.bmm(*part) for part in parts], math.prod(a.shape[:-2]))
    return products.view(*a.shape[:-1], b.shape[-1])


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Inner products over the last dimension: [...] for [..., K] that broadcast."""
    return torch.linalg.vecdot(x, y) if x.is_cpu else sums(x * y)


def sums(x: Tensor) -> Tensor:
    """Sums over the last dimension: [...] for [..., K]."""
    return x.sum(-1) if x.is_cpu else matmul(x, x.new_ones(x.shape[-1], 1))[..., 0]


def _product(x: Tensor, w: Tensor) -> Tensor:
    """[N, O] for x [N, K] and w [K, O]."""
    if not w.is_cpu:
        return together([torch.mm(tile, w) for tile in tiles(x, TILE_ROWS)], len(x))
    padded = x if len(x) >= MIN_ROWS else functional.pad(x, (0, 0, 0, MIN_ROWS - len(x)))
    if w.dtype != torch.float32:
        return (padded @ w)[: len(x)]
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(padded, w.T, None, "none", [], "")
    return product[: len(x)]


def tiles(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """[size, ...] each, contiguous, at least one, the last one padded with zeros."""
    missing = -len(x) % size if len(x) else size
    # Kernels are chosen by strides as well, so there is no other layout where nothing is missing.
    whole = functional.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x.contiguous()
    parts: tuple[Tensor, ...] = whole.split(size)
    return parts


def together(parts: list[Tensor], count: int) -> Tensor:
    """The first ``count`` of all tiles' results, in memory of their own: [count, ...]."""
    before = sum(map(len, parts[:-1]))
    return torch.cat([*parts[:-1], parts[-1][: count - before]])
