"""Schedules of jobs on identical slots, slow and obvious: every assignment, every refill, every state."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Iterable, Sequence
from random import Random

import numpy as np
import numpy.typing as npt


@functools.cache
def _assignments(jobs: int, slots: int) -> npt.NDArray[np.float64]:
    """All ways to put jobs into slots, the last job into the last one; shape (ways, slots, jobs)."""
    ways = np.array([(*way, slots - 1) for way in itertools.product(range(slots), repeat=jobs - 1)])
    return (ways[:, None, :] == np.arange(slots)[None, :, None]).astype(np.float64)


def least_makespan(lengths: Sequence[float], slots: int) -> float:
    """The least makespan of all assignments; for at most 10 jobs on 3 slots."""
    return float((_assignments(len(lengths), slots) @ np.asarray(lengths, float)).max(axis=1).min())


def refilled(lengths: Sequence[int], order: Iterable[int], slots: int) -> int:
    """Steps if jobs begin in this order, each in the slot that is free first."""
    ends = [0] * slots
    for job in order:
        heapq.heappush(ends, heapq.heappop(ends) + lengths[job])
    return max(ends)


def in_rounds(lengths: Sequence[int], order: Sequence[int], slots: int) -> int:
    """Steps if so many jobs begin at a time, and the next ones when all of them have ended."""
    return sum(max(lengths[job] for job in order[at : at + slots]) for at in range(0, len(order), slots))


def most_states(units: Iterable[int], slots: int, most: int) -> int:
    """The size of the largest set of load vectors, slots without names, none above ``most``."""
    states, largest = {(0,) * slots}, 1
    for size in units:
        states = {
            tuple(sorted((*loads[:slot], loads[slot] + size, *loads[slot + 1 :])))
            for loads in states
            for slot in range(slots)
            if loads[slot] + size <= most
        }
        largest = max(largest, len(states))
    return largest


def instance(generator: Random) -> tuple[list[int], int, float]:
    """A random problem that brute force can solve: lengths of at most 10 jobs, 1 to 3 slots, and an epsilon.

    Some are those on which taking the longest first is worst (Graham 1969).
    """
    slots, epsilon = generator.randint(1, 3), generator.uniform(0.05, 0.5)
    kind = generator.choice(("uniform", "lognormal", "few", "worst"))
    if kind == "worst" and slots > 1:
        lengths = [*sorted([*range(slots + 1, 2 * slots)] * 2), *[slots] * 3]
        scale = generator.randint(1, 100)
        return [each * scale + generator.randint(0, scale // 8) for each in lengths], slots, epsilon
    jobs = generator.randint(1, 10)
    draw = {
        "uniform": lambda: generator.randint(1, 100),
        "lognormal": lambda: max(1, int(generator.lognormvariate(5.6, 0.6))),
    }.get(kind, lambda: generator.randint(3, 6))
    return [draw() for _ in range(jobs)], slots, epsilon
