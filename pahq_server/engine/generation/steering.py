"""Edits neurons of some sequences of a batch while a model of a library computes it.

Both libraries compute the tokens of several sequences as rows of one matrix. An edit changes the rows of its
own sequences only, each by itself: the others keep every bit, and an edited row does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from pahq_server.core.activations import Steering
from pahq_server.engine.neuron_edits import LayerEdit, layer_edits

# How many edits are kept as tensors.
KEPT_EDITS = 16


class SteeredRows:
    """The edits of the batch that is computed at present; none outside of `batch`.

    Args:
        layers, d_mlp: of the model.
        device: what it computes on.
    """

    def __init__(self, layers: int, d_mlp: int, device: torch.device) -> None:
        self._device = device
        self._edits = lru_cache(KEPT_EDITS)(
            lambda steering: layer_edits(steering, layers, d_mlp, device, torch.float32)
        )
        self._batch: list[tuple[Tensor, tuple[LayerEdit | None, ...]]] = []

    @contextmanager
    def batch(self, rows: Iterable[tuple[Steering | None, int]]) -> Iterator[None]:
        """While it is entered, the model computes a batch.

        Args:
            rows: the steering of each sequence and the number of its rows, in the order of the rows.
        """
        self.begin(rows)
        try:
            yield
        finally:
            self._batch = []

    def begin(self, rows: Iterable[tuple[Steering | None, int]]) -> None:
        """Notes the batch that the model computes next, see `batch`."""
        chosen: dict[Steering, list[int]] = {}
        start = 0
        for steering, count in rows:
            if steering is not None:
                chosen.setdefault(steering, []).extend(range(start, start + count))
            start += count
        self._batch = [
            (torch.tensor(indices, device=self._device), self._edits(steering))
            for steering, indices in chosen.items()
        ]

    def layer(self, number: int) -> Sequence[tuple[Tensor, LayerEdit]]:
        """Returns what changes in a layer: rows, int64, and their edit."""
        found = ((rows, edits[number]) for rows, edits in self._batch)
        return [(rows, edit) for rows, edit in found if edit is not None]

    def edit(self, number: int, activations: Tensor) -> Tensor:
        """Changes activations [..., M] of a layer in place, and returns them."""
        flat = activations.view(-1, activations.shape[-1])
        for rows, edit in self.layer(number):
            flat[rows] = edit.apply(flat[rows])
        return activations
