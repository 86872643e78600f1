"""Reducers against plain Python: ties, edges of bins, parts."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.zoo import Zoo
from hypothesis import given
from hypothesis import strategies as st

from pahq_server.core.activations import BIN_WIDTH, BINS, Span
from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.engine.activations.reducers import (
    CACHED,
    NeuronDescriber,
    NeuronSummer,
    _histograms,
    _largest,
)
from pahq_server.models.architecture import Architecture

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def arch(zoo: Zoo) -> Architecture:
    return replace(zoo["gpt2"].architecture, layers=2, d_mlp=5)


@given(st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12), st.integers(0, 12))
def test_the_largest_of_equal_ones_are_the_earlier(row: list[float], count: int) -> None:
    count = min(count, len(row))
    expected = sorted(range(len(row)), key=lambda place: (-row[place], place))[:count]
    rows = torch.tensor([row, row[::-1]], dtype=torch.float64)
    found = _largest(rows, count)
    assert found.shape == (2, count)
    assert found[0].tolist() == expected


@given(st.lists(st.floats(-1, 4, width=32), min_size=1, max_size=20))
def test_histograms(values: list[float]) -> None:
    edges = [0.0, -0.0, BIN_WIDTH, 3.0, 3.01, 1e30, -1e30, 2.9999999]
    row = [*values, *edges]
    counts = [0] * BINS
    for value in row:
        counts[0 if value <= 0 else min(BINS - 1, math.floor(value / BIN_WIDTH))] += 1
    found = _histograms(torch.tensor([row, [0.0] * len(row)], dtype=torch.float64))
    assert found[0].tolist() == counts
    assert found[1, 0] == len(row) == found[1].sum()


@pytest.mark.parametrize("sizes", [(1,), (7, 1, 0, 30), (CACHED // 5 + 3, 2)])
def test_sums_in_parts(sizes: tuple[int, ...], arch: Architecture) -> None:
    rng = torch.Generator().manual_seed(0)
    summer, every = NeuronSummer(arch, CPU), [[], []]
    for size in sizes:
        for layer in range(2):
            x = torch.randn(size, 5, generator=rng)
            x[::2] = 0
            summer.add(layer, x)
            every[layer].append(x)
    found = summer.sums(sum(sizes))
    dense = torch.cat([torch.cat(parts) for parts in every], 1).double().numpy()
    assert found.tokens == len(dense)
    assert found.positive.tolist() == (dense > 0).sum(0).tolist()
    exact = [[math.fsum(column) for column in x.T.tolist()] for x in (dense, dense**2)]
    np.testing.assert_allclose(found.total, exact[0], rtol=1e-12, atol=1e-11)
    np.testing.assert_allclose(found.squares, exact[1], rtol=1e-12)
    assert (found + found).tokens == 2 * len(dense)


def test_details_in_parts(arch: Architecture) -> None:
    """However tokens come, details are those of all at once, ties included."""
    x = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(1)).relu_()
    neurons, spans = np.array([0, 2, 3, 6, 9]), [Span(3, 5, 30), Span(4, 0, 15)]
    found = []
    for sizes in ((40,), (1, 9, 30), (10, 10, 20)):
        describer, before = NeuronDescriber(arch, neurons, 25, CPU), 0
        for size in sizes:
            for layer in range(2):
                describer.add(layer, x[layer, before : before + size], before)
            before += size
        details = describer.details(spans)
        parts = (details.histogram, details.top.values, details.top.texts, details.top.positions)
        found.append([part.tobytes() for part in parts])
    assert found[0] == found[1] == found[2]
    assert details.top.values[:, -1].max() == 0, "no ties would test nothing"
    assert set(details.top.texts.flatten().tolist()) == {3, 4}


def test_details_of_numbers_that_are_not_finite(arch: Architecture) -> None:
    describer = NeuronDescriber(arch, np.array([1]), 1, CPU)
    for value in (math.nan, math.inf):
        x = torch.zeros(3, 5)
        x[1, 2] = value
        describer.add(0, x, 0)  # of another neuron
        x[1, 1] = value
        with pytest.raises(NonFiniteMetricError):
            describer.add(0, x, 0)


def test_layers_beyond_the_last_chosen_neuron_are_not_needed(arch: Architecture) -> None:
    for neurons, layers in (([], 0), ([0, 4], 1), ([5], 2), ([0, 9], 2)):
        assert NeuronDescriber(arch, np.array(neurons, dtype=np.int64), 1, CPU).layers == layers
