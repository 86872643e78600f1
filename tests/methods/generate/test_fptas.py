"""Plans are as short as promised, from no more states than the rounding allows."""

from __future__ import annotations

import math
from random import Random

import pytest
from reference.makespan import in_rounds, instance, least_makespan, most_states, refilled

from pahq_server.methods.generate import fptas
from pahq_server.methods.generate.fptas import (
    EPSILONS,
    MOST_WORK,
    epsilon_within,
    longest_first,
    lower_bound,
    plan,
)


def check_stacks(lengths: list[int], slots: int, made: fptas.Plan) -> None:
    assert len(made.stacks) == slots
    assert sorted(position for stack in made.stacks for position in stack) == list(range(len(lengths)))
    assert made.makespan == max(sum(lengths[position] for position in stack) for stack in made.stacks)
    for stack in made.stacks:
        assert [lengths[p] for p in stack] == sorted((lengths[p] for p in stack), reverse=True)


def test_plans_are_within_epsilon_of_the_best() -> None:
    generator, greedy_fails, most = Random(0), 0, 0
    for _ in range(2000):
        lengths, slots, epsilon = instance(generator)
        best = least_makespan(lengths, slots)
        made = plan(lengths, slots, epsilon)
        check_stacks(lengths, slots, made)
        assert best <= made.makespan <= (1 + epsilon) * best, (lengths, slots, epsilon)
        assert made.states <= made.state_bound
        greedy = max(sum(lengths[p] for p in stack) for stack in longest_first(lengths, slots))
        greedy_fails += greedy > (1 + epsilon) * best
        most = max(most, made.states)
    assert greedy_fails > 30, "the programme is hardly needed"
    assert most > 30


def test_the_states_are_those_of_the_rounding() -> None:
    """None is dropped, and none is kept twice."""
    generator = Random(1)
    for _ in range(200):
        lengths, slots, epsilon = instance(generator)
        rounding = fptas._rounded(lengths, slots, epsilon)
        expected = most_states(rounding.units, slots, rounding.most)
        assert plan(lengths, slots, epsilon).states == expected


def test_a_fine_rounding_finds_the_best_plan() -> None:
    for seed in range(40):
        generator = Random(seed)
        lengths = [generator.randint(1, 60) for _ in range(9)]
        assert plan(lengths, 3, 1e-3).makespan == least_makespan(lengths, 3)
    assert plan([5, 5, 4, 4, 3, 3, 3], 3, 0.05).makespan == 9


def test_epsilon_is_the_smallest_that_is_quick() -> None:
    generator = Random(2)
    for jobs, slots in ((32, 4), (64, 8), (48, 6), (5, 2), (300, 4)):
        lengths = [min(1024, int(generator.lognormvariate(5.6, 0.6))) for _ in range(jobs)]
        epsilon = epsilon_within(lengths, slots)
        work = {each: fptas._rounded(lengths, slots, each).work(slots) for each in EPSILONS}
        assert work[epsilon] <= MOST_WORK
        assert all(work[each] > MOST_WORK for each in EPSILONS if each < epsilon)
        made = plan(lengths, slots, epsilon)
        check_stacks(lengths, slots, made)
        assert made.makespan <= (1 + epsilon) * max(*lengths, sum(lengths) / slots) * (4 / 3)
        assert made.makespan >= lower_bound(lengths, slots)


def test_nothing_is_quick_enough_for_no_work() -> None:
    lengths = [7, 5, 3, 3, 2]
    assert epsilon_within(lengths, 2, most_work=0) == 1.0
    assert plan(lengths, 2, 1.0).stacks == tuple(map(tuple, longest_first(lengths, 2)))


@pytest.mark.parametrize("slots", [1, 2, 5, 40])
@pytest.mark.parametrize("lengths", [[], [0], [3], [0, 0, 0], [2, 2, 2, 2], [1e-9, 1e9, 0.5]])
def test_odd_lengths(lengths: list[float], slots: int) -> None:
    made = plan(lengths, slots, 0.1)
    assert sorted(position for stack in made.stacks for position in stack) == list(range(len(lengths)))
    assert made.makespan <= 1.1 * max([sum(lengths) / slots * 2, *lengths])
    assert 0 < epsilon_within(lengths, slots) <= 1


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_lengths_that_are_none(wrong: float) -> None:
    with pytest.raises(ValueError, match="must be finite and at least 0"):
        plan([1.0, wrong], 2, 0.1)


def test_other_arguments_that_are_wrong() -> None:
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        epsilon_within([1.0], 0)
    with pytest.raises(ValueError, match="epsilon must be above 0, got 0"):
        plan([1.0], 1, 0)


def test_the_lower_bound_holds() -> None:
    generator = Random(3)
    for _ in range(100):
        lengths, slots, _ = instance(generator)
        least = lower_bound(lengths, slots)
        order = generator.sample(range(len(lengths)), len(lengths))
        assert least <= least_makespan(lengths, slots) <= refilled(lengths, order, slots)
        assert refilled(lengths, order, slots) <= in_rounds(lengths, order, slots)
    assert lower_bound([], 3) == 0
    assert (lower_bound([9, 1, 1], 2), lower_bound([3, 3, 3], 2)) == (9, 5)
