"""Random batches: every part runs somewhere, nothing takes longer than without help, and cuts are few."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.operations import MeasureAccuracy, ScorePasses
from pahq_server.workers.placement import SNAP, Load, Share, joints_of, part_of, place

SEEDS = range(400)
# Two workers with nothing to do yet.
IDLE = {0: 0.0, 1: 0.0}
GRAPH = Graph(layers=2, heads=2, kv_heads=2)


def random_batch(random: Random) -> tuple[list[Load], list[int], float]:
    """Loads on at most 5 workers, whose numbers have gaps; some without known seconds, helpers or joints."""
    workers = sorted(random.sample(range(9), random.randint(1, 5)))
    loads = []
    for _ in range(random.randint(0, 7)):
        passes = random.choice((0, 1, 1, 2, 3, 10, 60))
        helpers = random.sample(range(9), random.randint(0, 9))  # also some that take no part
        loads.append(
            Load(
                home=random.choice(workers),
                seconds=random.choice((None, 0.0, random.uniform(0, 0.1), random.lognormvariate(0, 2))),
                passes=passes,
                joints=sorted(random.sample(range(1, max(1, passes)), random.randint(0, max(0, passes - 1)))),
                helpers=helpers,
            )
        )
    return loads, workers, random.choice((0.0, 0.02, 0.5))


def seconds_of(load: Load, share: Share) -> float:
    return (load.seconds or 0.0) * (share.last - share.first) / max(1, load.passes)


def ends(loads: Sequence[Load], placed: dict[int, list[Share]]) -> float:
    """When the last worker has done what it got."""
    sums = [sum(seconds_of(loads[s.load], s) for s in shares) for shares in placed.values()]
    return max(sums, default=0.0)


def at_home(loads: Sequence[Load]) -> float:
    sums: Counter[int] = Counter()
    for load in loads:
        sums[load.home] += load.seconds or 0.0  # type: ignore[assignment]
    return max(sums.values(), default=0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_the_batch(seed: int) -> None:
    loads, workers, least_s = random_batch(Random(seed))
    placed = place(loads, dict.fromkeys(workers, 0.0), least_s)
    parts = [(s.load, part) for shares in placed.values() for s in shares for part in range(s.first, s.last)]
    assert sorted(parts) == [(n, part) for n, load in enumerate(loads) for part in range(load.passes)]
    assert placed.keys() <= set(workers)
    for worker, shares in placed.items():
        assert [share.load for share in shares] == sorted({share.load for share in shares})
        for share in shares:
            load = loads[share.load]
            assert share.first < share.last
            if worker == load.home:
                assert share.first == 0
            else:
                assert worker in load.helpers
                assert load.seconds is not None
                assert seconds_of(load, share) >= least_s - 1e-12
    assert ends(loads, placed) <= at_home(loads) + 1e-9
    again = place(loads, dict.fromkeys(reversed(workers), 0.0), least_s)
    assert again == placed


@pytest.mark.parametrize("seed", SEEDS)
def test_many_passes_that_all_may_help_with_end_soon(seed: int) -> None:
    """The bound: a part is at most 1 + SNAP times what is wanted, and a pass is not cut."""
    random = Random(seed)
    workers = list(range(random.randint(2, 8)))
    loads = []
    for _ in range(random.randint(1, 6)):
        passes = random.randint(50, 300)
        joints = sorted(random.sample(range(1, passes), random.randint(0, passes - 1)))
        loads.append(Load(random.choice(workers), random.uniform(0.5, 5), passes, joints, workers))
    least_s = 0.001
    fair = sum(load.seconds or 0.0 for load in loads) / len(workers)
    largest = max((load.seconds or 0.0) / load.passes for load in loads)
    most = (1 + SNAP) * fair + len(workers) * max(least_s, largest)
    assert ends(loads, place(loads, dict.fromkeys(workers, 0.0), least_s)) <= most


def best_cut(passes: int, seconds: float, workers: int) -> float:
    """When one operation ends at the earliest, by every way to cut it."""
    ways = itertools.combinations_with_replacement(range(passes + 1), workers - 1)
    each = seconds / passes
    return min(max(b - a for a, b in itertools.pairwise((0, *cuts, passes))) * each for cuts in ways)


@pytest.mark.parametrize("passes", range(1, 13))
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_one_operation_is_cut_nearly_as_well_as_can_be(passes: int, workers: int) -> None:
    (load,) = loads = [Load(0, float(passes), passes, (), range(workers))]
    assert (
        ends(loads, place(loads, dict.fromkeys(range(workers), 0.0), 0.0))
        <= best_cut(passes, float(passes), workers) + 1.0
    )
    assert load.passes == passes


@pytest.mark.parametrize("seed", range(200))
def test_two_workers_and_operations_of_one_pass(seed: int) -> None:
    """Beside every way to place them: whole operations move, and never so that it takes longer."""
    random = Random(seed)
    loads = [Load(0, random.uniform(0.1, 3), 1, (), (1,)) for _ in range(random.randint(1, 7))]
    seconds = [load.seconds or 0.0 for load in loads]
    best = min(
        max(sum(s for s, w in zip(seconds, way, strict=True) if w == worker) for worker in (0, 1))
        for way in itertools.product((0, 1), repeat=len(loads))
    )
    found = ends(loads, place(loads, IDLE, 0.0))
    # One operation more than its part at most.
    assert best <= found + 1e-9
    assert found <= sum(seconds) / 2 + max(seconds)


def test_what_is_short_or_unknown_stays_at_home() -> None:
    loads = [Load(0, 0.03, 10, (), (1,)), Load(0, None, 10, (), (1,))]
    assert place(loads, IDLE, 0.02) == {0: [Share(0, 0, 10), Share(1, 0, 10)]}


def test_one_pass_alone_does_not_move() -> None:
    assert place([Load(0, 10.0, 1, (), (1,))], IDLE, 0.0) == {0: [Share(0, 0, 1)]}


@pytest.mark.parametrize("joint", range(1, 16))
def test_a_joint_nearby_is_where_it_is_cut(joint: int) -> None:
    (half,) = (s.first for s in place([Load(0, 16.0, 16, (joint,), (1,))], IDLE, 2.5)[1])
    near = abs((16 - joint) - 8) <= SNAP * 8
    assert half == (joint if near else 8)


def test_the_nearest_joint_is_taken() -> None:
    placed = place([Load(0, 100.0, 100, (40, 48, 53, 60), (1,))], IDLE, 5.0)
    assert placed[1] == [Share(0, 48, 100)]


def test_joints_are_between_passes_of_other_base_circuits_or_receivers() -> None:
    full, other = BaseCircuit(Circuit.full(GRAPH)), BaseCircuit(Circuit.full(GRAPH))
    random = np.random.default_rng(0)
    passes = [
        PatchedPass(full if random.random() < 0.5 else other, (int(edge),))
        for edge in np.sort(random.integers(GRAPH.num_edges, size=60))
    ]
    assert joints_of(passes) == [
        number
        for number in range(1, 60)
        if passes[number].base_circuit is not passes[number - 1].base_circuit
        or passes[number].promoted_receiver != passes[number - 1].promoted_receiver
    ]
    assert joints_of(passes[:1]) == joints_of([]) == []


def test_parts_put_together_are_the_operation() -> None:
    passes = [PatchedPass(BaseCircuit(Circuit.full(GRAPH)), (edge,)) for edge in range(9)]
    operation = ScorePasses(passes)
    parts = [part_of(operation, share) for share in (Share(0, 0, 2), Share(0, 2, 3), Share(0, 3, 9))]
    assert [each for part in parts for each in part.passes] == passes  # type: ignore[attr-defined]
    whole = MeasureAccuracy(True)
    assert part_of(whole, Share(0, 0, 1)) is whole
