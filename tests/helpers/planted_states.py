"""Planted concepts: states around known centres, of one layer and, rotated, of another, with noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PlantedStates:
    """Tokens whose concepts are known.

    Args:
        x, y: states of both layers: float32, [tokens, width].
        concepts: of each token: [tokens].
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32]
    concepts: NDArray[np.int64]


def planted(
    seed: int, tokens: int, width: int, concepts: int, noise: float = 0.2, size: float = 4.0
) -> PlantedStates:
    """Draws tokens of some concepts, of unequal frequency.

    Args:
        seed: of all draws.
        tokens: how many.
        width: of states.
        concepts: how many; each has a random direction.
        noise: norm of what is added to each state, as a share of ``size``.
        size: norm of the centres.
    """
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(concepts, width))
    centres *= size / np.linalg.norm(centres, axis=1, keepdims=True)
    rotation, _ = np.linalg.qr(draw.normal(size=(width, width)))
    share = draw.dirichlet(np.full(concepts, 5.0))
    own = np.concatenate([np.arange(concepts), draw.choice(concepts, tokens - concepts, p=share)])
    own = draw.permutation(own)

    def noisy(states: NDArray[np.float64]) -> NDArray[np.float32]:
        return (states + draw.normal(0, noise * size / np.sqrt(width), states.shape)).astype(np.float32)

    return PlantedStates(noisy(centres[own]), noisy(centres[own] @ rotation), own)


def adjusted_rand_index(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Says how far two partitions agree: 1 for the same, 0 for chance (Hubert and Arabie 1985)."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)

    def pairs(counts: NDArray[np.float64]) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, of_a, of_b, every = (
        pairs(table),
        pairs(table.sum(1)),
        pairs(table.sum(0)),
        len(a) * (len(a) - 1) / 2,
    )
    chance = of_a * of_b / every
    return (both - chance) / ((of_a + of_b) / 2 - chance)
