"""Plans for jobs of known length on a fixed number of identical slots, as short as asked for.

The plan with the least makespan is approximated by rounding (Sahni 1976, "Algorithms for scheduling
independent tasks", after Horowitz and Sahni 1976): lengths are rounded down to multiples of a unit, and a
dynamic programme over the loads of the slots keeps one state per vector of rounded loads. Only lengths above
epsilon times a lower bound need that. The others are added to the least load, longest first, which exceeds
the mean load by less than one of them (Graham 1969).

With fixed slots and epsilon the time is polynomial in the number of jobs. The states are bounded by the
rounding alone: none is dropped that could lead to the best rounded plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Loads = npt.NDArray[np.float64]
Units = npt.NDArray[np.int64]

# The finest rounding is taken whose programme touches at most so many numbers, by its bound; see
# `epsilon_within`. That is about 50 ms of one core.
MOST_WORK = 30_000_000
EPSILONS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
# Quotients that are whole numbers may come out a little less.
SLACK = 1 + 1e-9


@dataclass(frozen=True)
class Plan:
    """Which job runs in which slot.

    Args:
        stacks: per slot, the positions of its jobs in the list of lengths, the longest first.
        makespan: the largest sum of the lengths of a stack.
        states: how many states the dynamic programme kept at most.
        state_bound: what the rounding allows.
    """

    stacks: tuple[tuple[int, ...], ...]
    makespan: float
    states: int
    state_bound: int


@dataclass(frozen=True)
class _Rounding:
    """What epsilon makes of the lengths.

    Args:
        large: positions of the lengths that are planned by the programme, the longest first.
        small: those of the others, the longest first.
        units: the rounded lengths of the large ones.
        most: rounded loads above this are in no plan that is better than the longest-first one.
        bound: of the states.
    """

    large: tuple[int, ...]
    small: tuple[int, ...]
    units: tuple[int, ...]
    most: int
    bound: int

    def work(self, slots: int) -> int:
        """Bounds the numbers that the programme touches."""
        return self.bound * slots * (len(self.large) * slots + len(self.small))


def lower_bound(lengths: Sequence[int], slots: int) -> int:
    """Returns the fewest steps in which samples of these lengths can be decoded, so many at a time."""
    return max(max(lengths, default=0), -(-sum(lengths) // slots))


def longest_first(lengths: Sequence[float], slots: int) -> tuple[tuple[int, ...], ...]:
    """Returns stacks in which each job, the longest first, goes to the least load: within 4/3 of the best."""
    loads, stacks = [0.0] * slots, [[] for _ in range(slots)]  # type: ignore[var-annotated]
    for position in _decreasing(lengths):
        slot = loads.index(min(loads))
        loads[slot] += lengths[position]
        stacks[slot].append(position)
    return tuple(map(tuple, stacks))


def plan(lengths: Sequence[float], slots: int, epsilon: float) -> Plan:
    """Plans jobs so that the makespan is at most 1 + epsilon times the least one.

    A job that the programme plans loses less than a unit by rounding, and a slot has at most all of them, so
    that a best plan of rounded lengths exceeds the best one by at most epsilon times the lower bound. If the
    slot that ends last ends with a small job, then all loads were at least its own without that job: it
    exceeds the mean load by at most the same.

    Args:
        lengths: finite numbers from 0 on.
        slots: at least 1.
        epsilon: above 0.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(lengths, slots)
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon!r}")
    rounding = _rounded(lengths, slots, epsilon)
    greedy = longest_first(lengths, slots)
    stacks, states = _programme(lengths, slots, rounding)
    best = min(stacks, greedy, key=lambda each: _makespan(lengths, each))
    ordered = tuple(tuple(sorted(stack, key=lambda i: (-lengths[i], i))) for stack in best)
    return Plan(ordered, _makespan(lengths, best), states, rounding.bound)


def epsilon_within(lengths: Sequence[float], slots: int, most_work: int = MOST_WORK) -> float:
    """Returns the smallest of some epsilons for which the bound of the states promises a quick plan.

    It is 1 where no programme is quick enough: no length exceeds the lower bound, so that the plan is then
    the longest-first one. The arguments are those of `plan`, and how many numbers may be touched.
    """
    _check(lengths, slots)
    for epsilon in EPSILONS:
        if _rounded(lengths, slots, epsilon).work(slots) <= most_work:
            return epsilon
    return 1.0


def _check(lengths: Sequence[float], slots: int) -> None:
    if slots < 1:
        raise ValueError(f"slots must be at least 1, got {slots}")
    wrong = [length for length in lengths if not 0 <= length < math.inf]
    if wrong:
        raise ValueError(f"lengths must be finite and at least 0, got {wrong[0]!r}")


def _decreasing(lengths: Sequence[float]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda position: -lengths[position])


