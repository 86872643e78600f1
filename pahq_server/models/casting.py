"""Converting a model to another dtype or device."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pahq_server.models.architecture import Architecture, LayerWeights, Model, Weights
from pahq_server.models.building import Transform

T = TypeVar("T")


class Placed:
    """Does what another `building.Transform` does, and puts what is kept of each piece on a device.

    The host never holds more than one piece then.
    """

    def __init__(self, inner: Transform, device: torch.device | str) -> None:
        self._inner, self._device = inner, device

    def architecture(self, arch: Architecture) -> Architecture:
        return self._inner.architecture(arch)

    def ends(self, arch: Architecture, ends: Weights) -> Weights:
        return placed(self._inner.ends(arch, ends), self._device)

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        return placed(self._inner.layer(arch, index, layer), self._device)


def placed(weights: T, device: torch.device | str) -> T:
    """The same dataclass of tensors on ``device``."""
    moved: T = _cast(weights, None, device)
    return moved


def cast(model: Model, dtype: torch.dtype, device: torch.device | str = "cpu") -> Model:
    """The same model with every floating-point tensor in ``dtype`` on ``device``."""
    return replace(model, weights=_cast(model.weights, dtype, device))


def _cast(value: Any, dtype: torch.dtype | None, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype)
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _cast(getattr(value, f.name), dtype, device) for f in fields(value)})
    return value
