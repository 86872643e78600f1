"""Steps that several checkpoint formats share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.architecture import Activation

_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


def activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise InvalidRequestError(
            "model", f"activation {name!r} is not supported, only {sorted(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def refuse(config: Any, **expected: object) -> None:
    """Raises InvalidRequestError if an attribute is present and differs from what is supported."""
    for name, value in expected.items():
        found = getattr(config, name, value)
        if found != value:
            raise InvalidRequestError("model", f"{config.model_type} with {name}={found!r} is not supported")


def split_in(weight: Tensor, heads: int) -> Tensor:
    """A projection into heads: from [D, heads·K] to [heads, D, K]."""
    d_model = weight.shape[0]
    return weight.reshape(d_model, heads, -1).permute(1, 0, 2).contiguous()


def split_out(weight: Tensor, heads: int) -> Tensor:
    """A projection out of heads: from [heads·K, D] to [heads, K, D]."""
    return weight.reshape(heads, -1, weight.shape[-1]).contiguous()
