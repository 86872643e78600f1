"""States are opened and closed, and workers die and run out of memory, while operations are under way."""

from __future__ import annotations

import threading
import time
from random import Random

import pytest
from helpers.fake_engine import OBJECTIVE, PATIENCE_S, FakeEngine
from helpers.scores import SetScore

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import UNDER_WAY, EngineStateId, Timed, Work
from pahq_server.core.errors import NoWorkerError, ResourceExhaustedError
from pahq_server.core.operations import ScorePasses
from pahq_server.workers import dispatch, states
from pahq_server.workers.messages import Call
from pahq_server.workers.pool import RemotePool

from .fake_workers import FakeHost
from .thread_cluster import Die, ThreadCluster

GRAPH = FakeEngine().graph
STEPS, ROOM = 150, 3


class Machines:
    """Workers with little memory, some of whose calls end them or find no memory."""

    def __init__(self, seed: int, size: int, kills: float, shortages: float) -> None:
        self._random, self._lock = Random(seed), threading.Lock()
        self._kills, self._shortages = kills, shortages
        self.hosts: dict[int, FakeHost] = {}
        self.cluster = ThreadCluster(size, self._make, self._fault)

    def _happens(self, chance: float) -> bool:
        with self._lock:
            return self._random.random() < chance

    def _make(self, worker: int) -> FakeHost:
        engine = FakeEngine()
        engine.room = ROOM
        right = engine.operations[ScorePasses]
        engine.operations[ScorePasses] = lambda operation: (
            MemoryError("full") if self._happens(self._shortages) else right(operation)
        )
        self.hosts[worker] = FakeHost(engine)
        return self.hosts[worker]

    def _fault(self, worker: int, number: int, call: Call) -> None:
        if self._happens(self._kills):
            raise Die("a test killed it")

    def open_states(self) -> int:
        return sum(len(host.engine.open_states) for host in self.hosts.values())


class Jobs:
    """Opens, runs and closes at random; holds that no score is wrong."""

    def __init__(self, seed: int, pool: RemotePool) -> None:
        self._random, self._pool = Random(seed), pool
        self._wanted: dict[EngineStateId, ScorePasses] = {}
        self._bases = [BaseCircuit(Circuit.full(GRAPH))]
        self._bases.append(BaseCircuit(self._bases[0].circuit.without((3,)), self._bases[0]))
        self.scored = 0

    def step(self) -> None:
        kind = self._random.random()
        if kind < 0.2 or not self._wanted:
            self._open()
        elif kind < 0.3:
            self.close(self._random.choice([*self._wanted]))
        else:
            names = [name for name in self._wanted if self._random.random() < 0.7]
            self._run(names or [next(iter(self._wanted))])

    def _open(self) -> None:
        try:
            self._wanted[self._pool.open(FakeEngine().resolve(OBJECTIVE))] = self._operation()
        except (ResourceExhaustedError, NoWorkerError):
            time.sleep(0.001)  # others go on meanwhile

    def _operation(self) -> ScorePasses:
        return ScorePasses(
            [
                PatchedPass(self._random.choice(self._bases), (self._random.randrange(GRAPH.num_edges),))
                for _ in range(self._random.choice([1, 5, 60]))
            ]
        )

    def _run(self, names: list[EngineStateId]) -> None:
        outcomes = self._pool.run([Work(name, self._wanted[name]) for name in names])
        for name, outcome in zip(names, outcomes, strict=True):
            if outcome is UNDER_WAY or isinstance(outcome, NoWorkerError):
                continue
            assert isinstance(outcome, Timed)
            found = outcome.outcome
            if not isinstance(found, (MemoryError, ResourceExhaustedError, NoWorkerError)):
                assert found == [SetScore(GRAPH, 1)(each) for each in self._wanted[name].passes]
                self._wanted[name] = self._operation()
                self.scored += 1

    def close(self, name: EngineStateId) -> None:
        self._pool.close(name)
        del self._wanted[name]

    def close_all(self) -> None:
        for name in [*self._wanted]:
            self.close(name)


@pytest.mark.parametrize("seed", range(10))
def test_no_score_is_wrong_and_nothing_stays_open(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(dispatch, "LEAST_S", 0.0)
    monkeypatch.setattr(states, "OPENINGS", 0.0)
    machines = Machines(seed, 1 + seed % 3, kills=0.03 * (seed % 2), shortages=0.1)
    pool = RemotePool(machines.cluster)
    pool.start()
    jobs = Jobs(seed, pool)
    for _ in range(STEPS):
        jobs.step()
    assert pool.unavailable() == "" or machines.cluster.losses
    assert jobs.scored > STEPS / 10
    jobs.close_all()
    until = time.monotonic() + PATIENCE_S
    while machines.open_states() and time.monotonic() < until:
        time.sleep(0.002)
    assert machines.open_states() == 0
    assert not any(member.open or member.failed or member.refused for member in pool.roster.members)
    pool.stop()
