"""Whether the direction of a concept carries what a probe reads: before it is taken away, and after."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

# Classes of the probe: so many tokens that come next most often, and so many states of each.
CLASSES, PER_CLASS = 8, 500

Floats = NDArray[np.float32]


def chosen_rows(following: NDArray[np.int64], seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns states of the most frequent next tokens, as many of each, and their classes."""
    draw = np.random.default_rng(seed)
    tokens, counts = np.unique(following, return_counts=True)
    frequent = tokens[np.argsort(-counts, kind="stable")][:CLASSES]
    most = min(PER_CLASS, int(np.sort(counts)[::-1][: len(frequent)].min()))
    rows = [draw.choice(np.flatnonzero(following == token), most, replace=False) for token in frequent]
    order = draw.permutation(most * len(frequent))
    classes = np.repeat(np.arange(len(frequent)), most)
    return np.concatenate(rows)[order], classes[order]


def faithfulness(
    x: Floats, classes: NDArray[np.int64], codes: NDArray[np.int64], directions: Floats, seed: int = 0
) -> dict[str, float]:
    """Measures a linear probe after h' = h - (h . c) c, for the direction c of each state's own code.

    The probe learns classes from half of the states. In the other half the direction of their code is taken
    away, or that of a control: a random one, that of another code, and the first principal component.

    Args:
        x: states, [N, d].
        classes: what the probe has to tell, [N].
        codes: of each state, [N].
        directions: of all codes, [K, d]; their norms do not matter.
        seed: of what is drawn.

    Returns:
        Accuracies: ``plain``, ``own``, ``random``, ``other``, ``component``, and ``chance``.
    """
    draw, half = np.random.default_rng(seed), len(x) // 2
    mean, scale = x[:half].mean(0), x[:half].std(0) + 1e-6
    probe = LogisticRegression(max_iter=1000, C=0.1).fit((x[:half] - mean) / scale, classes[:half])
    test, truth, own = x[half:], classes[half:], codes[half:]
    used = np.unique(codes)
    others = draw.choice(used, len(own))
    others = np.where(others == own, used[(np.searchsorted(used, others) + 1) % len(used)], others)
    *_, components = np.linalg.svd(x[:half] - mean, full_matrices=False)
    by_name = {
        "own": directions[own],
        "random": draw.normal(size=test.shape),
        "other": directions[others],
        "component": np.broadcast_to(components[0], test.shape),
    }

    def accuracy(states: Floats) -> float:
        return float((probe.predict((states - mean) / scale) == truth).mean())

    found = {"plain": accuracy(test), "chance": float(np.bincount(truth).max() / len(truth))}
    return found | {name: accuracy(without(test, c)) for name, c in by_name.items()}


def without(states: Floats, directions: NDArray[np.floating]) -> Floats:
    """Returns states without their part along a direction each: h - (h . c) c with c of norm 1."""
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    c = directions / np.where(norms > 0, norms, 1)
    return (states - (states * c).sum(1, keepdims=True) * c).astype(np.float32)
