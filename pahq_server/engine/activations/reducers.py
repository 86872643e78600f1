"""Sums, histograms and top tokens of neurons, added up layer by layer and part by part, in a fixed order.

Letters in shapes: n tokens that are looked at, of one part; M hidden units of an MLP; C chosen neurons, c of
a layer; T top tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.activations import (
    BIN_WIDTH,
    BINS,
    NeuronDetails,
    NeuronSums,
    Span,
    TopTokensOfNeurons,
)
from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.models.architecture import Architecture

# How many activations are summed at once: their 512 KiB in float64 stay in a core's cache.
CACHED = 1 << 16


class NeuronSummer:
    """Sums over tokens for every neuron.

    Args:
        arch: of the model.
        device: of the activations.
    """

    def __init__(self, arch: Architecture, device: torch.device) -> None:
        shape = (arch.layers, arch.d_mlp)
        self._positive = torch.zeros(shape, dtype=torch.int64, device=device)
        self._total = torch.zeros(shape, dtype=torch.float64, device=device)
        self._squares = torch.zeros_like(self._total)

    def add(self, layer: int, activations: Tensor) -> None:
        """Adds tokens of a layer: [n, M]."""
        for x in activations.split(max(1, CACHED // activations.shape[-1])):
            self._positive[layer] += (x > 0).sum(0)
            wide = x.double()
            self._total[layer] += wide.sum(0)
            self._squares[layer] += wide.square().sum(0)

    def sums(self, tokens: int) -> NeuronSums:
        """Returns the sums over all tokens that were added, of which there were so many."""
        parts = (self._positive, self._total, self._squares)
        positive, total, squares = (each.flatten().cpu().numpy() for each in parts)
        return NeuronSums(tokens, positive, total, squares)


class NeuronDescriber:
    """Histograms and top tokens of chosen neurons.

    Args:
        arch: of the model.
        neurons: their numbers, int64, [C], in increasing order.
        top: how many tokens to name for each, T.
        device: of the activations.
    """

    def __init__(
        self, arch: Architecture, neurons: NDArray[np.int64], top: int, device: torch.device
    ) -> None:
        bounds = np.arange(arch.layers + 1) * arch.d_mlp
        starts = np.searchsorted(neurons, bounds).tolist()
        # Per layer, which of the chosen neurons are in it, and their units.
        self._parts = [slice(first, last) for first, last in pairwise(starts)]
        self._units = [
            torch.from_numpy(neurons[part] - first).to(device)
            for part, first in zip(self._parts, bounds[:-1], strict=True)
        ]
        self.layers = max((layer + 1 for layer, units in enumerate(self._units) if len(units)), default=0)
        self._histogram = torch.zeros(len(neurons), BINS, dtype=torch.int64, device=device)
        self._top = torch.full((len(neurons), top), -torch.inf, dtype=torch.float64, device=device)
        # Numbers of the tokens, in the order in which they were added.
        self._tokens = torch.full((len(neurons), top), -1, dtype=torch.int64, device=device)

    def add(self, layer: int, activations: Tensor, before: int) -> None:
        """Adds tokens of a layer.

        Args:
            layer: its index.
            activations: [n, M].
            before: how many tokens of the layer have been added before.

        Raises NonFiniteMetricError.
        """
        part, units = self._parts[layer], self._units[layer]
        x = activations[:, units].T.double()
        if not x.isfinite().all():
            raise NonFiniteMetricError("a neuron's activation is not finite")
        self._histogram[part] += _histograms(x)
        tokens = torch.arange(before, before + x.shape[1], device=x.device).expand(x.shape)
        values = torch.cat([self._top[part], x], 1)
        tokens = torch.cat([self._tokens[part], tokens], 1)
        chosen = _largest(values, self._top.shape[1])
        self._top[part], self._tokens[part] = values.gather(1, chosen), tokens.gather(1, chosen)

    def details(self, spans: Sequence[Span]) -> NeuronDetails:
        """Returns what was found, for the spans whose tokens were added."""
        texts = [np.full(span.last - span.first, span.text) for span in spans]
        positions = [np.arange(span.first, span.last) for span in spans]
        # The last one stands for tokens that there were too few of.
        nothing = np.array([-1])
        tokens = self._tokens.cpu().numpy()
        return NeuronDetails(
            self._histogram.cpu().numpy(),
            TopTokensOfNeurons(
                self._top.cpu().numpy(),
                np.concatenate([*texts, nothing])[tokens],
                np.concatenate([*positions, nothing])[tokens],
            ),
        )


def _histograms(x: Tensor) -> Tensor:
    """Counts activations, float64, [c, n], by bins: int64, [c, BINS]."""
    bins = (x / BIN_WIDTH).clamp_(0, BINS - 1).long()
    bins += torch.arange(len(x), device=x.device)[:, None] * BINS
    return torch.bincount(bins.flatten(), minlength=len(x) * BINS).view(-1, BINS)


def _largest(x: Tensor, count: int) -> Tensor:
    """Returns where the largest numbers of each row are, the largest first, of equal ones the earlier.

    Args:
        x: [c, n], without NaN.
        count: how many, at most n.

    Returns:
        int64, [c, count]. `torch.topk` alone would choose any of equal numbers.
    """
    if not count:
        return x.new_empty(len(x), 0, dtype=torch.int64)
    least = x.topk(count).values[:, -1:]
    above, equal = x > least, x == least
    chosen = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
    places = chosen.nonzero()[:, 1].view(-1, count)
    order = x.gather(1, places).sort(descending=True, stable=True).indices
    return places.gather(1, order)
