"""Which neurons are chosen, and their percentiles, beside slow and obvious formulas."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from pahq_server.core.activations import BIN_WIDTH, BINS, NeuronSums
from pahq_server.methods.neurons.choice import choose, percentiles


def sums(tokens: int, positive: list[int]) -> NeuronSums:
    counts = np.array(positive, np.int64)
    return NeuronSums(tokens, counts, counts * 0.5, counts * 0.25)


@pytest.mark.parametrize("seed", range(30))
def test_it_is_what_exact_fractions_say(seed: int) -> None:
    draw = np.random.default_rng(seed)
    m, n = (int(draw.integers(1, 40)) for _ in range(2))
    a, b = draw.integers(0, m + 1, 50).tolist(), draw.integers(0, n + 1, 50).tolist()
    top_k, least = int(draw.integers(1, 30)), float(draw.choice([0.1, 0.2, 0.25, 0.5]))
    exact = [Fraction(x, m) - Fraction(y, n) for x, y in zip(a, b, strict=True)]
    sides = choose(sums(m, a), sums(n, b), top_k, least)
    for side, sign, (own, tokens) in zip(sides, (1, -1), ((a, m), (b, n)), strict=True):
        fit = [i for i in range(50) if sign * exact[i] >= Fraction(str(least))]
        expected = sorted(fit, key=lambda i: (-sign * exact[i], i))[:top_k]
        assert side.numbers.tolist() == expected
        assert side.delta.tolist() == [float(exact[i]) for i in expected]
        assert side.positive.tolist() == [a[i] / m for i in expected]
        assert side.negative.tolist() == [b[i] / n for i in expected]
        assert side.mean.tolist() == [own[i] * 0.5 / tokens for i in expected]
        assert side.silent.tolist() == [tokens - own[i] for i in expected]


def test_a_difference_of_a_tenth_is_not_below_a_tenth() -> None:
    (raised, _) = choose(sums(10, [3, 8]), sums(10, [2, 7]), 5, 0.1)
    assert 3 / 10 - 2 / 10 < 0.1  # as floats
    assert raised.numbers.tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(30))
def test_percentiles_are_those_of_the_activations_to_a_bin(seed: int) -> None:
    draw = np.random.default_rng(seed)
    tokens = int(draw.integers(1, 400))
    a = draw.normal(draw.uniform(-2, 1), draw.choice([0.01, 0.3, 1.0]), (tokens, 20))
    bins = np.clip(np.floor(a / BIN_WIDTH), 0, BINS - 1).astype(np.int64)
    histogram = np.stack([np.bincount(column, minlength=BINS) for column in bins.T])
    found = percentiles(histogram, (a <= 0).sum(0))
    for neuron in range(20):
        exact = sorted(a[:, neuron])[math.ceil(Fraction(95, 100) * tokens) - 1]
        if exact <= 0:
            assert found[neuron] == 0
        else:
            assert abs(found[neuron] - min(exact, 3.0)) <= BIN_WIDTH * (1 + 1e-9)
            assert found[neuron] > 0


def test_a_percentile_goes_through_its_bin_with_the_tokens() -> None:
    histogram = np.zeros((3, BINS), np.int64)
    histogram[0, [0, 7]] = 10, 10  # the 19th of 20: the 9th of 10 in bin 7
    histogram[1, 0] = 20  # 10 of them above 0
    histogram[2, 300] = 20
    found = percentiles(histogram, np.array([10, 10, 0]))
    assert found.tolist() == [pytest.approx(0.079), pytest.approx(0.009), pytest.approx(3.0)]
    assert percentiles(np.zeros((0, BINS), np.int64), np.zeros(0, np.int64)).tolist() == []
