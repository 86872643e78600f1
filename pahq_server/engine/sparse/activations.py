"""Activations whose every element has the same bits wherever it stands in a tensor.

torch's fused SiLU and GELU round the last few elements of a tensor, which do not fill a vector
register, in another way than the rest. These are made of operations that do not (a test holds this).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pahq_server.models.architecture import Activation

# Values that are worked on at once: 512 KiB of them stay in a core's cache.
CACHED = 1 << 17


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), [...]."""
    return torch.erf(x * math.sqrt(0.5)).add_(1).mul_(0.5).mul_(x)


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), [...]."""
    return _in_parts(x, lambda part: torch.neg(part).exp_().add_(1))


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, [...]: x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))."""
    scale = 2 * math.sqrt(2 / math.pi)

    def denominator(part: Tensor) -> Tensor:
        return torch.square(part).mul_(-0.044715 * scale).sub_(scale).mul_(part).exp_().add_(1)

    return _in_parts(x, denominator)


def _in_parts(x: Tensor, denominator: Callable[[Tensor], Tensor]) -> Tensor:
    """x / denominator(x), a few values at a time so that they stay in the cache."""
    if not x.is_cpu:
        return x / denominator(x)
    out = torch.empty_like(x)
    for part, result in zip(x.flatten().split(CACHED), out.view(-1).split(CACHED), strict=True):
        torch.div(part, denominator(part), out=result)
    return out


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
}
