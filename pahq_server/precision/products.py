"""Matrix products whose rows do not depend on each other.

A row of ``x @ w`` must have the same bits whatever other rows are in ``x``, and wherever the row lies in
memory. Scores are compared to a threshold, and must not depend on which patched passes happened to share a
batch.

On CPUs this takes oneDNN and at least `MIN_ROWS` rows: its kernels then sum over the inner dimension in one
order (a test checks this). MKL does so only with a single thread. oneDNN is also the faster one for all but
the smallest matrices, by a factor of 2.2 where MKL does not use AVX-512 (AMD).

On other devices libraries choose a kernel, and so an order of summation, by the sizes of the matrices. There,
each call gets a tile of the same number of rows (or of matrices), padded with zeros, so that the kernel is
always the same. Sums are products with a vector of ones, for the same reason.
"""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor
from torch.nn import functional

# MKL, which attention uses, gives results that depend on the addresses of matrices, unless this is set before
# its first use. It was not slower with any shape that was measured.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# oneDNN compiles a kernel for every number of rows, and by default keeps 1024 of them, 200 MB. Small jobs are
# about 3 % slower with this bound.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

# On CPUs, inputs with fewer rows than this are padded with rows of zeros.
MIN_ROWS = 16
# On other devices: rows of a tile; matrices of a tile, and most elements that the products of its matrices
# have together.
TILE_ROWS = 512
TILE_MATRICES, TILE_ELEMENTS = 256, 1 << 24


def matmul(x: Tensor, w: Tensor) -> Tensor:
    """Computes ``x @ w``: [..., O] for x [..., K] and w [K, O]."""
    return _product(x.reshape(-1, x.shape[-1]), w).view(*x.shape[:-1], w.shape[-1])


def add_matmul(total: Tensor, x: Tensor, w: Tensor) -> Tensor:
    """Adds ``x @ w`` to ``total`` [..., O] in place and returns it; ``total`` must be contiguous."""
    flat = total.view(-1, total.shape[-1])
    flat += _product(x.reshape(-1, x.shape[-1]), w)
    return total


def matmul_each(a: Tensor, b: Tensor) -> Tensor:
    """Computes ``a @ b`` matrix by matrix: [..., N, M] for [..., N, K] and [..., K, M]."""
    if a.is_cpu:
        return torch.matmul(a, b)
    size = min(TILE_MATRICES, max(1, TILE_ELEMENTS // (a.shape[-2] * b.shape[-1])))
    parts = zip(tiles(a.flatten(0, -3), size), tiles(b.flatten(0, -3), size), strict=True)
    products = join_tiles([torch.bmm(*part) for part in parts], math.prod(a.shape[:-2]))
    return products.view(*a.shape[:-1], b.shape[-1])


def inner(x: Tensor, y: Tensor) -> Tensor:
    """Computes inner products over the last dimension: [...] for two [..., K] that broadcast."""
    return torch.linalg.vecdot(x, y) if x.is_cpu else sums(x * y)


def sums(x: Tensor) -> Tensor:
    """Sums over the last dimension: [...] for x [..., K]."""
    return x.sum(-1) if x.is_cpu else matmul(x, x.new_ones(x.shape[-1], 1))[..., 0]


def _product(x: Tensor, w: Tensor) -> Tensor:
    """Computes ``x @ w``: [N, O] for x [N, K] and w [K, O]."""
    if not w.is_cpu:
        return join_tiles([torch.mm(tile, w) for tile in tiles(x, TILE_ROWS)], len(x))
    padded = x if len(x) >= MIN_ROWS else functional.pad(x, (0, 0, 0, MIN_ROWS - len(x)))
    if w.dtype != torch.float32:
        return (padded @ w)[: len(x)]
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(padded, w.T, None, "none", [], "")
    return product[: len(x)]


def tiles(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Splits [N, ...] into at least one contiguous tile [size, ...]; the last one is padded with zeros."""
    missing = -len(x) % size if len(x) else size
    # Kernels are chosen by strides as well as sizes, so tiles are contiguous even where nothing is padded.
    whole = functional.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x.contiguous()
    parts: tuple[Tensor, ...] = whole.split(size)
    return parts


def join_tiles(parts: list[Tensor], count: int) -> Tensor:
    """Joins the results of all tiles, without the padding, in a new tensor [count, ...]."""
    before = sum(map(len, parts[:-1]))
    return torch.cat([*parts[:-1], parts[-1][: count - before]])
