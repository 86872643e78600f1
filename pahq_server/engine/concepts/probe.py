"""The linear probe: what it reads in states, before and after a direction is removed from each.

Multinomial logistic regression as scikit-learn defines it, of features in units of their standard deviation:
the sum of all losses + |W|^2 / 2 is smallest. The problem is convex and smooth, so that scipy's L-BFGS, which
scikit-learn calls, too, is all that is needed of a library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse.linalg import svds
from scipy.special import log_softmax

from pahq_server.core.codebooks import REMOVED, ProbedStates, ProbeStates
from pahq_server.engine.backends import EngineState

Floats: TypeAlias = NDArray[np.float64]

ITERATIONS = 200
# What random draws are for: second number of their seed.
_RANDOM, _OTHER, _START = 1, 2, 3


def probe_states(state: EngineState, operation: ProbeStates) -> ProbedStates:
    """Runs a `ProbeStates` operation; see `engine.runners`."""
    return probe(operation)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Tells labels from states.

    Args:
        centre, scale: mean and standard deviation of the features that it was fitted to: [d].
        weights, bias: of each label: [labels, d] and [labels].
    """

    centre: Floats
    scale: Floats
    weights: Floats
    bias: Floats

    @classmethod
    def fitted(cls, states: Floats, labels: NDArray[np.int32], classes: int) -> LinearProbe:
        """Fits a probe.

        Args:
            states: [n, d].
            labels: of each, from 0 to ``classes`` - 1.
            classes: how many labels there are; those without states are never told.
        """
        count, width = states.shape
        centre, spread = states.mean(0), states.std(0)
        scale = np.where(spread > 0, spread, 1.0)
        x = (states - centre) / scale
        right = np.zeros((count, classes))
        right[np.arange(count), labels] = 1
        # A label without states would get a bias of minus infinity: it gets none instead.
        missing = np.where(right.any(0), 0.0, -np.inf)

        def loss(flat: Floats) -> tuple[float, Floats]:
            w, b = flat[:-classes].reshape(classes, width), flat[-classes:]
            logs = log_softmax(x @ w.T + b + missing, axis=1)
            wrong = (np.exp(logs) - right) / count
            value = -logs[np.arange(count), labels].mean() + (w**2).sum() / (2 * count)
            return value, np.concatenate([(wrong.T @ x + w / count).ravel(), wrong.sum(0)])

        start = np.zeros(classes * width + classes)
        options = {"maxiter": ITERATIONS, "gtol": 1e-5}
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
        return cls(centre, scale, found[:-classes].reshape(classes, width), found[-classes:] + missing)

    def labels(self, states: Floats) -> NDArray[np.int32]:
        """Returns the likeliest label of each state, of equally likely ones the first."""
        logits: Floats = (states - self.centre) / self.scale @ self.weights.T + self.bias
        found: NDArray[np.int32] = logits.argmax(1).astype(np.int32)
        return found


def probe(operation: ProbeStates) -> ProbedStates:
    """Fits the probe and asks it. The result is a function of the operation alone."""
    states, held_out = operation.states.astype(np.float64), operation.held_out
    fitted_to = states[~held_out]
    found = LinearProbe.fitted(fitted_to, operation.labels[~held_out], operation.classes)
    asked = states[held_out]
    directions = _directions(operation, fitted_to)
    told = [found.labels(asked if c is None else without(asked, c)) for c in map(directions.get, REMOVED)]
    return ProbedStates(np.stack(told))


def without(states: Floats, directions: Floats) -> Floats:
    """Returns h - (h.c) c for states h and directions c of length 1, or 0: both [n, d]."""
    left: Floats = states - (states * directions).sum(1, keepdims=True) * directions
    return left


def _directions(operation: ProbeStates, fitted_to: Floats) -> dict[str, Floats]:
    """Returns what to remove from each state that is held out, by the names of `REMOVED`."""
    count, width = operation.states.shape
    held_out = operation.held_out
    codes = _unit(operation.codes.astype(np.float64))
    random = np.random.default_rng((operation.seed, _RANDOM)).normal(size=(count, width))
    steps = np.random.default_rng((operation.seed, _OTHER)).integers(1, len(codes), count)
    other = (operation.own + steps) % len(codes)
    component = principal_component(fitted_to, operation.seed)
    return {
        "code": codes[operation.own[held_out]],
        "random": _unit(random[held_out]),
        "other_code": codes[other[held_out]],
        "component": np.broadcast_to(component, (int(held_out.sum()), width)),
    }


def principal_component(states: Floats, seed: int) -> Floats:
    """Returns the direction in which states vary most: [d], of length 1; zeros where they do not vary."""
    centred = states - states.mean(0)
    if not centred.any():
        return np.zeros(states.shape[1])
    if min(centred.shape) < 3:  # too small for Lanczos iterations
        first: Floats = np.linalg.svd(centred, full_matrices=False)[2][0]
        return first
    start = np.random.default_rng((seed, _START)).normal(size=min(centred.shape))
    component: Floats = svds(centred, k=1, v0=start)[2][0]
    return component


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0)
