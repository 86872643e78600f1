"""An engine without workers: jobs keep what they have and wait, sessions are told, and all goes on later."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from helpers.fake_engine import PATIENCE_S, Failures, FakeEngine

from pahq_server.core.engine import EngineStateId, Outcome, ResolvedObjective, Work
from pahq_server.core.errors import NoWorkerError, ServerError
from pahq_server.core.observer import Observer
from pahq_server.scheduler import scheduler as module
from pahq_server.scheduler.scheduler import Scheduler

from .fake_run import FakeRun
from .test_interactive import FakeSession

GONE = NoWorkerError("no worker is ready: 2 x no power")


class Unmanned(FakeEngine):
    """Has no worker while ``gone``, and counts how often it was asked in vain.

    ``groups`` more calls of `run` have one nevertheless.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gone = False
        self.groups = 0
        self.vain: Counter[str] = Counter()
        self._asked_in_vain = threading.Condition()

    def open(self, resolved: ResolvedObjective) -> EngineStateId:
        if self.gone:
            self._in_vain("open")
        return super().open(resolved)

    def run(self, work: Sequence[Work]) -> list[Outcome]:
        if not self.gone:
            return super().run(work)
        if self.groups:
            self.groups -= 1
            return super().run(work)
        try:
            self._in_vain("run")
        except NoWorkerError as error:
            return [error] * len(work)
        raise AssertionError

    def check(self) -> None:
        super().check()
        if self.gone:
            self._in_vain("check")

    def wait_in_vain(self, call: str, count: int) -> None:
        with self._asked_in_vain:
            assert self._asked_in_vain.wait_for(lambda: self.vain[call] >= count, PATIENCE_S)

    def _in_vain(self, call: str) -> None:
        with self._asked_in_vain:
            self.vain[call] += 1
            self._asked_in_vain.notify_all()
        raise GONE


Start = Callable[..., Scheduler]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Unmanned:
    monkeypatch.setattr(module, "BLOCKED_TICK_S", 0.01)
    engine = Unmanned()
    engine.failures["other"] = Failures()
    return engine


@pytest.fixture
def start(engine: Unmanned) -> Iterator[Start]:
    """Starts a scheduler; it is closed after the test."""
    started: list[Scheduler] = []

    def starter(*runs: FakeRun, **options: Any) -> Scheduler:
        scheduler = Scheduler(engine, check_pause_s=0, **options)
        for run in runs:
            scheduler.submit(run)
        scheduler.start()
        started.append(scheduler)
        return scheduler

    yield starter
    engine.gone = False
    engine.release()
    for scheduler in started:
        scheduler.close()


def test_a_job_keeps_its_slot_and_goes_on(engine: Unmanned, start: Start) -> None:
    engine.hold()
    run = FakeRun(engine, steps=3)
    start(run)
    engine.wait_for_call()
    engine.gone = True
    engine.let()
    engine.wait_in_vain("run", 3)
    assert (run.delivered, run.ends) == (1, [])
    assert len(engine.opened) == len(engine.open_states) == 1
    engine.gone = False
    engine.release()
    assert run.wait() is None
    assert run.delivered == 3
    assert len(engine.opened) == 1


def test_jobs_that_begin_without_workers_wait(engine: Unmanned, start: Start) -> None:
    """As when the server starts again and resumes what is stored."""
    engine.gone = True
    runs = [FakeRun(engine, user=user) for user in ("ada", "bob", "ada")]
    start(*runs, max_running=2)
    engine.wait_in_vain("open", 3)
    assert not any(run.ends for run in runs)
    assert engine.opened == []
    engine.gone = False
    assert [run.wait() for run in runs] == [None] * 3
    assert [run.delivered for run in runs] == [3] * 3


@pytest.mark.parametrize("begun", [False, True])
def test_a_job_that_waits_for_workers_can_be_cancelled(engine: Unmanned, start: Start, begun: bool) -> None:
    engine.gone = not begun
    engine.hold()
    run, other = FakeRun(engine, steps=5), FakeRun(engine, user="bob")
    scheduler = start(run)
    if begun:
        engine.wait_for_call()
        engine.gone = True
        engine.let()
    engine.wait_in_vain("run" if begun else "open", 2)
    run.stop_asked = True
    assert run.wait() is None
    assert engine.open_states == {}
    engine.gone = False
    engine.release()
    scheduler.submit(other)
    assert other.wait() is None


def test_sessions_are_told_at_once_and_go_on_afterwards(engine: Unmanned, start: Start) -> None:
    scheduler = start()
    session = FakeSession(engine)
    scheduler.add_session(session)
    session.want(scheduler, 1)
    session.wait_outcomes(1)
    engine.gone = True
    session.want(scheduler, 2)
    assert session.wait_outcomes(2)[1] is GONE
    late = FakeSession(engine, user="bob")
    scheduler.add_session(late)
    assert late.wait_end() is GONE
    engine.gone = False
    session.want(scheduler, 2)
    assert len(session.wait_outcomes(3)[2]) == 2  # type: ignore[arg-type]
    assert session.ends == []


