"""How much is speculated: chains are about as long as is best, and as short as surprises are likely."""

from __future__ import annotations

import math
import random

import pytest

from pahq_server.methods.acdc.speculation import (
    BASE_PASSES,
    BASE_S,
    BATCH_PASSES,
    BATCH_S,
    CALL_S,
    CostModel,
    GroupPredictor,
    KeepPredictor,
    SpeculationBudget,
)


def per_verdict(fixed: float, costs: list[float], risks: list[float]) -> float:
    """What a chain costs beyond its tests, per verdict that it brings, by going through all its outcomes."""
    total, verdicts = 0.0, 0.0
    for first_wrong in range(len(costs) + 1):
        right = math.prod(1 - risk for risk in risks[:first_wrong])
        chance = right * (risks[first_wrong] if first_wrong < len(costs) else 1.0)
        used = min(first_wrong + 1, len(costs))
        total += chance * (fixed + sum(costs[used:]))
        verdicts += chance * used
    return total / verdicts


def length(fixed: float, costs: list[float], risks: list[float]) -> int:
    budget, needed = SpeculationBudget(fixed), 1.0
    for count, (cost, risk) in enumerate(zip(costs, risks, strict=True)):
        if not budget.pays(cost, needed):
            return count
        budget.add(cost, needed)
        needed *= 1 - risk
    return len(costs)


@pytest.mark.parametrize("fixed", [0.05, 0.3, 2.0, 20.0])
@pytest.mark.parametrize("risk", [0.0, 0.001, 0.02, 0.2, 0.9])
def test_a_chain_of_equal_tests_has_the_best_length(fixed: float, risk: float) -> None:
    costs, risks = [1.0] * 200, [risk] * 200
    best = min(range(1, 201), key=lambda n: (per_verdict(fixed, costs[:n], risks[:n]), n))
    assert length(fixed, costs, risks) == (200 if risk == 0 else best)


def test_a_chain_ends_where_going_on_by_one_test_is_dearer() -> None:
    chance = random.Random(0)
    for _ in range(200):
        fixed, n = chance.uniform(0.05, 5), 60
        costs = [chance.choice([1.0, 1.0, 2.0, 8.0]) for _ in range(n)]
        risks = [chance.choice([0.001, 0.01, 0.5]) for _ in range(n)]
        end = length(fixed, costs, risks)
        worth = [
            per_verdict(fixed, costs[:count], risks[:count]) for count in range(1, end + 2) if count <= n
        ]
        assert worth[:end] == sorted(worth[:end], reverse=True)
        assert end == n or worth[end] >= worth[end - 1]


def test_a_probable_surprise_ends_a_chain() -> None:
    assert length(0.5, [1.0] * 5, [0.001, 0.001, 0.9, 0.001, 0.001]) == 3


@pytest.mark.parametrize("threshold", [1e-6, 0.05, 3.0, 0.0, -1.0])
def test_effects_of_senders_are_learned(threshold: float) -> None:
    predictor = KeepPredictor(threshold)
    scale, chance = abs(threshold) or 1.0, random.Random(0)
    for receiver in range(40):
        for sender in range(6):
            kept = sender == 2
            effect = math.exp(chance.gauss(2.0 if kept else -3.0, 0.5))
            predictor.decided(sender, receiver, scale * effect, kept)
    assert predictor.kept(2, 40) > 0.9
    assert all(predictor.kept(sender, 40) < 0.05 for sender in (0, 1, 3, 4, 5))
    # One that nobody knows is like all of them.
    assert 0.001 < predictor.kept(99, 40) < 0.6


def test_an_important_receiver_makes_its_next_edges_likely() -> None:
    predictor = KeepPredictor(0.1)
    for receiver in range(20):
        for sender in range(8):
            predictor.decided(sender, receiver, 0.01, False)
    before = predictor.kept(7, 21)
    for sender in range(7):
        predictor.decided(sender, 21, 0.3, True)
    assert predictor.kept(7, 21) > 10 * before
    assert before < predictor.kept(7, 22) < predictor.kept(7, 21)


@pytest.mark.parametrize("delta", [0.0, -1.0, 1e-300, 1e300, math.inf, -math.inf])
def test_any_effect_leaves_probabilities(delta: float) -> None:
    predictor = KeepPredictor(0.1)
    for receiver in range(20_000):  # all errors are zero at last
        predictor.decided(0, receiver, delta, kept=delta >= 0.1)
    likely = predictor.kept(0, 50)
    assert predictor.LEAST <= likely <= predictor.MOST
    assert (likely > 0.5) == (delta >= 0.1)


@pytest.mark.parametrize("pass_s", [1e-4, 2e-3, 0.1])
def test_the_cost_of_passes_is_measured(pass_s: float) -> None:
    costs, chance = CostModel(), random.Random(0)
    for _ in range(60):
        passes, base_circuits = chance.randint(1, 30), chance.randint(0, 2)
        worth = BATCH_PASSES + passes + BASE_PASSES * base_circuits
        costs.took(passes, base_circuits, BATCH_S + BASE_S * base_circuits + pass_s * worth)
    assert costs.cost(2, new_base=False) == 2
    assert costs.cost(1, new_base=True) == pytest.approx(1 + BASE_PASSES + BASE_S / pass_s)


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize("pass_s", [1e-3, 0.1])
def test_the_seconds_of_all_workers_are_those_of_a_pass_on_each(workers: int, pass_s: float) -> None:
    costs, chance = CostModel(lambda: workers), random.Random(0)
    batch_s = BATCH_S + CALL_S * workers
    for _ in range(60):
        costs.budget()
        passes = workers * chance.randint(1, 30)
        each = batch_s + pass_s * (BATCH_PASSES + passes / workers)
        costs.took(passes, 0, workers * each)
    costs.budget()
    assert costs.cost(1, new_base=True) == pytest.approx(1 + BASE_PASSES + BASE_S / pass_s)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("needed", [0.5, 0.9, 0.99])
def test_no_worker_is_left_idle_in_the_end(workers: int, needed: float) -> None:
    """A chain of tests ends where they are a multiple of the workers, and not before that pays."""
    budget, chance, tests = SpeculationBudget(1.0, workers), 1.0, 0
    while budget.pays(1.0, chance):
        budget.add(1.0, chance)
        chance, tests = chance * needed, tests + 1
    assert tests >= workers
    assert tests % workers == 0


def test_passes_are_counted_and_not_tests() -> None:
    budget = SpeculationBudget(0.0, at_once=4)
    budget.add(3.0, 1.0, passes=3)
    assert budget.pays(1.0, 0.01)
    budget.add(2.0, 0.5, passes=2)  # one more than fits: a round of four begins
    budget.add(3.0, 0.5, passes=3)
    assert not budget.pays(1.0, 0.01)


def test_a_clock_that_stands_still_does_no_harm() -> None:
    costs = CostModel()
    for _ in range(100):
        costs.took(1, 1, 0.0)
    assert costs.budget().pays(costs.cost(1, new_base=True), 1.0)


@pytest.mark.parametrize("threshold", [5e-324, 1e308])
@pytest.mark.parametrize("delta", [1e-300, 1.0, 1e300])
def test_effects_are_compared_with_thresholds_of_any_size(threshold: float, delta: float) -> None:
    edges, groups = KeepPredictor(threshold), GroupPredictor(threshold)
    for _ in range(50):
        edges.decided(0, 0, delta, delta >= threshold)
        groups.decided(1, 8, delta, delta >= threshold)
    assert (edges.kept(0, 0) > 0.5) == (groups.kept(1, 8, delta) > 0.5) == (delta >= threshold)
