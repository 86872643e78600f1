"""Tensors in nested values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from pahq_server.precision.quantized import Quantized


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dataclasses and tuples."""
    if isinstance(value, Quantized):  # its weight is a tensor of torchao, which holds these two
        yield from (value.data, value.scale)
        yield from tensors(value.inputs)
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))
