"""Which neurons carry a value, and how active they are: the formulas of ValueLocate (arXiv:2505.17712)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.activations import BIN_WIDTH, BINS, NeuronSums, TopTokensOfNeurons

PERCENT = 95


@dataclass(frozen=True, eq=False)
class ChosenNeurons:
    """Neurons of one side: those more often active in its own texts than in the others.

    Args:
        numbers: of the neurons, int64, [N]; those with the largest differences first, of equal ones the
            lower number.
        delta: share of the positive texts' tokens at which the activation is above 0, minus that of the
            negative texts': float64, [N].
        positive, negative: these shares, of the same shape.
        mean: mean activation over the side's own texts, of the same shape.
        silent: at how many of their tokens the activation is not above 0: int64, of the same shape.
    """

    numbers: NDArray[np.int64]
    delta: NDArray[np.float64]
    positive: NDArray[np.float64]
    negative: NDArray[np.float64]
    mean: NDArray[np.float64]
    silent: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Described:
    """Chosen neurons with what is known of each.

    Args:
        chosen: the neurons.
        q95: 95th percentile of the activation over the side's own texts: float64, [N].
        top: where they are most active, in the order of ``chosen``; texts by their number among all.
    """

    chosen: ChosenNeurons
    q95: NDArray[np.float64]
    top: TopTokensOfNeurons


def choose(
    positive: NeuronSums, negative: NeuronSums, top_k: int, min_delta: float
) -> tuple[ChosenNeurons, ChosenNeurons]:
    """Returns the neurons of the positive and those of the negative texts.

    Differences are divided once, as (a * n - b * m) / (m * n) for a of m and b of n tokens: so .3 - .2 is the
    float .1, and not below it.

    Args:
        positive, negative: sums over the tokens of either.
        top_k: the most neurons of each side.
        min_delta: the least difference.
    """
    m, n = positive.tokens, negative.tokens
    delta = (positive.positive * n - negative.positive * m) / (m * n)
    return (
        _side(delta, delta, positive, negative, positive, top_k, min_delta),
        _side(-delta, delta, positive, negative, negative, top_k, min_delta),
    )


def _side(
    sign: NDArray[np.float64],
    delta: NDArray[np.float64],
    positive: NeuronSums,
    negative: NeuronSums,
    own: NeuronSums,
    top_k: int,
    min_delta: float,
) -> ChosenNeurons:
    candidates = np.flatnonzero(sign >= min_delta)
    order = np.argsort(-sign[candidates], kind="stable")[:top_k]
    numbers = candidates[order].astype(np.int64)
    return ChosenNeurons(
        numbers,
        delta[numbers],
        positive.positive[numbers] / positive.tokens,
        negative.positive[numbers] / negative.tokens,
        own.total[numbers] / own.tokens,
        own.tokens - own.positive[numbers],
    )


def percentiles(histogram: NDArray[np.int64], silent: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the 95th percentile of each neuron's activation, as far as a histogram tells it.

    Of T tokens in the order of their activations it is that of the token at ceil(.95 T). If this is not above
    0, the percentile is 0. Else the token is the k-th of c in its bin, and the percentile is k / c of the way
    through it; in the last bin, which has no end, it is where that begins.

    Args:
        histogram: int64, [N, BINS].
        silent: at how many tokens the activation is not above 0, all of them in the first bin: int64, [N].

    Returns:
        float64, [N], from 0 to 3.
    """
    above = histogram.copy()
    above[:, 0] = np.maximum(0, above[:, 0] - silent)
    until = np.cumsum(above, axis=1)
    tokens = histogram.sum(axis=1)
    rank = (PERCENT * tokens + 99) // 100 - (tokens - until[:, -1])  # among those above 0
    which = np.argmax(until >= rank[:, None], axis=1)
    rows = np.arange(len(histogram))
    count = np.maximum(1, above[rows, which])
    share = (rank - (until[rows, which] - above[rows, which])) / count
    found = np.where(which == BINS - 1, which, which + share) * BIN_WIDTH
    return np.where(rank > 0, found, 0.0)
