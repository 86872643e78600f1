"""The linear probe: against the optimum of its loss, on planted labels, and after a direction was removed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pahq_server.core.codebooks import REMOVED, ProbeStates
from pahq_server.engine.concepts.probe import LinearProbe, principal_component, probe, without

WIDTH = 24


def planted(seed: int, count: int = 400) -> ProbeStates:
    """States in which one direction alone says the label, and another, unlike it, varies most.

    The code of a state is that direction with the sign of the label; there are twenty others.
    """
    draw = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(draw.normal(size=(WIDTH, WIDTH)))
    value, loud = directions[0], directions[1]
    labels = draw.integers(0, 2, count).astype(np.int32)
    states = draw.normal(0, 0.3, (count, WIDTH))
    states -= np.outer(states @ value, value)  # nothing of it by chance
    states += np.outer(np.where(labels == 1, 2.0, -2.0) + draw.normal(0, 0.2, count), value)
    states += np.outer(draw.normal(0, 5, count), loud)
    other = draw.normal(size=(20, WIDTH))
    other -= np.outer(other @ value, value)
    codes = np.concatenate([-3 * value[None], 3 * value[None], other]).astype(np.float32)
    held_out = np.arange(count) % 5 == 0
    return ProbeStates(states.astype(np.float32), labels, labels, codes, held_out, seed, 1000, 1000)


def accuracies(operation: ProbeStates) -> dict[str, float]:
    result = probe(operation)
    operation.check(result)
    right = result.predicted == operation.labels[operation.held_out]
    return dict(zip(REMOVED, right.mean(1).tolist(), strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_without_the_planted_direction_the_probe_guesses(seed: int) -> None:
    found = accuracies(planted(seed, 1000))
    assert found["nothing"] == 1
    # 200 states: four standard errors around one half.
    assert abs(found["code"] - 0.5) < 4 * np.sqrt(0.25 / 200)
    assert min(found[name] for name in ("random", "component")) >= 0.99
    # One other code in twenty-one is the opposite of the own one.
    assert found["other_code"] > 0.9


def test_the_same_operation_gives_the_same_bits_and_seeds_change_controls_alone() -> None:
    operation = planted(1)
    first, again = probe(operation).predicted, probe(operation).predicted
    assert first.tobytes() == again.tobytes()
    noisy = replace(operation, states=operation.states + np.float32(0.0))
    other = probe(replace(noisy, seed=99)).predicted
    assert other[:2].tobytes() == first[:2].tobytes()


def losses(
    x: NDArray[np.float64], labels: NDArray[np.int32], weights: NDArray[np.float64], bias: NDArray[np.float64]
) -> float:
    """The sum of all losses + |W|^2 / 2, a state at a time."""
    total = (weights**2).sum() / 2
    for row, label in zip(x, labels.tolist(), strict=True):
        logits = weights @ row + bias
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]
    return float(total)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_weights_are_better(seed: int) -> None:
    draw = np.random.default_rng(seed)
    states, labels = draw.normal(3, 2, (60, 5)), draw.integers(0, 3, 60).astype(np.int32)
    found = LinearProbe.fitted(states, labels, 3)
    x = (states - states.mean(0)) / states.std(0)
    best = losses(x, labels, found.weights, found.bias)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(50):
            w, b = draw.normal(0, size, (3, 5)), draw.normal(0, size, 3)
            assert losses(x, labels, found.weights + w, found.bias + b) >= best - 1e-6
    expected = [int((found.weights @ row + found.bias).argmax()) for row in x]
    assert found.labels(states).tolist() == expected


def test_it_is_the_probe_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    draw = np.random.default_rng(5)
    states, labels = draw.normal(size=(200, 8)), draw.integers(0, 4, 200).astype(np.int32)
    found = LinearProbe.fitted(states, labels, 4)
    x = (states - states.mean(0)) / states.std(0)
    other = linear.LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(x, labels)
    np.testing.assert_allclose(found.weights, other.coef_, atol=1e-3)
    assert (found.labels(states) == other.predict(x)).all()


def test_labels_without_states_are_never_told() -> None:
    draw = np.random.default_rng(0)
    states, labels = draw.normal(size=(40, 4)), draw.choice([0, 2], 40).astype(np.int32)
    found = LinearProbe.fitted(states, labels, 4)
    assert set(found.labels(10 * draw.normal(size=(500, 4))).tolist()) == {0, 2}
    assert np.isfinite(found.weights).all()


def test_features_that_do_not_vary() -> None:
    draw = np.random.default_rng(0)
    states, labels = draw.normal(size=(40, 4)), draw.integers(0, 2, 40).astype(np.int32)
    states[:, 1] = 7.0
    assert np.isfinite(LinearProbe.fitted(states, labels, 2).weights).all()
    assert principal_component(np.full((10, 4), 2.0), 0).tolist() == [0.0] * 4


def test_removal_against_one_state_at_a_time() -> None:
    draw = np.random.default_rng(2)
    states, directions = draw.normal(size=(20, 6)), draw.normal(size=(20, 6))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    found = without(states, directions)
    for h, c, left in zip(states, directions, found, strict=True):
        np.testing.assert_allclose(left, h - (h @ c) * c, atol=1e-12)
        assert abs(left @ c) < 1e-12


@pytest.mark.parametrize("shape", [(50, 6), (6, 50), (2, 9), (9, 1), (300, 40)])
def test_the_component_is_that_of_the_whole_decomposition(shape: tuple[int, int]) -> None:
    states = np.random.default_rng(3).normal(4, 1, shape)
    expected = np.linalg.svd(states - states.mean(0))[2][0]
    found = principal_component(states, 0)
    assert abs(found @ expected) == pytest.approx(1, abs=1e-8)
    assert np.linalg.norm(found) == pytest.approx(1)


def test_codes_without_a_direction_remove_nothing() -> None:
    operation = planted(2)
    found = probe(replace(operation, codes=np.zeros_like(operation.codes))).predicted
    assert (found[REMOVED.index("code")] == found[0]).all()
