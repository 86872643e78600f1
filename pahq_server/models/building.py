"""Building a model piece by piece, so that memory never holds more than one piece twice.

A model has ``layers + 1`` pieces: its embeddings (token and position embedding, last norm and unembedding, as
`Weights` without layers), and each of its layers (`LayerWeights`). A `Transform` decides what is kept of each
piece as soon as it has been read: the piece itself, a folded one (`folding.FOLDING`), or a copy on a device
(`ToDevice`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from pahq_server.models.architecture import Architecture, LayerWeights, Model, Weights

T = TypeVar("T")


class Transform(Protocol):
    """What is kept of a model while it is built.

    A transform does not change a piece in place; what it returns may share memory with the piece.
    """

    def architecture(self, arch: Architecture) -> Architecture:
        """Returns the architecture that describes the kept weights."""
        ...

    def embeddings(self, arch: Architecture, weights: Weights) -> Weights:
        """Returns what is kept of the weights outside the layers.

        Args:
            arch: of the checkpoint, before this transform.
            weights: with no layers; the result has none either.
        """
        ...

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        """Returns what is kept of layer ``index``; ``arch`` is that of the checkpoint."""
        ...


class Plain:
    """Keeps a model as its checkpoint has it."""

    def architecture(self, arch: Architecture) -> Architecture:
        return arch

    def embeddings(self, arch: Architecture, weights: Weights) -> Weights:
        return weights

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        return layer


PLAIN = Plain()


class ToDevice:
    """Applies another transform and moves what it keeps of each piece to a device at once.

    So the host's memory never holds more than one piece.
    """

    def __init__(self, inner: Transform, device: torch.device | str) -> None:
        self._inner, self._device = inner, device

    def architecture(self, arch: Architecture) -> Architecture:
        return self._inner.architecture(arch)

    def embeddings(self, arch: Architecture, weights: Weights) -> Weights:
        return to_device(self._inner.embeddings(arch, weights), self._device)

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        return to_device(self._inner.layer(arch, index, layer), self._device)


def build(
    arch: Architecture,
    embeddings: Callable[[], Weights],
    layer: Callable[[int], LayerWeights],
    transform: Transform = PLAIN,
) -> Model:
    """Builds a model from its pieces. Each is asked for once, in order, and released before the next.

    Args:
        arch: of the checkpoint.
        embeddings: returns the weights outside the layers; called first.
        layer: returns a layer by its index.
        transform: what is kept of each piece.
    """
    # No variable holds a piece as it was read, because it would stay in memory while the next one is read.
    kept = transform.embeddings(arch, embeddings())
    layers = tuple(transform.layer(arch, index, layer(index)) for index in range(arch.layers))
    return Model(transform.architecture(arch), replace(kept, layers=layers))


def to_device(weights: T, device: torch.device | str) -> T:
    """Copies a dataclass of tensors, such as `LayerWeights`, to a device, as far as it is not there yet."""
    moved: T = _cast(weights, None, device)
    return moved


def cast(model: Model, dtype: torch.dtype, device: torch.device | str = "cpu") -> Model:
    """Returns the model with all its tensors in ``dtype`` on ``device``."""
    return replace(model, weights=_cast(model.weights, dtype, device))


def _cast(value: Any, dtype: torch.dtype | None, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype)
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _cast(getattr(value, f.name), dtype, device) for f in fields(value)})
    return value
