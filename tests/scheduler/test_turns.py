"""Several users of one scheduler: slots, turns, charges and places. The engine takes pretended time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from helpers.fake_engine import Failures, FakeEngine

from pahq_server.core.engine import EngineStateId, Outcome, ResolvedObjective, Work
from pahq_server.core.errors import NonFiniteMetricError, ResourceExhaustedError, ServerError
from pahq_server.core.observer import Observer
from pahq_server.core.operations import Operation
from pahq_server.scheduler.scheduler import Scheduler

from .fake_run import FakeRun
from .test_interactive import FakeSession

OPENING_S, PASS_S = 0.25, 1.0


class TimedEngine(FakeEngine):
    """Opening a session and scoring a pass take pretended time; ``pass_s`` says how much, by model."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.pass_s = {"toy": PASS_S}
        self.after: Callable[[Work, Outcome], Outcome] = lambda work, outcome: outcome
        self.log: list[list[ResolvedObjective]] = []

    def clock(self) -> float:
        return self.now

    def open(self, resolved: ResolvedObjective) -> EngineStateId:
        self.now += OPENING_S
        return super().open(resolved)

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        self.log.append([self.open_states[item.state] for item in work])
        for item in work:
            self.now += self.pass_s[self.open_states[item.state].objective.model] * item.operation.weight
        return [self.after(*pair) for pair in zip(work, super().run(work), strict=True)]


class Counting(Observer):
    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.waited: list[float] = []
        self.passes, self.seconds = 0.0, 0.0

    def job_started(self, waited: float) -> None:
        self.waited.append(waited)

    def batch(self, passes: float, seconds: float) -> None:
        self.passes += passes
        self.seconds += seconds

    def preempted(self) -> None:
        self.seen["preempted"] += 1


Make = Callable[..., Scheduler]


@pytest.fixture
def engine() -> TimedEngine:
    engine = TimedEngine()
    for model in ("bad", "dear"):
        engine.failures[model] = Failures()
    engine.pass_s |= {"bad": PASS_S, "dear": 10 * PASS_S}
    return engine


@pytest.fixture
def make(engine: TimedEngine) -> Iterator[Make]:
    """Makes a scheduler with some runs queued, started; it is closed after the test."""
    made: list[Scheduler] = []

    def maker(*runs: FakeRun, **options: object) -> Scheduler:
        scheduler = Scheduler(engine, clock=engine.clock, **options)  # type: ignore[arg-type]
        for run in runs:
            scheduler.submit(run)
        scheduler.start()
        made.append(scheduler)
        return scheduler

    yield maker
    engine.release()
    for scheduler in made:
        scheduler.close()


def many(engine: FakeEngine, count: int, user: str, steps: int = 3, model: str = "toy") -> list[FakeRun]:
    return [FakeRun(engine, steps, model, user) for _ in range(count)]


def after_batches(engine: TimedEngine, batches: int) -> None:
    """Lets the engine, which is held, compute some batches; the next one is under way then."""
    engine.wait_for_call()
    for _ in range(batches):
        engine.let()
        engine.wait_for_call()


@pytest.mark.parametrize("slots", [1, 4])
def test_five_hundred_queued_jobs_do_not_delay_another_user(
    slots: int, engine: TimedEngine, make: Make
) -> None:
    engine.hold()
    observer = Counting()
    scheduler = make(*many(engine, 500, "greedy", steps=10), max_running=slots, observer=observer)
    after_batches(engine, 3)
    (mine,) = many(engine, 1, "modest", steps=1)
    scheduler.submit(mine)
    batches = len(engine.log)
    engine.release()
    assert mine.wait() is None
    first = next(number for number, parts in enumerate(engine.log) if mine.resolved in parts)
    assert first - batches <= 1  # counted from 0: one batch was under way, this is the next
    assert scheduler.queued > 490
    assert observer.seen["preempted"] == 1


