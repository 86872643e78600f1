"""Products with frozen weights under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pahq_server.precision.products import matmul


class _FrozenProduct(torch.autograd.Function):
    """``x @ w`` whose backward pass gives the gradient at ``x`` only, and keeps nothing but ``w`` for it."""

    @staticmethod
    def forward(context: Any, x: Tensor, w: Tensor) -> Tensor:
        context.w = w
        return matmul(x, _joined(w))

    @staticmethod
    def backward(context: Any, d: Tensor) -> tuple[Tensor, None]:
        return matmul(d, _joined(context.w).T), None


def product(x: Tensor, w: Tensor) -> Tensor:
    """Computes ``x @ w`` for frozen weights: [..., I] to [..., O].

    Args:
        x: may be part of a graph of autograd.
        w: a matrix [I, O], or a stack [H, I, O] of which the outputs are put side by side: [..., H * O].
    """
    y: Tensor = _FrozenProduct.apply(x, w)  # type: ignore[no-untyped-call, unused-ignore]
    return y


def _joined(w: Tensor) -> Tensor:
    """Returns a stack of matrices [H, I, O] as one, [I, H * O]: a copy, stored output by output."""
    return w if w.dim() == 2 else w.transpose(1, 2).flatten(0, 1).T
