"""Converting a model to another dtype or device."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pahq_server.models.architecture import Model


def cast(model: Model, dtype: torch.dtype, device: torch.device | str = "cpu") -> Model:
    """The same model with every floating-point tensor in ``dtype`` on ``device``."""
    return replace(model, weights=_cast(model.weights, dtype, device))


def _cast(value: Any, dtype: torch.dtype, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype)
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _cast(getattr(value, f.name), dtype, device) for f in fields(value)})
    return value
