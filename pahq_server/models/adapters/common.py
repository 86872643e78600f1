"""Steps that several checkpoint formats share."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.architecture import Activation, Architecture, Rotary

_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
# Rotary variants whose frequencies do not depend on the length of the prompt.
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


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


def sized(config: Any, d_head: int, **others: Any) -> Architecture:
    """An architecture whose sizes have the names that most configurations give them.

    Args:
        config: of the checkpoint.
        d_head: width of a head, by whose root attention scores are divided.
        others: the remaining fields, and those that differ from one key/value head for every head.
    """
    heads = config.num_attention_heads
    return Architecture(
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=others.pop("kv_heads", heads),
        d_model=config.hidden_size,
        d_head=d_head,
        vocabulary=config.vocab_size,
        output_vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        attention_scales=(1 / math.sqrt(d_head),) * config.num_hidden_layers,
        windows=(None,) * config.num_hidden_layers,
        **others,
    )


def check_rope(config: Any) -> None:
    """Raises InvalidRequestError for rotary positions that differ between prompts or layers."""
    rope = config.rope_parameters.get("rope_type")
    if rope not in _STATIC_ROPE:
        raise InvalidRequestError(
            "model", f"{config.model_type} with rope_type={rope!r} is not supported, only {_STATIC_ROPE}"
        )


def windows(config: Any) -> tuple[int | None, ...]:
    """`Architecture.windows` of a configuration that names the kind of attention of every layer."""
    sizes = {"full_attention": None, "sliding_attention": config.sliding_window}
    for kind in config.layer_types:
        if kind not in sizes:
            raise InvalidRequestError(
                "model", f"{config.model_type} with layers of {kind!r} is not supported, only {sorted(sizes)}"
            )
        if kind == "sliding_attention" and config.sliding_window is None:
            raise InvalidRequestError("model", f"{config.model_type} with sliding_attention has no window")
    return tuple(sizes[kind] for kind in config.layer_types)


def rotary(embedding: Any) -> Rotary:
    """The frequencies of one of transformers' rotary embeddings."""
    return Rotary(embedding.inv_freq.float(), float(embedding.attention_scaling))


def split_in(weight: Tensor, heads: int) -> Tensor:
    """A projection into heads: from [D, heads·K] to [heads, D, K]."""
    d_model = weight.shape[0]
    return weight.reshape(d_model, heads, -1).permute(1, 0, 2).contiguous()


def split_out(weight: Tensor, heads: int) -> Tensor:
    """A projection out of heads: from [heads·K, D] to [heads, K, D]."""
    return weight.reshape(heads, -1, weight.shape[-1]).contiguous()