def test_a_session_behind_a_job_that_gets_no_worker_is_told(engine: Unmanned, start: Start) -> None:
    """The job's user lags, and would for ever, since nothing is charged: the turn must pass on."""
    now = [0.0]
    engine.hold()
    scheduler = start(clock=lambda: now[0], weights={"bob": 0.01})
    session = FakeSession(engine, user="bob")
    scheduler.add_session(session)
    session.want(scheduler, 1)
    engine.wait_for_call()
    now[0] += 100.0
    engine.let()
    session.wait_outcomes(1)
    scheduler.submit(FakeRun(engine, steps=3, user="ada"))
    engine.wait_for_call()
    now[0] += 1.0
    engine.gone = True
    session.wanted = 1
    engine.let()
    assert session.wait_outcomes(2)[1] is GONE
    assert engine.vain["run"] <= 10


def test_the_engine_is_not_asked_in_a_busy_loop(
    engine: Unmanned, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each job that has a slot, and once for one that wants one; then it waits."""
    monkeypatch.setattr(module, "BLOCKED_TICK_S", 3600.0)
    engine.hold()
    runs = [FakeRun(engine, steps=3, user=user) for user in ("ada", "bob")]
    scheduler = start(*runs, max_running=3)
    engine.wait_for_call()
    engine.gone = True
    session = FakeSession(engine, user="eve")
    scheduler.submit(FakeRun(engine, user="eve"))
    scheduler.add_session(session)
    engine.let()
    assert session.wait_end() is GONE
    settled = engine.vain.copy()
    for rows in range(5):
        late = FakeSession(engine, user="eve")
        scheduler.add_session(late)
        assert late.wait_end() is GONE, rows
    # Each session has the jobs looked at again, once.
    assert engine.vain["run"] - settled["run"] <= 6
    assert engine.vain["open"] - settled["open"] <= 12
    for run in runs:
        run.stop_asked = True


def test_closing_ends_jobs_that_wait_for_workers(engine: Unmanned, start: Start) -> None:
    engine.gone = True
    run = FakeRun(engine)
    scheduler = start(run)
    engine.wait_in_vain("open", 1)
    scheduler.close()
    assert isinstance(run.wait(), ServerError)
    assert scheduler.failure == ""


def test_a_batch_of_several_groups_loses_its_workers_in_the_middle(engine: Unmanned, start: Start) -> None:
    """What ran before counts; what did not is asked for again, and nothing else is."""
    engine.hold()
    weights: list[float] = []

    class Weighs(Observer):
        def batch(self, rows: float, seconds: float) -> None:
            weights.append(rows)

    runs = [FakeRun(engine, steps=2), FakeRun(engine, steps=2, model="other")]
    start(*runs, observer=Weighs())
    engine.wait_for_call()
    engine.gone, engine.groups = True, 1
    engine.let(2)
    engine.wait_in_vain("run", 3)
    assert sorted(run.delivered for run in runs) in ([0, 1], [1, 1], [1, 2])
    assert not all(run.ends for run in runs)
    engine.gone = False
    engine.release()
    assert [run.wait() for run in runs] == [None, None]
    assert [run.delivered for run in runs] == [2, 2]
    assert sum(weights) == 4  # what had no worker is not counted


def test_a_failure_whose_check_finds_no_worker_blames_no_job(engine: Unmanned, start: Start) -> None:
    engine.whole_call_fails = RuntimeError("could not create a primitive")
    check = engine.check

    def loses() -> None:
        engine.whole_call_fails, engine.gone = None, True
        check()

    engine.check = loses  # type: ignore[method-assign]
    run = FakeRun(engine)
    start(run)
    engine.wait_in_vain("check", 1)
    engine.wait_in_vain("open", 1)
    assert run.ends == []
    engine.gone = False
    assert run.wait() is None
    assert run.delivered == 3


def test_two_users_stay_fair_afterwards(engine: Unmanned, start: Start) -> None:
    engine.hold()
    runs = [FakeRun(engine, steps=40, user=user) for user in ("ada", "bob")]
    start(*runs)
    engine.wait_for_call()
    engine.gone = True
    engine.let()
    engine.wait_in_vain("run", 5)
    engine.steps.clear()
    engine.gone = False
    engine.release()
    assert [run.wait() for run in runs] == [None, None]
    asked = Counter(state for step in engine.steps for state in step)
    assert max(asked.values()) - min(asked.values()) <= 1
    assert len(engine.opened) == 2
