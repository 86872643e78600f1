"""Random batches: every part runs somewhere, and nothing takes longer than by the best way to cut it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random

import pytest

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.operations import MeasureAccuracy, ScorePasses
from pahq_server.workers.placement import HALVINGS, Bases, Load, Share, bases_of, part_of, place

SEEDS = range(400)
# Two workers with nothing to do yet.
IDLE = {0: 0.0, 1: 0.0}
GRAPH = Graph(layers=2, heads=2, kv_heads=2)


def random_bases(random: Random, passes: int) -> list[Bases]:
    """Stretches of passes with the same base circuit; some base circuits share their parent."""
    bases: list[Bases] = []
    while len(bases) < passes:
        parent, base = random.randrange(3), random.randrange(3, 9)
        bases += [(parent, base) if random.random() < 0.7 else (base,)] * random.randint(1, 20)
    return bases[:passes]


def random_batch(random: Random) -> tuple[list[Load], dict[int, float], float]:
    """Loads on at most 5 workers, whose numbers have gaps; some without known seconds or helpers."""
    workers = sorted(random.sample(range(9), random.randint(1, 5)))
    loads = []
    for _ in range(random.randint(0, 7)):
        passes = random.choice((0, 1, 1, 2, 3, 10, 60))
        helpers = random.sample(range(9), random.randint(0, 9))  # also some that take no part
        loads.append(
            Load(
                home=random.choice(workers),
                pass_s=random.choice((None, 0.0, random.uniform(0, 0.1), random.lognormvariate(-2, 2))),
                bases=random_bases(random, passes),
                base_s=random.choice((0.0, random.uniform(0, 0.2))),
                helpers=helpers,
                known={worker: random.sample(range(9), random.randint(0, 9)) for worker in workers},
            )
        )
    busy = {worker: random.choice((0.0, random.uniform(0, 1))) for worker in workers}
    return loads, busy, random.choice((0.0, 0.02, 0.5))


def seconds_of(load: Load, worker: int, first: int, last: int) -> float:
    """What passes take on a worker, one after another: each computes what the worker does not have."""
    known, seconds = set(load.known.get(worker, ())), 0.0
    for bases in load.bases[first:last]:
        seconds += (load.pass_s or 0.0) + load.base_s * len(set(bases) - known)
        known |= set(bases)
    return seconds


def ends(loads: Sequence[Load], placed: dict[int, list[Share]], busy: dict[int, float]) -> float:
    """When the last worker has done what it got."""
    sums = [
        busy[worker] + sum(seconds_of(loads[s.load], worker, s.first, s.last) for s in shares)
        for worker, shares in placed.items()
    ]
    return max(sums, default=0.0)


def at_home(loads: Sequence[Load], busy: dict[int, float]) -> float:
    sums = {load.home: busy[load.home] for load in loads}
    for load in loads:
        sums[load.home] += seconds_of(load, load.home, 0, len(load.bases))
    return max(sums.values(), default=0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_the_batch(seed: int) -> None:
    loads, busy, least_s = random_batch(Random(seed))
    placed = place(loads, busy, least_s)
    parts = [(s.load, part) for shares in placed.values() for s in shares for part in range(s.first, s.last)]
    assert sorted(parts) == [(n, part) for n, load in enumerate(loads) for part in range(len(load.bases))]
    assert placed.keys() <= busy.keys()
    for worker, shares in placed.items():
        assert [share.load for share in shares] == sorted({share.load for share in shares})
        for share in shares:
            load = loads[share.load]
            assert share.first < share.last
            assert share.seconds == pytest.approx(seconds_of(load, worker, share.first, share.last))
            if worker == load.home:
                assert share.first == 0
            else:
                assert worker in load.helpers
                assert load.pass_s
                assert share.seconds >= least_s - 1e-12
    # What is too short to be handed over alone may be left with another worker.
    assert ends(loads, placed, busy) <= at_home(loads, busy) + least_s + 1e-9
    again = place(loads, dict(reversed(busy.items())), least_s)
    assert again == placed


def best_cut(load: Load, busy: dict[int, float]) -> float:
    """When an operation ends at the earliest, by every way to cut it: home first, then who is free first."""
    helpers = sorted((w for w in load.helpers if w != load.home), key=lambda w: (busy[w], w))
    workers, passes = [load.home, *helpers], len(load.bases)
    ways = itertools.combinations_with_replacement(range(passes + 1), len(workers) - 1)
    return min(
        max(
            busy[worker] + seconds_of(load, worker, first, last)
            for worker, (first, last) in zip(workers, itertools.pairwise((0, *cuts, passes)), strict=True)
            if last > first
        )
        for cuts in ways
    )


@pytest.mark.parametrize("seed", range(200))
def test_one_operation_is_cut_as_well_as_can_be(seed: int) -> None:
    random = Random(seed)
    workers = range(random.randint(1, 4))
    load = Load(
        home=random.choice(workers),
        pass_s=random.uniform(0.1, 1),
        bases=random_bases(random, random.randint(1, 12)),
        base_s=random.choice((0.0, random.uniform(0, 3))),
        helpers=workers,
        known={worker: random.sample(range(9), random.randint(0, 9)) for worker in workers},
    )
    busy = {worker: random.choice((0.0, random.uniform(0, 3))) for worker in workers}
    found = ends([load], place([load], busy, 0.0), busy)
    assert found <= best_cut(load, busy) + at_home([load], busy) / 2**HALVINGS + 1e-9


@pytest.mark.parametrize("seed", range(200))
def test_two_workers_and_operations_of_one_pass(seed: int) -> None:
    """Beside every way to place them: whole operations move, and never so that it takes longer."""
    random = Random(seed)
    loads = [Load(0, random.uniform(0.1, 3), helpers=(1,)) for _ in range(random.randint(1, 7))]
    seconds = [load.pass_s or 0.0 for load in loads]
    best = min(
        max(sum(s for s, w in zip(seconds, way, strict=True) if w == worker) for worker in (0, 1))
        for way in itertools.product((0, 1), repeat=len(loads))
    )
    found = ends(loads, place(loads, IDLE, 0.0), IDLE)
    # One operation more than its part at most.
    assert best <= found + 1e-9
    assert found <= sum(seconds) / 2 + max(seconds)


def load_of(passes: int, seconds: float | None, helpers: Sequence[int] = (1,)) -> Load:
    return Load(0, None if seconds is None else seconds / passes, ((),) * passes, helpers=helpers)


def test_what_is_short_or_unknown_stays_at_home() -> None:
    loads = [load_of(10, 0.03), load_of(10, None)]
    assert place(loads, IDLE, 0.02) == {0: [Share(0, 0, 10), Share(1, 0, 10)]}


def test_many_workers_get_no_parts_that_are_too_short() -> None:
    placed = place([load_of(32, 0.128, range(64))], dict.fromkeys(range(64), 0.0), 0.008)
    assert sorted(share.last - share.first for (share,) in placed.values()) == [2] * 16


def test_one_pass_alone_does_not_move() -> None:
    assert place([load_of(1, 10.0)], IDLE, 0.0) == {0: [Share(0, 0, 1)]}


def test_who_has_the_base_circuit_gets_more() -> None:
    """The other computes it first, which takes as long as four passes."""
    bases = ((7,),) * 12
    load = Load(0, 1.0, bases, 4.0, (1,), {0: (), 1: (7,)})
    assert place([load], IDLE, 0.0) == {0: [Share(0, 0, 4)], 1: [Share(0, 4, 12)]}


def test_bases_are_those_of_each_pass_with_their_ancestors() -> None:
    parent = BaseCircuit(Circuit.full(GRAPH))
    child, other = BaseCircuit(Circuit.full(GRAPH), parent), BaseCircuit(Circuit.full(GRAPH))
    passes = [PatchedPass(base, (0,)) for base in (parent, child, child, other)]
    assert bases_of(passes) == [(id(parent),), *[(id(parent), id(child))] * 2, (id(other),)]
    assert bases_of([]) == []


def test_parts_put_together_are_the_operation() -> None:
    passes = [PatchedPass(BaseCircuit(Circuit.full(GRAPH)), (edge,)) for edge in range(9)]
    operation = ScorePasses(passes)
    parts = [part_of(operation, share) for share in (Share(0, 0, 2), Share(0, 2, 3), Share(0, 3, 9))]
    assert [each for part in parts for each in part.passes] == passes  # type: ignore[attr-defined]
    whole = MeasureAccuracy(True)
    assert part_of(whole, Share(0, 0, 1)) is whole