def _makespan(lengths: Sequence[float], stacks: Sequence[Sequence[int]]) -> float:
    return max(math.fsum(lengths[position] for position in stack) for stack in stacks)


def _rounded(lengths: Sequence[float], slots: int, epsilon: float) -> _Rounding:
    order = _decreasing(lengths)
    least = max([math.fsum(lengths) / slots, *(lengths[position] for position in order[:1])])
    if len(order) > slots:
        # Two of the slots + 1 longest jobs share a slot.
        least = max(least, lengths[order[slots - 1]] + lengths[order[slots]])
    count = sum(length > epsilon * least for length in lengths)
    large, small = tuple(order[:count]), tuple(order[count:])
    if not large:
        return _Rounding(large, small, (), 0, 1)
    unit = epsilon * least / count
    most = int(_makespan(lengths, longest_first(lengths, slots)) / unit * SLACK)
    units = tuple(int(lengths[position] / unit * SLACK) for position in large)
    # States are vectors of loads in increasing order whose sum is known, so that one load follows from the
    # others. Nor are there more than ways to put the jobs into unnamed slots.
    bound = min(math.comb(most + slots - 1, slots - 1), _groupings(count, slots))
    return _Rounding(large, small, units, most, bound)


def _groupings(jobs: int, slots: int) -> int:
    """Returns in how many ways so many jobs can be put into at most so many slots without names."""
    ways = [1, *([0] * slots)]
    for _ in range(jobs):
        ways = [0, *(ways[groups - 1] + groups * ways[groups] for groups in range(1, slots + 1))]
    return sum(ways)


def _programme(
    lengths: Sequence[float], slots: int, rounding: _Rounding
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """Returns the stacks of the best final state, and how many states there were at most.

    All states of a step are the rows of arrays: rounded loads in increasing order, and the true loads in the
    same order. The step's history says from which state and slot each comes, and where its slots went.
    """
    units: Units = np.zeros((1, slots), np.int64)
    loads: Loads = np.zeros((1, slots))
    history: list[tuple[Units, Units, Units]] = []
    most_states = 1
    for position, size in zip(rounding.large, rounding.units, strict=True):
        # Loads that are equal to the one before them lead to the same states.
        fresh = np.ones(units.shape, bool)
        fresh[:, 1:] = units[:, 1:] != units[:, :-1]
        fresh &= units + size <= rounding.most
        parents, chosen = np.nonzero(fresh)
        each = np.arange(len(parents))
        new_units, new_loads = units[parents], loads[parents]
        new_units[each, chosen] += size
        new_loads[each, chosen] += lengths[position]
        moved = np.argsort(new_units, axis=1, kind="stable")
        new_units = np.take_along_axis(new_units, moved, axis=1)
        new_loads = np.take_along_axis(new_loads, moved, axis=1)
        _, kept = np.unique(_names(new_units), return_index=True)
        units, loads = new_units[kept], new_loads[kept]
        history.append((parents[kept], chosen[kept], moved[kept]))
        most_states = max(most_states, len(kept))
        assert len(kept) <= rounding.bound, "more states than the rounding allows"
    return _traced(lengths, slots, rounding, loads, history), most_states


def _names(rows: Units) -> npt.NDArray[np.void]:
    """Returns one value per row, equal where rows are. All sums are equal: the last load is left out."""
    narrow = np.ascontiguousarray(rows[:, : max(1, rows.shape[1] - 1)])
    return narrow.view(np.dtype((np.void, narrow.itemsize * narrow.shape[1])))[:, 0]


def _traced(
    lengths: Sequence[float],
    slots: int,
    rounding: _Rounding,
    loads: Loads,
    history: Sequence[tuple[Units, Units, Units]],
) -> tuple[tuple[int, ...], ...]:
    """Adds the small jobs to every final state, takes the best, and goes back through its history."""
    if not len(loads):  # every plan is worse than the longest-first one
        return longest_first(lengths, slots)
    full, each = loads.copy(), np.arange(len(loads))
    added = np.empty((len(rounding.small), len(loads)), np.int64)
    for number, position in enumerate(rounding.small):
        added[number] = full.argmin(axis=1)
        full[each, added[number]] += lengths[position]
    state = int(full.max(axis=1).argmin())
    stacks: list[list[int]] = [[] for _ in range(slots)]
    for number, position in enumerate(rounding.small):
        stacks[added[number, state]].append(position)
    # Stacks are named as in the state at hand, whose slots were put in order when it was made.
    for position, (parents, chosen, moved) in zip(rounding.large[::-1], history[::-1], strict=True):
        before: list[list[int]] = [[] for _ in range(slots)]
        for slot in range(slots):
            before[int(moved[state, slot])] = stacks[slot]
        before[int(chosen[state])].append(position)
        stacks, state = before, int(parents[state])
    return tuple(map(tuple, stacks))
