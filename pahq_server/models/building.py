"""Building a model piece by piece: no more than one piece is held as it came and as it is kept.

The pieces are the ends (embedding, last norm and unembedding: weights without layers) and each layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

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
