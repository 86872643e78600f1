"""The codebook: distances to codes, which code a state gets, and how codes follow their states.

Written here, although libraries have vector quantizers: vector-quantize-pytorch draws from all codes, not
from the nearest k, by the global random state, keeps distances of all states to all codes, and begins with
plain k-means of the first batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Distances of at most so many pairs of a state and a code are in memory at once.
PAIRS = 1 << 22
# Rounds of k-means after the seeds were chosen, and after centres were moved elsewhere.
ROUNDS, ROUNDS_AFTER_MOVES = 10, 3
# At first so many of the centres are moved at a time; and so often at most.
MOVED_SHARE, MOST_MOVES = 0.1, 16


def squared_distances(z: Tensor, codes: Tensor) -> Tensor:
    """Returns |z - c|^2 of every state and code: [N, K], at least 0."""
    norms = z.pow(2).sum(1, keepdim=True) + codes.pow(2).sum(1)
    return torch.addmm(norms, z, codes.T, alpha=-2).clamp_(min=0)


def nearest(z: Tensor, codes: Tensor, pairs: int = PAIRS) -> tuple[Tensor, Tensor]:
    """Returns the nearest code of each state, and its squared distance.

    Args:
        z: encoded states: [N, d].
        codes: [K, d].
        pairs: how many distances are in memory at once, about.
    """
    rows = max(1, pairs // len(codes))
    found = [squared_distances(part, codes).min(1) for part in z.split(rows)]
    return torch.cat([each.indices for each in found]), torch.cat([each.values for each in found])


def drawn(z: Tensor, codes: Tensor, numbers: Tensor, neighbours: int, temperature: float) -> Tensor:
    """Draws a code for each state among its nearest, by softmax(-d / T) of squared distances.

    Args:
        z: encoded states: [N, d].
        codes: [K, d].
        numbers: the draws, from [0, 1): float64, [N].
        neighbours: among how many codes, at most K; with 1 it is `nearest`.
        temperature: T, above 0.
    """
    rows = max(1, PAIRS // len(codes))
    parts = []
    for part, number in zip(z.split(rows), numbers.split(rows), strict=True):
        if neighbours == 1:
            parts.append(nearest(part, codes)[0])
            continue
        found = squared_distances(part, codes).topk(neighbours, largest=False)
        share = torch.softmax(-found.values.double() / temperature, 1).cumsum(1)
        # The sum may round to less than 1: the draw is below the last share in any case.
        place = (number[:, None] * share[:, -1:] >= share).sum(1, keepdim=True).clamp_(max=neighbours - 1)
        parts.append(found.indices.gather(1, place)[:, 0])
    return torch.cat(parts)


def count_and_sum(z: Tensor, chosen: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Returns how many states chose each code, [K], and their sums, [K, d].

    By a product of matrices, whose order of additions is the same in every run, unlike that of scattered
    additions on a GPU.
    """
    counts, sums = z.new_zeros(codes), z.new_zeros(codes, z.shape[1])
    rows = max(1, PAIRS // codes)
    for part, code in zip(z.split(rows), chosen.split(rows), strict=True):
        one_hot = torch.nn.functional.one_hot(code, codes).to(z.dtype)
        counts += one_hot.sum(0)
        sums += one_hot.T @ part
    return counts, sums


def moved(
    counts: Tensor, sums: Tensor, now: tuple[Tensor, Tensor], decay: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Moves averages towards what a batch gave, and returns them with the codes that follow.

    Codes are sums / smoothed counts, (n_k + epsilon) / (n + K epsilon) * n, where n is the sum of all n_k.

    Args:
        counts: moving average of states per code: [K].
        sums: that of their sums: [K, d].
        now: both of the batch, see `count_and_sum`.
        decay: share of the averages that stays.
        epsilon: keeps codes that no state chooses finite.
    """
    counts = decay * counts + (1 - decay) * now[0]
    sums = decay * sums + (1 - decay) * now[1]
    total = counts.sum()
    smoothed = (counts + epsilon) / (total + len(counts) * epsilon) * total
    return counts, sums, sums / smoothed[:, None]


def candidates(codes: int) -> int:
    """Returns how many candidates each seed of `spherical_start` has."""
    return 2 + int(math.log(codes))


def spherical_start(z: Tensor, numbers: Tensor) -> tuple[Tensor, float]:
    """Chooses codes for states: k-means++ by direction, some rounds of k-means, then scaled to their size.

    Each seed is the best of a few candidates, which are drawn by their squared distance from the seeds so far
    (Arthur and Vassilvitskii 2007). Centres that are hardly missed then move to where they are needed. A code
    has the mean direction of its states, and their mean norm.

    Args:
        z: encoded states: [N, d], at least as many as there are codes.
        numbers: the draws, from [0, 1): float64, [K, `candidates`].

    Returns:
        The codes, [K, d], and the mean squared distance of directions from those of their codes.
    """
    codes = len(numbers)
    norms = z.norm(dim=1)
    unit = z / norms.clamp(min=torch.finfo(z.dtype).tiny)[:, None]
    centres = unit[_seeds(unit, numbers)]
    centres = _redistributed(unit, _rounds(unit, centres, ROUNDS))
    chosen, distances = nearest(unit, centres)
    counts, lengths = count_and_sum(norms[:, None], chosen, codes)
    sizes = torch.where(counts > 0, lengths[:, 0] / counts.clamp(min=1), norms.mean())
    return centres * sizes[:, None], float(distances.double().mean())


def _rounds(unit: Tensor, centres: Tensor, rounds: int) -> Tensor:
    """Makes rounds of spherical k-means, and returns the centres: [K, d], of length 1."""
    for _ in range(rounds):
        counts, sums = count_and_sum(unit, nearest(unit, centres)[0], len(centres))
        directions = torch.nn.functional.normalize(sums, dim=1)
        # A centre without states stays where it is.
        centres = torch.where((counts > 0)[:, None], directions, centres)
    return centres


def _redistributed(unit: Tensor, centres: Tensor) -> Tensor:
    """Moves centres that are hardly missed to where states are far from theirs, as long as that helps.

    Rounds of k-means alone never part two clusters that share a centre while another cluster has two. As in
    breathing k-means (Fritzke, arXiv:2006.15666) the centres with the largest errors get help from those
    whose states lie almost as near to another centre; here both at once, so that K stays the same.

    Args:
        unit: states of length 1: [N, d].
        centres: [K, d].

    Returns:
        Centres whose squared distances from their states have at most the same sum.
    """
    codes = len(centres)
    count = int(MOVED_SHARE * codes) or codes // 2
    error = float(nearest(unit, centres)[1].double().sum())
    for _ in range(MOST_MOVES):
        if not count:
            break
        own, distance, second = _two_nearest(unit, centres)
        errors = count_and_sum(distance[:, None], own, codes)[1][:, 0]
        missed = count_and_sum((second - distance)[:, None], own, codes)[1][:, 0]
        helped = errors.argsort(descending=True, stable=True)[:count]
        helpers = missed.argsort(stable=True)[:count]
        helpers = helpers[~torch.isin(helpers, helped)]
        tried = centres.clone()
        for helper, code in zip(helpers.tolist(), helped.tolist(), strict=False):
            tried[helper] = unit[torch.where(own == code, distance, -1).argmax()]
        tried = _rounds(unit, tried, ROUNDS_AFTER_MOVES)
        found = float(nearest(unit, tried)[1].double().sum())
        if found < error:
            centres, error = tried, found
        else:
            count //= 2
    return centres


def _two_nearest(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the nearest code of each state, and the squared distances of it and of the second: [N] each."""
    rows = max(1, PAIRS // len(codes))
    found = [squared_distances(part, codes).topk(2, largest=False) for part in z.split(rows)]
    distances = torch.cat([each.values for each in found])
    return torch.cat([each.indices[:, 0] for each in found]), distances[:, 0], distances[:, 1]


def _seeds(unit: Tensor, draws: Tensor) -> Tensor:
    """Returns which states are the seeds of k-means++: [K], each once where there are as many states."""
    count = len(unit)
    chosen = (draws[0, :1] * count).long()
    distance = squared_distances(unit, unit[chosen])[:, 0].double()
    distance[chosen] = 0
    free = torch.ones(count, dtype=torch.bool, device=unit.device)
    free[chosen] = False
    for number in range(1, len(draws)):
        total = distance.sum()
        if total > 0:
            places = torch.searchsorted(distance.cumsum(0), draws[number] * total).clamp_(max=count - 1)
            # Rounding may lead to a state that is a seed already.
            places = places[free[places]]
        if total <= 0 or not len(places):
            places = free.nonzero()[:1, 0]  # all states lie on seeds
        left = torch.minimum(distance[:, None], squared_distances(unit, unit[places]).double())
        best = left.sum(0).argmin()
        chosen = torch.cat([chosen, places[best : best + 1]])
        distance = left[:, best]
        distance[chosen[-1]] = 0
        free[chosen[-1]] = False
    return chosen
