"""Codes: distances, draws, moving averages, and the codes that training starts from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.planted_states import adjusted_rand_index, planted

from pahq_server.engine.concepts.codebook import (
    ROUNDS,
    _redistributed,
    _rounds,
    _seeds,
    _two_nearest,
    candidates,
    count_and_sum,
    drawn,
    moved,
    nearest,
    spherical_start,
    squared_distances,
)


def states(seed: int, count: int, width: int, codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn((count, width), generator=generator, dtype=torch.float64)
    return z, torch.randn((codes, width), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_distances_are_those_of_each_pair(seed: int) -> None:
    z, codes = states(seed, 37, 6, 11)
    each = (z[:, None] - codes).pow(2).sum(2)
    assert torch.allclose(squared_distances(z, codes), each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pairs", [1, 12, 100, 1 << 20])
def test_distances_in_parts_are_the_dense_ones(pairs: int) -> None:
    z, codes = states(1, 101, 6, 11)
    each = (z[:, None] - codes).pow(2).sum(2)
    chosen, distances = nearest(z, codes, pairs)
    assert torch.equal(chosen, each.argmin(1))
    assert torch.allclose(distances, each.min(1).values, rtol=1e-12, atol=1e-12)


def test_one_neighbour_is_the_nearest_code() -> None:
    z, codes = states(3, 200, 5, 17)
    numbers = torch.rand(200, dtype=torch.float64)
    assert torch.equal(drawn(z, codes, numbers, 1, 1.0), nearest(z, codes)[0])
    # As all others are, when the temperature goes to 0.
    assert torch.equal(drawn(z, codes, numbers, 5, 1e-9), nearest(z, codes)[0])


def test_codes_are_drawn_by_their_distance_and_only_among_the_nearest() -> None:
    z, codes = states(4, 1, 5, 9)
    count = 20_000
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    chosen = drawn(z.expand(count, -1), codes, numbers, 3, 2.0)
    distances = (z - codes).pow(2).sum(1)
    near = distances.argsort()[:3]
    odds = torch.zeros(9, dtype=torch.float64)
    odds[near] = torch.softmax(-distances[near] / 2.0, 0)
    found = torch.bincount(chosen, minlength=9) / count
    assert torch.allclose(found.double(), odds, atol=2 / count)


def test_moving_averages_have_their_closed_form() -> None:
    decay, epsilon, steps, codes = 0.9, 1e-5, 25, 4
    draw = torch.Generator().manual_seed(5)
    counts0, sums0 = torch.ones(codes, dtype=torch.float64), states(6, 1, 3, codes)[1]
    counts, sums, moved_codes = counts0, sums0, sums0
    batches = []
    for _ in range(steps):
        z = torch.randn((30, 3), generator=draw, dtype=torch.float64)
        chosen = torch.randint(0, codes, (30,), generator=draw)
        batches.append((z, chosen))
        counts, sums, moved_codes = moved(counts, sums, count_and_sum(z, chosen, codes), decay, epsilon)
    for code in range(codes):
        of_batches = [(z[chosen == code].sum(0), int((chosen == code).sum())) for z, chosen in batches]
        shares = [(1 - decay) * decay ** (steps - 1 - s) for s in range(steps)]
        n = decay**steps + sum(share * count for share, (_, count) in zip(shares, of_batches, strict=True))
        total = decay**steps * sums0[code] + sum(
            share * own for share, (own, _) in zip(shares, of_batches, strict=True)
        )
        every = float(counts.sum())
        smoothed = (n + epsilon) / (every + codes * epsilon) * every
        assert counts[code] == pytest.approx(n, rel=1e-12)
        assert torch.allclose(sums[code], total, rtol=1e-12, atol=1e-12)
        assert torch.allclose(moved_codes[code], total / smoothed, rtol=1e-12, atol=1e-12)


def start(seed: int, z: torch.Tensor, codes: int) -> tuple[torch.Tensor, float]:
    draw = np.random.default_rng(seed)
    return spherical_start(z, torch.from_numpy(draw.random((codes, candidates(codes)))))


@pytest.mark.parametrize("seed", range(5))
def test_the_start_finds_clusters(seed: int) -> None:
    known = planted(seed, tokens=1000, width=16, concepts=12)
    z = torch.from_numpy(known.x)
    codes, _ = min((start(attempt, z, 12) for attempt in range(5)), key=lambda found: found[1])
    chosen = nearest(z, codes)[0].numpy()
    assert adjusted_rand_index(chosen, known.concepts) >= 0.95
    for code in range(12):
        own = z[torch.from_numpy(chosen == code)]
        assert codes[code].norm() == pytest.approx(float(own.norm(dim=1).mean()), rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_many_clusters_are_found_though_k_means_alone_mixes_them_up(seed: int) -> None:
    known = planted(seed, tokens=2000, width=32, concepts=100, noise=0.5)
    z = torch.from_numpy(known.x)
    unit = torch.nn.functional.normalize(z, dim=1)
    draw = np.random.default_rng(seed)
    seeds = _seeds(unit, torch.from_numpy(draw.random((100, candidates(100)))))
    alone = _rounds(unit, unit[seeds], ROUNDS)
    better = _redistributed(unit, alone)
    assert float(nearest(unit, better)[1].sum()) < float(nearest(unit, alone)[1].sum())
    indices = [
        adjusted_rand_index(nearest(unit, centres)[0].numpy(), known.concepts) for centres in (alone, better)
    ]
    assert indices[0] < indices[1]
    assert indices[1] >= 0.97
    assert torch.equal(better, _redistributed(unit, alone))


def test_the_two_nearest_are_those_of_each_pair() -> None:
    z, codes = states(8, 50, 6, 11)
    each = (z[:, None] - codes).pow(2).sum(2).sort(dim=1)
    own, first, second = _two_nearest(z, codes)
    assert torch.equal(own, each.indices[:, 0])
    assert torch.allclose(torch.stack([first, second], 1), each.values[:, :2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("copies", [1, 3])
def test_a_start_may_have_as_many_codes_as_states(copies: int) -> None:
    z = states(7, 6, 4, 1)[0].repeat(copies, 1)
    codes, distance = start(0, z, len(z))
    assert codes.shape == z.shape
    assert torch.isfinite(codes).all()
    assert distance < 1e-12
    assert float(nearest(z, codes)[1].max()) < 1e-12


def test_a_start_from_zeros_is_finite() -> None:
    codes, _ = start(0, torch.zeros((10, 4)), 3)
    assert torch.equal(codes, torch.zeros((3, 4)))


def test_the_index_of_equal_partitions_is_one() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 7, 500)
    assert adjusted_rand_index(labels, (labels + 3) % 7) == pytest.approx(1)
    assert abs(adjusted_rand_index(labels, draw.permutation(labels))) < 0.05
