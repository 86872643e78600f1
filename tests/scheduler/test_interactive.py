"""Interactive sessions that tests drive."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from helpers.fake_engine import OBJECTIVE, PATIENCE_S, Failures, FakeEngine

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.engine import EngineStateId, Outcome, ResolvedObjective
from pahq_server.core.errors import ServerError
from pahq_server.core.operations import Operation, ScorePasses
from pahq_server.scheduler import scheduler as module
from pahq_server.scheduler.scheduler import Scheduler

from .fake_run import FakeRun


class FakeSession:
    """Asks for as many passes as `want` says, once."""

    def __init__(self, engine: FakeEngine, model: str = "toy", user: str = "local") -> None:
        self.user = user
        self.resolved = engine.resolve(replace(OBJECTIVE, model=model))
        self.wanted = 0
        self.given_up = False
        self.breaks_at_operation: Exception | None = None
        self.breaks_at_end = False
        self.ends: list[Exception | None] = []
        self.outcomes: list[Outcome] = []
        self._news = threading.Condition()

    def want(self, scheduler: Scheduler, rows: int) -> None:
        self.wanted = rows
        scheduler.wake()

    def give_up(self, scheduler: Scheduler) -> None:
        self.given_up = True
        scheduler.wake()

    def wait_outcomes(self, count: int) -> list[Outcome]:
        self._wait(lambda: len(self.outcomes) >= count)
        return self.outcomes

    def wait_end(self) -> Exception | None:
        self._wait(lambda: bool(self.ends))
        (error,) = self.ends
        return error

    # InteractiveSession

    def waiting(self) -> bool:
        return bool(self.wanted) or self.given_up

    def released(self) -> bool:
        return self.given_up

    def next_operation(self) -> Operation | None:
        wanted, self.wanted = self.wanted, 0
        if wanted and self.breaks_at_operation is not None:
            raise self.breaks_at_operation
        passes = [PatchedPass(BaseCircuit(Circuit.full(self.resolved.graph)))] * wanted
        return ScorePasses(passes) if passes else None

    def deliver(self, outcome: Outcome) -> None:
        with self._news:
            self.outcomes.append(outcome)
            self._news.notify_all()

    def end(self, error: Exception | None) -> None:
        with self._news:
            self.ends.append(error)
            self._news.notify_all()
        if self.breaks_at_end:
            raise KeyError("end")

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(condition, PATIENCE_S), "it never came"


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.failures["bad"] = Failures()
    return engine


@pytest.fixture
def scheduler(engine: FakeEngine) -> Iterator[Scheduler]:
    scheduler = Scheduler(engine)
    scheduler.start()
    yield scheduler
    engine.release()
    scheduler.close()


def test_a_session_stays_open_between_scores(engine: FakeEngine, scheduler: Scheduler) -> None:
    session = FakeSession(engine)
    scheduler.add_session(session)
    for rows in (1, 3, 2):
        session.want(scheduler, rows)
        assert len(session.wait_outcomes(1).pop()) == rows  # type: ignore[arg-type]
    assert len(engine.opened) == len(engine.open_states) == 1
    assert engine.steps == [[0], [0], [0]]  # nothing is asked for in between
    session.give_up(scheduler)
    assert session.wait_end() is None
    assert engine.open_states == {}
    assert engine.threads == {"pahq-worker"}


def test_a_failure_ends_no_session(engine: FakeEngine, scheduler: Scheduler) -> None:
    good, bad = FakeSession(engine), FakeSession(engine, "bad")
    engine.failures["bad"].run = KeyError("x")
    good.wanted = bad.wanted = 1
    scheduler.add_session(good)
    scheduler.add_session(bad)
    assert bad.wait_outcomes(1) == [engine.failures["bad"].run]
    assert isinstance(good.wait_outcomes(1)[0], list)
    engine.failures["bad"].run = None
    bad.want(scheduler, 2)
    assert len(bad.wait_outcomes(2)[1]) == 2  # type: ignore[arg-type]


def test_rows_that_cannot_be_made_are_a_failure(engine: FakeEngine, scheduler: Scheduler) -> None:
    session = FakeSession(engine)
    session.breaks_at_operation = MemoryError("full")
    scheduler.add_session(session)
    session.want(scheduler, 1)
    assert session.wait_outcomes(1) == [session.breaks_at_operation]
    session.breaks_at_operation = None
    session.want(scheduler, 1)
    assert len(session.wait_outcomes(2)[1]) == 1  # type: ignore[arg-type]


def test_a_session_that_cannot_be_opened_ends(engine: FakeEngine, scheduler: Scheduler) -> None:
    engine.failures["bad"].open = OSError("no")
    bad, good = FakeSession(engine, "bad"), FakeSession(engine)
    bad.breaks_at_end = True
    good.wanted = 1
    scheduler.add_session(bad)
    scheduler.add_session(good)
    assert bad.wait_end() is engine.failures["bad"].open
    assert good.wait_outcomes(1)


def test_a_session_that_is_given_up_before_its_start_is_not_opened(
    engine: FakeEngine, scheduler: Scheduler
) -> None:
    session = FakeSession(engine)
    session.given_up = True
    scheduler.add_session(session)
    assert session.wait_end() is None
    assert engine.opened == []


def test_a_session_that_is_given_up_silently_is_found(
    engine: FakeEngine, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.01)
    session = FakeSession(engine)
    scheduler.add_session(session)
    session.want(scheduler, 1)
    session.wait_outcomes(1)
    session.given_up = True
    assert session.wait_end() is None


def test_a_run_waits_for_the_memory_of_sessions(
    engine: FakeEngine, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, run, stopped = FakeSession(engine), FakeRun(engine), FakeRun(engine, user="other")
    engine.room, tries, open_session = 1, list[float](), engine.open

    def counted(resolved: ResolvedObjective) -> EngineStateId:
        tries.append(time.monotonic())
        return open_session(resolved)

    scheduler.add_session(session)
    session.want(scheduler, 1)
    session.wait_outcomes(1)
    monkeypatch.setattr(engine, "open", counted)
    scheduler.submit(run)
    scheduler.submit(stopped)
    stopped.stop_asked = True
    assert stopped.wait() is None
    # The session goes on meanwhile, and nobody tries for room all the time.
    session.want(scheduler, 1)
    session.wait_outcomes(2)
    assert not run.ended.wait(2 * module.BLOCKED_TICK_S)
    assert 1 <= len(tries) <= 10
    session.give_up(scheduler)
    assert run.wait() is None
    assert (run.delivered, stopped.delivered) == (3, 0)


def test_close_ends_all_sessions(engine: FakeEngine, scheduler: Scheduler) -> None:
    engine.hold()
    session, late = FakeSession(engine), FakeSession(engine)
    session.wanted = 1
    scheduler.add_session(session)
    engine.wait_for_call()
    scheduler.add_session(late)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    engine.release()
    closing.join(PATIENCE_S)
    never = FakeSession(engine)
    scheduler.add_session(never)
    for ended in (session, late, never):
        error = ended.wait_end()
        assert isinstance(error, ServerError)
        assert str(error) == "the server stopped"
    assert engine.open_states == {}
