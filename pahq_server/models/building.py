"""Building a model piece by piece, and moving it to another dtype or device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pahq_server.models.architecture import Architecture, LayerWeights, Model, Weights


class Transform(Protocol):
    """What is kept of a model. Pieces are not changed in place; what is returned may share their memory."""

    def architecture(self, arch: Architecture) -> Architecture:
        """The architecture that the kept weights are those of."""
        ...

    def ends(self, arch: Architecture, ends: Weights) -> Weights:
        """What is kept of the weights around the layers, from weights without layers to the same."""
        ...

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        """What is kept of one layer. ``arch`` is the plain one."""
        ...


class Plain:
    """Keeps a model as it is."""

    def architecture(self, arch: Architecture) -> Architecture:
        return arch

    def ends(self, arch: Architecture, ends: Weights) -> Weights:
        return ends

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        return layer


PLAIN = Plain()


def build(
    arch: Architecture,
    ends: Callable[[], Weights],
    layer: Callable[[int], LayerWeights],
    transform: Transform = PLAIN,
) -> Model:
    """A model from its plain pieces, each asked for once, in order, and let go of before the next.

    Args:
        arch: of the plain model.
        ends: gives the weights without layers; they come first.
        layer: gives a layer by index.
        transform: what is kept of each piece.
    """
    # No variable may hold a plain piece here: it would live on while the next one is made.
    kept = transform.ends(arch, ends())
    layers = tuple(transform.layer(arch, index, layer(index)) for index in range(arch.layers))
    return Model(transform.architecture(arch), replace(kept, layers=layers))


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