def test_a_preempted_run_goes_on_where_it_was(engine: TimedEngine, make: Make) -> None:
    engine.hold()
    observer = Counting()
    long, short = FakeRun(engine, 40, user="a"), FakeRun(engine, 40, user="b")
    scheduler = make(long, max_running=1, observer=observer)
    after_batches(engine, 2)
    scheduler.submit(short)
    engine.release()
    assert (long.wait(), short.wait()) == (None, None)
    assert (long.delivered, short.delivered) == (40, 40)
    assert observer.seen["preempted"] == len(engine.opened) - 2 >= 2  # they take turns
    assert observer.waited == [OPENING_S, pytest.approx(observer.waited[1])]
    assert (len(engine.log), observer.passes) == (80, 80)  # no pass was scored twice
    assert engine.open_states == {}


def test_a_run_that_was_preempted_can_be_stopped(engine: TimedEngine, make: Make) -> None:
    engine.hold()
    first, second = FakeRun(engine, 10**9, user="a"), FakeRun(engine, 10**9, user="b")
    scheduler = make(first, max_running=1)
    after_batches(engine, 2)
    scheduler.submit(second)
    engine.let()
    engine.wait_for_call()
    assert list(engine.open_states.values()) == [second.resolved]
    first.stop_asked = True
    engine.let()
    assert first.wait() is None
    assert len(engine.opened) == 2
    second.stop_asked = True
    engine.release()
    assert second.wait() is None


def test_stopping_takes_effect_within_a_batch_for_all_that_wait(engine: TimedEngine, make: Make) -> None:
    engine.hold()
    running, *waiting = many(engine, 500, "a", steps=10**9)
    scheduler = make(running, *waiting, max_running=1)
    engine.wait_for_call()
    for run in waiting:
        run.stop_asked = True
    batches = len(engine.log)
    engine.let()
    assert [run.wait() for run in waiting] == [None] * 499
    engine.wait_for_call()
    assert len(engine.log) == batches + 1
    assert scheduler.queued == 0
    running.stop_asked = True
    engine.release()
    running.wait()


def test_all_time_is_charged_to_whose_work_it_was(engine: TimedEngine, make: Make) -> None:
    cheap, dear = many(engine, 2, "a", steps=8), many(engine, 1, "b", steps=4, model="dear")
    make(*cheap, *dear)
    assert [run.wait() for run in (*cheap, *dear)] == [None] * 3
    assert [run.charged for run in cheap] == [pytest.approx(8 * PASS_S + OPENING_S)] * 2
    # The engine sweeps models apart: no part of what the dear one takes is charged to the others.
    assert dear[0].charged == pytest.approx(40 * PASS_S + OPENING_S)
    assert sum(run.charged for run in (*cheap, *dear)) == pytest.approx(engine.now)


def test_a_user_of_dear_jobs_misses_turns(engine: TimedEngine, make: Make) -> None:
    cheap, dear = FakeRun(engine, 200, user="a"), FakeRun(engine, 200, "dear", "b")
    spent: list[float] = []
    cheap.at_end = lambda: spent.append(dear.charged)
    make(cheap, dear)
    assert cheap.wait() is None
    assert spent == [pytest.approx(cheap.charged, rel=0.15)]
    dear.stop_asked = True
    dear.wait()


def test_weights_divide_the_time(engine: TimedEngine, make: Make) -> None:
    light, heavy = FakeRun(engine, 10**9, user="a"), FakeRun(engine, 600, user="b")
    spent: list[float] = []
    heavy.at_end = lambda: spent.append(light.charged)
    make(light, heavy, weights={"b": 3.0})
    assert heavy.wait() is None
    assert heavy.charged / spent[0] == pytest.approx(3.0, rel=0.1)
    light.stop_asked = True
    light.wait()


def test_a_user_has_no_more_slots_than_allowed(engine: TimedEngine, make: Make) -> None:
    runs = many(engine, 6, "a")
    make(*runs, max_running_per_user=2)
    assert [run.wait() for run in runs] == [None] * 6
    assert max(map(len, engine.log)) == 2


