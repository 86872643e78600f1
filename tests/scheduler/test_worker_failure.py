"""A worker that breaks, wherever it breaks: nothing waits for ever, and somebody is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from helpers.fake_engine import PATIENCE_S, FakeEngine

from pahq_server.core.errors import ServerError, WorkerFailedError
from pahq_server.core.observer import Observer
from pahq_server.scheduler.scheduler import CHECKS, Scheduler

from .fake_run import FakeRun
from .test_interactive import FakeSession

# What the worker calls, by the part that it belongs to.
CALLS = [
    *(f"_slots.{name}" for name in ("add", "next", "opened", "leave", "batch_passed", "waiting", "lines")),
    *(f"_accounts.{name}" for name in ("attend", "turn", "spend", "measured_opening", "measured_batch")),
    *(f"_notifier.{name}" for name in ("notify", "ended")),
    *(f"_sessions.{name}" for name in ("users", "collect", "waiting", "close")),
    *(f"_observer.{name}" for name in ("batch", "job_started")),
    *(f"_engine.{name}" for name in ("open", "run", "close")),
    *(f"_{name}" for name in ("_take_in", "_arrange", "_open", "_batch", "_deliver", "_advance", "_finish")),
]
ERRORS = [MemoryError("full"), RuntimeError("could not create a primitive"), SystemExit(3)]


def failed(error: Exception | None) -> bool:
    """Whether a run ended because the worker could not go on."""
    return isinstance(error, ServerError) and isinstance(error.__cause__, WorkerFailedError)


class Broken:
    """Raises at one call of a function, counted from 0, and does what the function does at all others."""

    def __init__(self, call: Callable[..., Any], error: BaseException, at: int) -> None:
        self._call, self._error, self._left = call, error, at

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if self._left == -1:
            raise self._error
        return self._call(*args, **kwargs)


def break_call(scheduler: Scheduler, path: str, error: BaseException, at: int) -> Broken:
    owner: Any = scheduler
    *parts, name = path.split(".")
    for part in parts:
        owner = getattr(owner, part)
    broken = Broken(getattr(owner, name), error, at)
    setattr(owner, name, broken)
    return broken


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("call", [path.replace("__", "_") for path in CALLS])
def test_every_run_and_session_ends_whatever_breaks(call: str, at: int, error: BaseException) -> None:
    engine, told = FakeEngine(), threading.Event()
    scheduler = Scheduler(engine, max_running=2, observer=Observer(), failed=told.set, check_pause_s=0)
    break_call(scheduler, call, error, at)
    runs = [FakeRun(engine, steps=3, user=user) for user in ("ada", "bob", "ada", "eve")]
    session = FakeSession(engine)
    session.wanted = 1
    scheduler.add_session(session)
    for run in runs:
        scheduler.submit(run)
    scheduler.start()
    ends = [run.wait() for run in runs]
    late = FakeRun(engine, steps=1)
    scheduler.submit(late)
    ends.append(late.wait())
    scheduler.close()
    session.wait_end()
    # The thread has ended: if it failed, it has told so by now.
    if not told.is_set():  # what broke concerned some jobs alone, or was never called
        assert all(end is None or end is error for end in ends)
    else:
        assert all(end is None or isinstance(end, ServerError) for end in ends)
    assert all(len(run.ends) == 1 for run in (*runs, late))
    assert len(session.ends) == 1


def test_what_comes_after_the_failure_ends_at_once() -> None:
    engine, told = FakeEngine(), threading.Event()
    scheduler = Scheduler(engine, failed=told.set)
    break_call(scheduler, "_slots.next", MemoryError("full"), 0)
    first = FakeRun(engine)
    scheduler.submit(first)
    scheduler.start()
    assert failed(first.wait())
    assert told.wait(PATIENCE_S)
    late, session = FakeRun(engine), FakeSession(engine)
    scheduler.submit(late)
    scheduler.add_session(session)
    assert late.wait() is not None
    assert session.wait_end() is not None
    scheduler.close()


def test_an_engine_that_computes_nothing_any_more_ends_the_worker_and_blames_no_job() -> None:
    engine, told = FakeEngine(), threading.Event()
    engine.whole_call_fails = RuntimeError("could not create a primitive")
    engine.broken = RuntimeError("could not create a primitive")
    scheduler = Scheduler(engine, failed=told.set, check_pause_s=0)
    runs = [FakeRun(engine), FakeRun(engine)]
    for run in runs:
        scheduler.submit(run)
    scheduler.start()
    assert [failed(run.wait()) for run in runs] == [True, True]
    assert told.wait(PATIENCE_S)
    assert engine.checks == CHECKS
    scheduler.close()


def test_an_engine_that_recovers_scores_the_same_rows_again() -> None:
    engine, told = FakeEngine(), threading.Event()
    engine.whole_call_fails = engine.broken = RuntimeError("could not create a primitive")
    check = engine.check

    def heals() -> None:
        try:
            check()
        finally:
            engine.whole_call_fails = engine.broken = None

    engine.check = heals  # type: ignore[method-assign]
    scheduler = Scheduler(engine, failed=told.set, check_pause_s=0)
    runs = [FakeRun(engine), FakeRun(engine, user="bob")]
    for run in runs:
        scheduler.submit(run)
    scheduler.start()
    assert [run.wait() for run in runs] == [None, None]
    assert [run.delivered for run in runs] == [3, 3]
    assert engine.checks == 2
    scheduler.close()
    assert not told.is_set()
    assert engine.open_states == {}


def test_a_failure_of_a_job_alone_is_its_own() -> None:
    engine, told = FakeEngine(), threading.Event()
    engine.whole_call_fails = RuntimeError("a defect of its own")
    scheduler = Scheduler(engine, failed=told.set)
    run = FakeRun(engine)
    scheduler.submit(run)
    scheduler.start()
    assert run.wait() is engine.whole_call_fails
    assert engine.checks == 1
    assert not told.is_set()
    scheduler.close()
