"""Edits of neurons, layer by layer, as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pahq_server.core.activations import Steering


@dataclass(frozen=True)
class LayerEdit:
    """An edit of the units of one MLP.

    Args:
        raised: units, int64 [R].
        amounts: what is added to each, [R].
        lowered: units, int64 [L].
    """

    raised: Tensor
    amounts: Tensor
    lowered: Tensor

    def apply(self, activations: Tensor) -> Tensor:
        """Changes activations [N, M] in place, and returns them."""
        if len(self.raised):
            activations[:, self.raised] += self.amounts.to(activations.dtype)
        if len(self.lowered):
            activations[:, self.lowered] = activations[:, self.lowered].clamp(max=0)
        return activations


def layer_edits(
    steering: Steering, layers: int, d_mlp: int, device: torch.device, dtype: torch.dtype
) -> tuple[LayerEdit | None, ...]:
    """Divides an edit among the layers; None for those in which nothing changes.

    Args:
        steering: the edit.
        layers, d_mlp: of the model.
        device: what it computes on.
        dtype: of amounts.
    """
    starts = np.arange(layers + 1) * d_mlp
    raised, lowered = (np.searchsorted(given, starts) for given in (steering.raised, steering.lowered))
    edits: list[LayerEdit | None] = []
    for layer, start in enumerate(starts[:-1]):
        up, down = slice(*raised[layer : layer + 2]), slice(*lowered[layer : layer + 2])
        edit = LayerEdit(
            torch.from_numpy(steering.raised[up] - start).to(device),
            torch.from_numpy(steering.amounts[up]).to(device, dtype),
            torch.from_numpy(steering.lowered[down] - start).to(device),
        )
        edits.append(edit if len(edit.raised) or len(edit.lowered) else None)
    return tuple(edits)