def test_a_session_that_always_asks_shares_with_jobs(engine: TimedEngine, make: Make) -> None:
    class Eager(FakeSession):
        def next_operation(self) -> Operation | None:
            self.wanted = 20
            operation = super().next_operation()
            self.wanted = 20
            return operation

    engine.hold()
    eager, run = Eager(engine, user="eager"), FakeRun(engine, 100, user="a")
    eager.wanted = 20
    scheduler = make(run)
    scheduler.add_session(eager)  # type: ignore[arg-type]
    calls: list[int] = []
    run.at_end = lambda: calls.append(len(eager.outcomes))
    engine.release()
    assert run.wait() is None
    # It is one batch behind or two ahead.
    assert abs(calls[0] * 20 * PASS_S - run.charged) <= 2 * 20 * PASS_S + 2 * OPENING_S
    eager.given_up = True
    eager.wait_end()


def test_queued_runs_are_told_their_places(engine: TimedEngine, make: Make) -> None:
    engine.hold()
    mine = many(engine, 5, "a", steps=4)
    scheduler = make(*mine, max_running=1)
    engine.wait_for_call()
    assert [run.positions[-1].position for run in mine[1:]] == [1, 2, 3, 4]
    assert mine[1].positions[-1].start_s is None  # nothing is known of any pace
    assert mine[0].positions == []
    after = many(engine, 2, "b", steps=4)
    for run in after:
        scheduler.submit(run)
    engine.let()
    engine.wait_for_call()  # b has its slot now
    waiting = [*mine[1:], after[1]]
    assert sorted(run.positions[-1].position for run in waiting) == [1, 2, 3, 4, 5]
    engine.let(4)
    for _ in range(4):
        engine.wait_for_call()
    starts = [run.positions[-1].start_s for run in mine[2:]]
    assert all(start is not None for start in starts)
    assert starts == sorted(starts)  # type: ignore[type-var]
    for run in (*mine, *after):
        run.stop_asked = True
    engine.release()
    for run in (*mine, *after):
        run.wait()


@pytest.mark.parametrize(
    ("wrong", "kind", "text"),
    [
        ([], ServerError, "0 scores for 1 passes"),
        ([1.0, 2.0], ServerError, "2 scores for 1 passes"),
        ([float("nan")], NonFiniteMetricError, "not finite"),
        ([float("-inf")], NonFiniteMetricError, "not finite"),
        (KeyError("x"), KeyError, "x"),
    ],
)
def test_a_wrong_outcome_ends_its_own_run_only(
    wrong: Outcome, kind: type[Exception], text: str, engine: TimedEngine, make: Make
) -> None:
    good, bad, other = (FakeRun(engine, user=user) for user in "aba")
    engine.after = lambda work, outcome: wrong if engine.open_states[work.state] is bad.resolved else outcome
    make(good, bad, other)
    error = bad.wait()
    assert isinstance(error, kind)
    assert text in str(error)
    assert (good.wait(), other.wait()) == (None, None)
    assert (good.delivered, bad.delivered) == (3, 0)
    assert engine.open_states == {}


