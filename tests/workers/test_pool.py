"""The pool on workers that die, hang, lie, answer late and come back."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from helpers.fake_engine import OBJECTIVE, PATIENCE_S, FakeEngine
from helpers.scores import SetScore

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import (
    UNDER_WAY,
    EngineStateId,
    Outcome,
    ResolvedObjective,
    Timed,
    Work,
    WorkerState,
)
from pahq_server.core.errors import (
    InvalidRequestError,
    NoWorkerError,
    ResourceExhaustedError,
    ServerError,
    WorkerFailedError,
)
from pahq_server.core.operations import MeasureAccuracy, ScorePasses
from pahq_server.workers import dispatch, states
from pahq_server.workers.cluster import Answer, ClusterEvent, Delayed, Lost, Ready
from pahq_server.workers.messages import Call, CheckWorker, CloseState, Opened, OpenState, Ran, RunOperations
from pahq_server.workers.pool import RemotePool
from pahq_server.workers.states import MOST_LOSSES

from .fake_workers import HARDWARE, MEMORY, Clock, FakeHost, React, ScriptedCluster, finished, info, model

GRAPH = FakeEngine().graph
FULL = ResourceExhaustedError("no room on the abacus", 1.0)
Pools = Callable[..., tuple[RemotePool, ScriptedCluster]]


@pytest.fixture
def pools() -> Iterator[Pools]:
    """Starts pools of fake workers; all of them are ready, and stopped after the test."""
    started: list[RemotePool] = []

    def start(
        size: int = 1,
        react: React = lambda worker, number, call: None,
        make: Callable[[int], FakeHost] = lambda worker: FakeHost(),
        **options: Any,
    ) -> tuple[RemotePool, ScriptedCluster]:
        cluster = ScriptedCluster(size, react, make)
        pool = RemotePool(cluster, **options)
        started.append(pool)
        pool.start()
        cluster.settle()
        return pool, cluster

    yield start
    for pool in started:
        pool.stop()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """All work is spread, however little it is."""
    monkeypatch.setattr(dispatch, "LEAST_S", 0.0)
    monkeypatch.setattr(states, "OPENINGS", 0.0)


def objective() -> ResolvedObjective:
    return FakeEngine().resolve(OBJECTIVE)


def passes(count: int, first: int = 0) -> ScorePasses:
    base = BaseCircuit(Circuit.full(GRAPH))
    return ScorePasses([PatchedPass(base, (edge % GRAPH.num_edges,)) for edge in range(first, first + count)])


def scores(operation: ScorePasses) -> list[float]:
    return [SetScore(GRAPH, 1)(each) for each in operation.passes]


def spread(pool: RemotePool, state: EngineStateId, count: int = 60) -> None:
    """Has a job measured, so that its next operation is shared."""
    assert finished(pool, [Work(state, passes(count))]) == [scores(passes(count))]


def alone(pool: RemotePool, state: EngineStateId, operation: Any = None) -> Outcome:
    (outcome,) = finished(pool, [Work(state, operation or passes(3))])
    return outcome


def ends_on(name: EngineStateId) -> Callable[[Call], bool]:
    return lambda call: isinstance(call, RunOperations) and name in dict(call.operations)


# Where things run


def test_nothing_to_run(pools: Pools) -> None:
    pool, cluster = pools(2)
    assert finished(pool, []) == []
    state = pool.open(objective())
    assert finished(pool, [Work(state, ScorePasses([]))]) == [[]]
    assert alone(pool, state) == scores(passes(3))
    assert alone(pool, state, ScorePasses([])) == []
    assert all(call.operations for _, call in cluster.of(RunOperations))  # type: ignore[union-attr]


def test_a_clock_that_stands_still_does_no_harm(pools: Pools, eager: None) -> None:
    pool, _ = pools(2, clock=Clock())
    state = pool.open(objective())
    for count in (3, 50, 1):
        assert alone(pool, state, passes(count)) == scores(passes(count))


def test_small_jobs_stay_on_one_worker_and_others_are_opened_elsewhere(pools: Pools) -> None:
    clock = Clock()

    def slow(worker: int, number: int, call: Call) -> None:
        if isinstance(call, OpenState):
            clock.now += 10.0
        if isinstance(call, RunOperations):
            clock.now += sum(len(operation.passes) for _, operation in call.operations)  # type: ignore[union-attr]

    pool, cluster = pools(3, slow, clock=clock, deadline_s=1e9)
    small, large = pool.open(objective()), pool.open(objective())
    for _ in range(2):
        assert alone(pool, small, passes(9)) == scores(passes(9))
    assert {worker for worker, _ in cluster.of(RunOperations)} == {0}
    assert alone(pool, large, passes(30)) == scores(passes(30))
    assert {worker for worker, _ in cluster.of(RunOperations)} == {0, 1}
    before = len(cluster.calls)
    assert alone(pool, large, passes(90)) == scores(passes(90))
    # It has taken more than twice what opening it takes: all three work on it now.
    work = [(w, call) for w, _, call in cluster.calls[before:] if isinstance(call, RunOperations)]
    counts = {worker: len(call.operations[0][1].passes) for worker, call in work}
    assert counts.keys() == {0, 1, 2}
    assert sum(counts.values()) == 90
    assert max(counts.values()) < 1.25 * 30
    opened = [(w, call.state) for w, _, call in cluster.calls[before:] if isinstance(call, OpenState)]
    assert sorted(opened) == [(0, large), (2, large)]
    pool.close(large)
    cluster.settle()
    assert sorted(w for w, call in cluster.of(CloseState) if call.state == large) == [0, 1, 2]
    assert [len(host.engine.open_states) for host in cluster.hosts.values()] == [1, 0, 0]


def test_what_waits_for_a_worker_goes_on_while_a_state_is_opened(pools: Pools) -> None:
    """A worker whose job has ended waits for the next `run`, which does not come before `open` returns."""
    slow: list[int] = []

    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if ends_on(first)(call):
            slow.append(number)
            return []
        if isinstance(call, OpenState) and slow:
            cluster.tell(Answer(0, slow[0], Ran([scores(passes(3))], MEMORY)))
            gone_on.extend(cluster.of(RunOperations)[-1:])
        return None

    first, gone_on = EngineStateId(-1), list[tuple[int, Call]]()
    pool, cluster = pools(2, react)
    first, quick, waits = (pool.open(objective()) for _ in range(3))
    work = [Work(first, passes(3)), Work(quick, passes(3)), Work(waits, MeasureAccuracy(False))]
    assert [outcome is UNDER_WAY for outcome in pool.run(work)] == [True, False, True]
    pool.open(objective())
    assert [(worker, ends_on(waits)(call)) for worker, call in gone_on] == [(0, True)]
    assert finished(pool, work[:1]) == [scores(passes(3))]


def test_waiting_for_a_worker_is_no_part_of_opening_a_state(pools: Pools, monkeypatch: Any) -> None:
    """Else a job would be long taken for too small to be shared."""
    monkeypatch.setattr(dispatch, "LEAST_S", 0.0)
    clock, slow = Clock(), []

    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if ends_on(long)(call):
            slow.append(number)
            return []
        if isinstance(call, OpenState) and slow:
            clock.now += 1000.0
            cluster.tell(Answer(worker, slow.pop(), Ran([None], MEMORY)))
            clock.now += 1.0
        if isinstance(call, RunOperations):
            clock.now += 3.0
        return None

    long = EngineStateId(-1)
    pool, cluster = pools(2, react, clock=clock, deadline_s=1e9)
    long, quick = pool.open(objective()), pool.open(objective())
    pool.run([Work(long, passes(3)), Work(quick, passes(3))])
    state = pool.open(objective())
    pool.close(long)
    pool.close(quick)
    assert alone(pool, state) == scores(passes(3))
    before = len(cluster.calls)
    assert alone(pool, state, passes(60)) == scores(passes(60))
    worked = {worker for worker, _, call in cluster.calls[before:] if isinstance(call, RunOperations)}
    assert worked == {0, 1}


def test_states_are_opened_where_fewest_are(pools: Pools) -> None:
    pool, cluster = pools(3)
    names = [pool.open(objective()) for _ in range(7)]
    assert [worker for worker, _ in cluster.of(OpenState)] == [0, 1, 2, 0, 1, 2, 0]
    pool.close(names[1])
    pool.open(objective())
    assert cluster.of(OpenState)[-1][0] == 1


def test_what_fails_is_the_outcome_of_that_operation_alone(pools: Pools) -> None:
    def make(worker: int) -> FakeHost:
        engine = FakeEngine()
        engine.operations[MeasureAccuracy] = lambda operation: ValueError("a defect")
        return FakeHost(engine)

    pool, _ = pools(1, make=make)
    first, second = pool.open(objective()), pool.open(objective())
    ours, theirs = finished(pool, [Work(first, MeasureAccuracy(False)), Work(second, passes(2))])
    assert isinstance(ours, ValueError)
    assert theirs == scores(passes(2))


def test_parts_with_too_many_and_too_few_scores_do_not_make_up(pools: Pools, eager: None) -> None:
    wrong = False

    def make(worker: int) -> FakeHost:
        engine = FakeEngine()
        right = engine.operations[ScorePasses]

        def measured(operation: ScorePasses) -> list[float]:
            found = [*right(operation), 0.5]  # type: ignore[misc]
            return found[: len(found) - 1 + (worker * 2 - 1) * wrong]

        engine.operations[ScorePasses] = measured
        return FakeHost(engine)

    pool, _ = pools(2, make=make)
    state = pool.open(objective())
    spread(pool, state)
    wrong = True
    outcome = alone(pool, state, passes(60))
    assert isinstance(outcome, ServerError)
    assert "scores for" in str(outcome)


def test_a_call_that_cannot_be_sent_fails_and_the_next_ones_go_on(pools: Pools) -> None:
    pool, cluster = pools(1)
    state = pool.open(objective())
    call, error = cluster.call, ValueError("a message that cannot be encoded")

    def breaks(worker: int, number: int, content: Call) -> None:
        raise error

    cluster.call = breaks  # type: ignore[method-assign]
    assert alone(pool, state) is error
    with pytest.raises(ValueError, match="cannot be encoded"):
        pool.open(objective())
    cluster.call = call  # type: ignore[method-assign]
    assert alone(pool, state) == scores(passes(3))


def test_what_a_failed_call_held_is_sent_again(pools: Pools) -> None:
    """A session that fails goes on, from the same base circuits."""
    pool, cluster = pools(1)
    state, operation = pool.open(objective()), passes(3)
    call, error = cluster.call, MemoryError("no room for the message")

    def breaks(worker: int, number: int, content: Call) -> None:
        raise error

    cluster.call = breaks  # type: ignore[method-assign]
    assert alone(pool, state, operation) is error
    cluster.call = call  # type: ignore[method-assign]
    for _ in range(2):
        assert alone(pool, state, operation) == scores(operation)


def test_a_state_that_cannot_be_sent_to_another_worker_fails_its_job_alone(pools: Pools) -> None:
    pool, cluster = pools(2)
    bad, good = (pool.open(objective()) for _ in range(2))
    cluster.lose(0)
    cluster.settle()
    call, error = cluster.call, ValueError("an objective that cannot be encoded")

    def breaks(worker: int, number: int, content: Call) -> None:
        if isinstance(content, OpenState):
            raise error
        call(worker, number, content)

    cluster.call = breaks  # type: ignore[method-assign]
    assert finished(pool, [Work(bad, passes(3)), Work(good, passes(3))]) == [error, scores(passes(3))]
    cluster.call = call  # type: ignore[method-assign]
    assert alone(pool, bad) == scores(passes(3))


# Workers that are lost


def test_what_a_lost_worker_had_runs_elsewhere_and_counts_once(pools: Pools) -> None:
    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if worker == 0 and isinstance(call, RunOperations):
            return [cluster.lost(0), cluster.started(0)]
        return None

    pool, cluster = pools(2, react)
    state = pool.open(objective())
    assert alone(pool, state) == scores(passes(3))
    assert [worker for worker, _ in cluster.of(RunOperations)] == [0, 1]
    status = pool.workers()
    assert [each.restarts for each in status] == [1, 0]
    assert [each.batches for each in status] == [0, 1]
    pool.close(state)
    cluster.settle()
    assert all(not host.engine.open_states for host in cluster.hosts.values())  # type: ignore[attr-defined]


def test_a_job_that_has_lost_its_home_goes_where_it_is_open(pools: Pools, eager: None) -> None:
    pool, cluster = pools(3)
    state = pool.open(objective())
    spread(pool, state)
    assert alone(pool, state, passes(60)) == scores(passes(60))
    assert {worker for worker, call in cluster.of(OpenState) if call.state == state} == {0, 1, 2}  # type: ignore[attr-defined]
    for worker in (1, 0):  # worker 1 comes back, and has no job at all
        cluster.lose(worker)
        cluster.ready(worker)
    cluster.settle()
    before = len(cluster.calls)
    assert alone(pool, state, passes(1)) == scores(passes(1))
    assert [(worker, type(call)) for worker, _, call in cluster.calls[before:]] == [(2, RunOperations)]


def test_no_worker_is_told_and_later_all_goes_on(pools: Pools) -> None:
    pool, cluster = pools(2)
    state = pool.open(objective())
    for worker in (0, 1):
        cluster.lose(worker, "no power")
    cluster.settle()
    calls = len(cluster.calls)
    outcome = alone(pool, state)
    assert isinstance(outcome, NoWorkerError)
    assert pool.unavailable() == str(outcome) == "no worker is ready: 2 x no power"
    with pytest.raises(NoWorkerError, match="no power"):
        pool.open(objective())
    with pytest.raises(NoWorkerError, match="no power"):
        pool.check()
    assert [status.state for status in pool.workers()] == [WorkerState.LOST] * 2
    assert [status.reason for status in pool.workers()] == ["no power"] * 2
    assert pool.memory_usage().used == 0
    assert len(cluster.calls) == calls  # nobody was asked
    cluster.ready(1)
    cluster.settle()
    assert pool.unavailable() == ""
    assert alone(pool, state) == scores(passes(3))
    pool.check()
    pool.close(state)


def test_a_state_whose_worker_is_lost_may_be_closed(pools: Pools) -> None:
    pool, cluster = pools(2)
    state = pool.open(objective())
    cluster.lose(0)
    cluster.settle()
    pool.close(state)
    assert cluster.of(CloseState) == []
    with pytest.raises(KeyError):
        pool.close(state)


def test_a_worker_lost_right_after_it_opened_a_state(pools: Pools) -> None:
    """Both events are told before the thread that waits can look."""

    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if worker == 0 and isinstance(call, OpenState):
            with pool.roster.lock:
                cluster.tell(Answer(0, number, Opened(None, MEMORY)))
                cluster.tell(cluster.lost(0))
                return []
        return None

    pool, cluster = pools(2, react)
    state = pool.open(objective())
    assert alone(pool, state) == scores(passes(3))
    assert {worker for worker, _ in cluster.of(RunOperations)} == {1}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_an_operation_that_ends_every_worker_fails_and_others_go_on(pools: Pools, size: int) -> None:
    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if ends_on(poison)(call):
            return [cluster.lost(worker, "out of memory (OOM)"), cluster.started(worker)]
        return None

    poison = EngineStateId(-1)
    pool, cluster = pools(size, react)
    good, poison, other = (pool.open(objective()) for _ in range(3))
    outcomes: dict[EngineStateId, Outcome] = {}
    while len(outcomes) < 3:
        wanted = [name for name in (poison, good, other) if name not in outcomes]
        found = finished(pool, [Work(name, passes(4)) for name in wanted])
        outcomes |= {
            name: outcome
            for name, outcome in zip(wanted, found, strict=True)
            if not isinstance(outcome, NoWorkerError)
        }
        cluster.settle()
    assert outcomes[good] == outcomes[other] == scores(passes(4))
    error = outcomes[poison]
    assert isinstance(error, ServerError)
    assert f"{MOST_LOSSES + 1} workers were lost" in str(error)
    assert "out of memory (OOM)" in str(error)
    assert sum(status.restarts for status in pool.workers()) == MOST_LOSSES + 1


@pytest.mark.parametrize("size", [1, 2])
def test_a_job_that_ends_every_worker_that_opens_it_fails(pools: Pools, size: int) -> None:
    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if isinstance(call, OpenState) and call.resolved.objective.model == "bad":
            return [cluster.lost(worker, "killed"), cluster.started(worker)]
        return None

    pool, cluster = pools(size, react)
    bad = replace(objective(), objective=replace(OBJECTIVE, model="bad"))
    good = pool.open(objective())

    def opened_in_the_end() -> None:
        for _ in range(MOST_LOSSES + 1):
            try:
                pool.open(bad)
            except NoWorkerError:
                cluster.settle()

    with pytest.raises(ServerError, match=f"{MOST_LOSSES + 1} workers were lost"):
        opened_in_the_end()
    assert sum(status.restarts for status in pool.workers()) == MOST_LOSSES + 1
    assert alone(pool, good) == scores(passes(3))


def test_losses_that_are_far_apart_blame_nobody(pools: Pools) -> None:
    lossy = False

    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        nonlocal lossy
        if lossy and isinstance(call, RunOperations):
            lossy = False
            return [cluster.lost(worker), cluster.started(worker)]
        return None

    pool, cluster = pools(1, react)
    state = pool.open(objective())
    for _ in range(2 * MOST_LOSSES):
        lossy = True
        assert isinstance(alone(pool, state), NoWorkerError)
        cluster.settle()
        assert alone(pool, state) == scores(passes(3))


def test_a_job_that_has_lost_a_worker_does_not_wait_until_others_end(pools: Pools) -> None:
    lossy = [True]

    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if isinstance(call, RunOperations) and lossy:
            lossy.clear()
            return [cluster.lost(worker), cluster.started(worker)]
        return None

    pool, cluster = pools(1, react)
    unlucky, other = (pool.open(objective()) for _ in range(2))
    assert isinstance(alone(pool, unlucky), NoWorkerError)
    cluster.settle()
    work = [Work(unlucky, passes(3)), Work(other, passes(3))]
    for _ in range(3):
        outcomes = pool.run(work)
        if outcomes[0] is not UNDER_WAY:
            break
        work[1] = Work(other, passes(3))
    assert isinstance(outcomes[0], Timed)
    assert outcomes[0].outcome == scores(passes(3))


def test_losses_are_forgotten_with_the_job(pools: Pools) -> None:
    losses, resolved = states.Losses(), objective()
    for count in (1, 2):
        losses.add(resolved)
        assert losses.of(resolved) == count
    assert losses.of(objective()) == 0
    losses.forget(resolved)
    assert losses.of(resolved) == 0
    losses.add(resolved)
    del resolved
    gc.collect()
    assert losses._counts == {}


def test_lost_twice_ready_twice_and_answers_of_nobody(pools: Pools) -> None:
    pool, cluster = pools(2)
    state = pool.open(objective())
    for event in (
        Answer(0, 999, Ran([[0.0]], MEMORY)),
        Answer(1, 0, "late"),
        Lost(0, "once"),
        Lost(0, "twice"),
        Answer(0, 1000, None),
        cluster.started(0),
        cluster.started(0),
    ):
        cluster.tell(event)
    assert [status.state for status in pool.workers()] == [WorkerState.READY] * 2
    assert alone(pool, state) == scores(passes(3))


def test_a_worker_that_starts_again_without_a_word_has_lost_its_calls(pools: Pools) -> None:
    silent = [True]

    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if isinstance(call, RunOperations) and silent.pop() if silent else False:
            return [cluster.started(worker)]
        return None

    pool, cluster = pools(1, react)
    state = pool.open(objective())
    while isinstance(outcome := alone(pool, state), NoWorkerError):
        cluster.settle()
    assert outcome == scores(passes(3))


# Workers that hang


def test_a_worker_that_hangs_is_replaced_and_its_late_answer_is_ignored(pools: Pools) -> None:
    clock, hung = Clock(), []

    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if worker == 0 and isinstance(call, RunOperations):
            hung.append(number)
            clock.now += 59.0
            cluster.tell(Answer(1, -1, None))
            assert cluster.replaced == []
            clock.now += 1.0
            return [Answer(1, -1, None)]  # of nobody: has the pool look at the clock
        if hung:
            wrong = Ran([[0.0, 0.0, 0.0]], MEMORY)
            cluster.tell(Answer(0, hung[0], wrong))
            cluster.tell(Answer(worker, hung[0], wrong))
        return None

    pool, cluster = pools(2, react, clock=clock, deadline_s=60.0)
    state = pool.open(objective())
    assert alone(pool, state) == scores(passes(3))
    assert cluster.replaced == [(0, "it did not answer for 60 s")]
    assert [status.restarts for status in pool.workers()] == [1, 0]


def test_the_deadline_is_for_each_call_by_itself(pools: Pools) -> None:
    clock = Clock()

    def react(worker: int, number: int, call: Call) -> None:
        clock.now += 50.0

    pool, cluster = pools(1, react, clock=clock, deadline_s=60.0)
    names = [pool.open(objective()) for _ in range(3)]
    for name in names:
        pool.close(name)  # not waited for: they queue before what follows
    state = pool.open(objective())
    assert alone(pool, state) == scores(passes(3))
    assert cluster.replaced == []


# Memory


def test_a_helper_without_memory_hands_its_part_home_and_is_not_tried_again(
    pools: Pools, eager: None
) -> None:
    def make(worker: int) -> FakeHost:
        engine = FakeEngine()
        if worker == 1:
            engine.failures["toy"].open = FULL
        return FakeHost(engine)

    pool, cluster = pools(2, make=make)
    state = pool.open(objective())
    spread(pool, state)
    for _ in range(3):
        assert alone(pool, state, passes(60)) == scores(passes(60))
    assert [worker for worker, _ in cluster.of(OpenState)] == [0, 1]
    pool.close(state)
    assert [worker for worker, _ in cluster.of(CloseState)] == [0]


def test_nothing_is_kept_of_a_state_that_is_closed_while_a_helper_opens_it(pools: Pools, eager: None) -> None:
    held: list[int] = []

    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if worker == 2 and isinstance(call, OpenState):
            held.append(number)
            return []
        return None

    pool, cluster = pools(3, react)
    shared, other = pool.open(objective()), pool.open(objective())
    assert alone(pool, shared, passes(3)) == scores(passes(3))
    outcomes = pool.run([Work(shared, passes(60)), Work(other, passes(3))])
    assert outcomes[0] is UNDER_WAY
    pool.close(shared)
    cluster.settle()
    cluster.tell(Answer(2, held[0], FULL))
    assert not any(member.failed for member in pool.roster.members)
    assert alone(pool, other) == scores(passes(3))


def test_a_helper_that_runs_out_of_memory_closes_the_state(pools: Pools, eager: None) -> None:
    short = [False]

    def make(worker: int) -> FakeHost:
        engine = FakeEngine()
        right = engine.operations[ScorePasses]
        engine.operations[ScorePasses] = lambda operation: (
            MemoryError("full") if worker and short[0] else right(operation)
        )
        return FakeHost(engine)

    pool, cluster = pools(2, make=make)
    state = pool.open(objective())
    spread(pool, state)
    spread(pool, state)
    short[0] = True
    assert alone(pool, state, passes(60)) == scores(passes(60))
    cluster.settle()
    assert [len(host.engine.open_states) for host in cluster.hosts.values()] == [1, 0]  # type: ignore[attr-defined]
    # Its home is lost: the one that is left is asked again, since there is none else.
    cluster.lose(0)
    cluster.settle()
    assert isinstance(alone(pool, state, passes(60)), MemoryError)
    short[0] = False
    assert alone(pool, state, passes(60)) == scores(passes(60))


def test_out_of_memory_at_home_is_the_outcome(pools: Pools) -> None:
    def make(worker: int) -> FakeHost:
        engine = FakeEngine()
        engine.operations[ScorePasses] = lambda operation: FULL
        return FakeHost(engine)

    pool, _ = pools(2, make=make)
    state = pool.open(objective())
    assert isinstance(alone(pool, state), ResourceExhaustedError)


def test_without_room_a_state_is_not_opened(pools: Pools) -> None:
    def make(worker: int) -> FakeHost:
        engine = FakeEngine()
        engine.room = 1
        return FakeHost(engine)

    pool, _ = pools(2, make=make)
    first, _ = pool.open(objective()), pool.open(objective())
    with pytest.raises(ResourceExhaustedError, match="no room on the abacus"):
        pool.open(objective())
    pool.close(first)
    assert alone(pool, pool.open(objective())) == scores(passes(3))


def test_states_of_helpers_make_room(pools: Pools, eager: None) -> None:
    def make(worker: int) -> FakeHost:
        engine = FakeEngine()
        engine.room = 1
        return FakeHost(engine)

    pool, cluster = pools(2, make=make)
    large = pool.open(objective())
    spread(pool, large)
    spread(pool, large)
    cluster.settle()
    assert [len(host.engine.open_states) for host in cluster.hosts.values()] == [1, 1]  # type: ignore[attr-defined]
    other = pool.open(objective())
    for name in (large, other, large):
        assert alone(pool, name, passes(60)) == scores(passes(60))
    homes = {worker: set(host._states) for worker, host in cluster.hosts.items()}
    assert homes == {0: {large}, 1: {other}}


def test_what_could_not_be_opened_is_tried_again(pools: Pools) -> None:
    """A session is not closed when an operation fails."""
    full = [False]

    def make(worker: int) -> FakeHost:
        engine = FakeEngine()
        engine.failures["toy"].open = FULL if full[0] else None
        return FakeHost(engine)

    pool, cluster = pools(1, make=make)
    state = pool.open(objective())
    full[0] = True
    cluster.lose(0)
    cluster.ready(0)
    cluster.settle()
    for _ in range(2):
        assert isinstance(alone(pool, state), ResourceExhaustedError)
    cluster.hosts[0].engine.failures["toy"].open = None  # type: ignore[attr-defined]
    assert alone(pool, state) == scores(passes(3))


def test_a_worker_may_run_out_of_memory_while_it_is_to_open_a_state(pools: Pools) -> None:
    held: list[int] = []

    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        if ends_on(long)(call) and not held:
            held.append(number)
            return []
        if isinstance(call, OpenState) and held:  # it waits behind what runs out of memory
            cluster.tell(Answer(worker, held[0], FULL))
        return None

    long = EngineStateId(-1)
    pool, cluster = pools(2, react)
    long, short = pool.open(objective()), pool.open(objective())
    work = [Work(long, passes(3)), Work(short, passes(3))]
    assert pool.run(work)[0] is UNDER_WAY
    third = pool.open(objective())
    assert isinstance(finished(pool, work[:1])[0], ResourceExhaustedError)
    for state in (long, short, third):
        assert alone(pool, state) == scores(passes(3))


# Checks


def test_a_check_replaces_workers_that_compute_wrongly(pools: Pools) -> None:
    broken = RuntimeError("a product of known matrices came out wrong")
    breaks = {1}

    def make(worker: int) -> FakeHost:
        engine = FakeEngine()
        engine.broken = broken if worker in breaks else None
        return FakeHost(engine)

    pool, cluster = pools(3, make=make)
    breaks.clear()
    with pytest.raises(RuntimeError, match="came out wrong"):
        pool.check()
    cluster.settle()
    assert cluster.replaced == [(1, f"it does not compute what it should: {broken}")]
    pool.check()
    assert len(cluster.of(CheckWorker)) == 6


def test_a_check_during_which_a_worker_is_lost_fails_and_replaces_none(pools: Pools) -> None:
    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        return [cluster.lost(0)] if worker == 0 and isinstance(call, CheckWorker) else None

    pool, cluster = pools(2, react)
    with pytest.raises(RuntimeError, match="was lost"):
        pool.check()
    assert cluster.replaced == []
    pool.check()


# Workers that cannot be used


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (info({**HARDWARE, "threads": "2"}, [model()]), "its threads is '2', the first worker's is '1'"),
        (info({**HARDWARE, "torch": "9"}, [model()]), "its torch is '9', the first worker's is ''"),
        (info(models=[model("bad")]), "has revision bad, the first worker's 'toy' has c0ffee"),
        (info(models=[]), "it serves 0 models, the first worker 1"),
        (info(models=[model(precisions=("fp32", "int8"))]), "is served with fp32, int8 and no text"),
        (info(models=[model(streams=True)]), "(read from files)"),
    ],
)
def test_a_worker_of_another_kind_is_refused(pools: Pools, says: Any, reason: str) -> None:
    others = {0: info(models=[model()]), 1: says}
    pool, cluster = pools(2, make=lambda worker: FakeHost(says=others[worker]))
    first, second = pool.workers()
    assert (first.state, first.reason) == (WorkerState.READY, "")
    assert second.state is WorkerState.REFUSED
    assert reason in second.reason
    assert second.hardware == says.hardware
    states = [pool.open(objective()) for _ in range(2)]
    assert [alone(pool, state) for state in states] == [scores(passes(3))] * 2
    assert {worker for worker, _, _ in cluster.calls} == {0}


def test_another_system_is_no_other_kind(pools: Pools) -> None:
    pool, _ = pools(2, make=lambda worker: FakeHost(says=info({**HARDWARE, "platform": f"attic-{worker}"})))
    assert [status.state for status in pool.workers()] == [WorkerState.READY] * 2


def test_a_worker_that_comes_back_on_other_hardware_is_refused_while_jobs_are_open(pools: Pools) -> None:
    lives = [info({**HARDWARE, "processor": "new"}), info(), info()]
    pool, cluster = pools(2, make=lambda worker: FakeHost(says=lives.pop()))
    state = pool.open(objective())
    cluster.lose(0)
    cluster.ready(0)
    cluster.settle()
    status = pool.workers()[0]
    assert (status.state, status.restarts) == (WorkerState.REFUSED, 1)
    assert alone(pool, state) == scores(passes(3))
    cluster.lose(1, "no power")
    cluster.settle()
    assert isinstance(alone(pool, state), NoWorkerError)
    assert "its processor is 'new'" in pool.unavailable()
    assert "no power" in pool.unavailable()


def test_a_worker_that_ends_again_and_again_while_it_starts_says_why(pools: Pools) -> None:
    pool, cluster = pools(1)
    for _ in range(3):
        cluster.lose(0, "no such device")
    cluster.settle()
    (status,) = pool.workers()
    assert (status.state, status.reason, status.restarts) == (WorkerState.LOST, "no such device", 3)


def test_a_worker_that_takes_long_to_start_says_why_and_was_not_lost() -> None:
    class Late(ScriptedCluster):
        def ready(self, worker: int) -> None:
            if worker == 0:
                super().ready(worker)

    cluster = Late(2)
    pool = RemotePool(cluster)
    pool.start()
    for worker in (0, 1):
        cluster.tell(Delayed(worker, "are 8 GPUs free for it?"))
    ready, late = pool.workers()
    assert (ready.state, ready.reason, ready.restarts) == (WorkerState.READY, "", 0)
    assert (late.state, late.reason, late.restarts) == (WorkerState.STARTING, "are 8 GPUs free for it?", 0)
    cluster.tell(cluster.started(1))
    assert (pool.workers()[1].state, pool.workers()[1].reason) == (WorkerState.READY, "")
    pool.stop()


def test_a_pool_without_any_worker_that_can_load_the_models_does_not_start() -> None:
    class Refuses(ScriptedCluster):
        def ready(self, worker: int) -> None:
            self._events.put(lambda: self.tell(Lost(worker, "there is no model", refused=True)))

    pool = RemotePool(Refuses(2))
    with pytest.raises(InvalidRequestError, match="there is no model"):
        pool.start()
    assert [status.state for status in pool.workers()] == [WorkerState.REFUSED] * 2
    assert [status.restarts for status in pool.workers()] == [0, 0]
    pool.stop()


# The pool as a whole


def test_memory_adds_up(pools: Pools) -> None:
    pool, cluster = pools(3)
    one, three = MEMORY, pool.memory_usage()
    assert three.page_bytes == one.page_bytes
    for name in ("pages", "used", "shared", "peak_used", "scratch_bytes", "preemptions"):
        assert getattr(three, name) == 3 * getattr(one, name)
    assert three.head_store.bytes_moved == 3 * one.head_store.bytes_moved
    cluster.lose(2)
    cluster.settle()
    assert pool.memory_usage().pages == 2 * one.pages


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("event", [Answer(7, 0, None), Ready(9, info()), Lost(-5, "x"), "nonsense"])
def test_an_event_that_breaks_the_pool_ends_what_waits_with_a_reason(pools: Pools, event: Any) -> None:
    def react(worker: int, number: int, call: Call) -> Sequence[ClusterEvent] | None:
        return [event] if isinstance(call, RunOperations) else None

    pool, cluster = pools(2, react)
    state = pool.open(objective())
    with pytest.raises(WorkerFailedError, match="the pool of workers broke"):
        alone(pool, state)
    assert "the pool of workers broke" in pool.unavailable()
    cluster.settle()  # its thread lives
    for call in (pool.check, lambda: alone(pool, state), lambda: pool.open(objective())):
        with pytest.raises(WorkerFailedError):
            call()


def test_others_may_ask_what_the_pool_does_while_it_runs(pools: Pools) -> None:
    asked = threading.Event()
    found: list[object] = []

    def ask() -> None:
        found.extend([pool.workers(), pool.unavailable(), pool.memory_usage(), pool.hardware(), pool.title])
        asked.set()

    def react(worker: int, number: int, call: Call) -> None:
        if isinstance(call, RunOperations):
            threading.Thread(target=ask, daemon=True).start()
            assert asked.wait(PATIENCE_S), "the pool was locked while it waited"

    pool, _ = pools(2, react)
    assert alone(pool, pool.open(objective())) == scores(passes(3))
    assert found[1:2] == [""]
    assert found[3:] == [HARDWARE, "abacus"]