def test_too_few_outcomes_end_what_was_run_and_nothing_else(
    engine: TimedEngine, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.run
    monkeypatch.setattr(engine, "run", lambda work: run(work)[1:])
    runs = many(engine, 2, "a")
    scheduler = make(*runs)
    for each in runs:
        assert str(each.wait()) == "the engine gave 1 outcomes for 2 operations"
    monkeypatch.undo()
    (late,) = many(engine, 1, "a")
    scheduler.submit(late)
    assert late.wait() is None


def test_sessions_that_do_not_close_do_not_stop_preemption(engine: TimedEngine, make: Make) -> None:
    engine.hold()
    engine.failures["bad"].close = OSError("stuck")
    first, second = FakeRun(engine, 30, "bad", "a"), FakeRun(engine, 30, user="b")
    scheduler = make(first, max_running=1)
    after_batches(engine, 1)
    scheduler.submit(second)
    engine.release()
    assert (first.wait(), second.wait()) == (None, None)


def test_runs_that_fail_to_open_do_not_hold_up_others(engine: TimedEngine, make: Make) -> None:
    """Each failing try takes time: no more than a few between two batches."""
    engine.failures["bad"].open = OSError("no")
    engine.hold()
    (good,) = many(engine, 1, "good", steps=5)
    bad = many(engine, 100, "bad", model="bad")
    tried: list[int] = []
    good.at_end = lambda: tried.append(sum(run.ended.is_set() for run in bad))
    scheduler = make(good)
    engine.wait_for_call()
    for run in bad:
        scheduler.submit(run)
    engine.release()
    assert good.wait() is None
    assert tried[0] <= 5 * 16
    assert [isinstance(run.wait(), OSError) for run in bad] == [True] * 100


def test_memory_full_of_one_users_jobs_makes_room_for_another_user(engine: TimedEngine, make: Make) -> None:
    engine.hold()
    engine.room = 2
    scheduler = make(*many(engine, 50, "greedy", steps=20))
    after_batches(engine, 3)
    (mine,) = many(engine, 1, "modest")
    scheduler.submit(mine)
    batches = len(engine.log)
    engine.release()
    assert mine.wait() is None
    assert next(number for number, parts in enumerate(engine.log) if mine.resolved in parts) <= batches


def test_a_run_that_loses_its_memory_comes_back(engine: TimedEngine, make: Make) -> None:
    """Where two cannot be scored at once, each is scored while the other waits, and both end well."""

    def short(work: Work, outcome: Outcome) -> Outcome:
        return ResourceExhaustedError("no beads", 1.0) if len(engine.open_states) > 1 else outcome

    engine.after = short
    runs = [FakeRun(engine, 3, user=user) for user in "ab"]
    make(*runs)
    assert [run.wait() for run in runs] == [None, None]
    assert [run.delivered for run in runs] == [3, 3]
    assert engine.open_states == {}


@dataclass(frozen=True)
class Dear(Operation):
    """An operation that is no scoring, and costs as much as so many patched passes."""

    cost: float

    @property
    def weight(self) -> float:
        return self.cost

    def check(self, result: object) -> None:
        if result != "done":
            raise ServerError("it was not done")


def run_of(engine: TimedEngine, operation: Operation, user: str) -> FakeRun:
    run = FakeRun(engine, steps=4, user=user)
    run.deliver = lambda result: FakeRun.deliver(run, [result])  # type: ignore[method-assign]
    run._operation = lambda: operation  # type: ignore[method-assign]
    return run


def test_operations_of_one_class_run_together_and_are_charged_by_weight(
    engine: TimedEngine, make: Make
) -> None:
    engine.operations[Dear] = lambda operation: "done"
    light, heavy = run_of(engine, Dear(1.0), "a"), run_of(engine, Dear(3.0), "b")
    scoring = FakeRun(engine, steps=4, user="c")
    engine.hold()
    make(light, heavy, scoring)
    engine.release()
    assert (light.wait(), heavy.wait(), scoring.wait()) == (None, None, None)
    # A class at a time: nothing of another class is in a call of the engine.
    assert {(light.resolved, heavy.resolved), (scoring.resolved,)} == {tuple(parts) for parts in engine.log}
    assert [run.charged - OPENING_S for run in (light, heavy, scoring)] == [4.0, 12.0, 4.0]


def test_an_operation_says_what_its_results_are(engine: TimedEngine, make: Make) -> None:
    engine.operations[Dear] = lambda operation: "done" if operation.cost < 2 else "half done"
    good, bad = run_of(engine, Dear(1.0), "a"), run_of(engine, Dear(2.0), "a")
    make(good, bad)
    assert str(bad.wait()) == "it was not done"
    assert good.wait() is None


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_an_operation_that_costs_nothing_ends_its_run(weight: float, engine: TimedEngine, make: Make) -> None:
    engine.operations[Dear] = lambda operation: "done"
    good, free = run_of(engine, Dear(1.0), "a"), run_of(engine, Dear(weight), "a")
    make(good, free)
    assert "must be above 0" in str(free.wait())
    assert good.wait() is None
