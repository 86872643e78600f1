"""The scheduler with runs that tests drive: turns, failures, stopping."""

from __future__ import annotations

import logging
import threading

import pytest
from helpers.fake_engine import PATIENCE_S, FakeEngine

from pahq_server.core.context import Context, current
from pahq_server.core.errors import NonFiniteMetricError, ResourceExhaustedError, ServerError

from .fake_run import FakeRun, Start


def test_a_run_gets_its_scores_and_ends_once(engine: FakeEngine, start: Start) -> None:
    run = FakeRun(engine, steps=5)
    start(run)
    assert run.wait() is None
    assert run.delivered == 5
    assert engine.open_states == {}
    assert engine.threads == {"pahq-worker"}


def test_a_run_that_needs_nothing_ends_at_once(engine: FakeEngine, start: Start) -> None:
    run = FakeRun(engine)
    run._operation = lambda: None  # type: ignore[method-assign]
    start(run)
    assert run.wait() is None
    assert run.delivered == 0
    assert engine.open_states == {}


def test_runs_take_every_step_together(engine: FakeEngine, start: Start) -> None:
    long, short = FakeRun(engine, steps=4), FakeRun(engine, steps=2)
    start(long, short)
    assert (long.wait(), short.wait()) == (None, None)
    assert [len(step) for step in engine.steps if step] == [2, 2, 1, 1]


def test_no_more_than_the_allowed_number_run_and_the_others_follow_in_order(
    engine: FakeEngine, start: Start
) -> None:
    runs = [FakeRun(engine, steps=2) for _ in range(5)]
    start(*runs, max_running=2)
    assert [run.wait() for run in runs] == [None] * 5
    assert max(map(len, engine.steps)) == 2
    assert [sessions for sessions in engine.steps if sessions] == [[0, 1], [0, 1], [2, 3], [2, 3], [4], [4]]
    assert [resolved is run.resolved for resolved, run in zip(engine.opened, runs, strict=True)] == [True] * 5


def test_a_run_that_comes_later_joins(engine: FakeEngine, start: Start) -> None:
    engine.hold()
    first, late = FakeRun(engine, steps=3), FakeRun(engine, steps=1)
    scheduler = start(first)
    engine.wait_for_call()
    scheduler.submit(late)
    assert scheduler.queued == 1
    engine.release()
    assert (first.wait(), late.wait()) == (None, None)
    assert [len(step) for step in engine.steps if step] == [1, 2, 1]


@pytest.mark.parametrize(
    "error", [NonFiniteMetricError("the metric is nan"), MemoryError("full"), KeyError("x")]
)
@pytest.mark.parametrize("place", ["open", "run"])
def test_a_failure_in_the_engine_ends_its_own_run_only(
    place: str, error: Exception, engine: FakeEngine, start: Start
) -> None:
    setattr(engine.failures["bad"], place, error)
    good, bad, other = FakeRun(engine), FakeRun(engine, model="bad"), FakeRun(engine)
    start(good, bad, other)
    assert bad.wait() is error
    assert (good.wait(), other.wait()) == (None, None)
    assert (good.delivered, bad.delivered) == (3, 0)
    assert engine.open_states == {}


def test_a_run_without_room_waits_for_the_others_and_keeps_its_place(
    engine: FakeEngine, start: Start
) -> None:
    engine.room = 2
    runs = [FakeRun(engine, steps=steps) for steps in (3, 5, 1, 1)]
    start(*runs)
    assert [run.wait() for run in runs] == [None] * 4
    assert [run.delivered for run in runs] == [3, 5, 1, 1]
    assert [resolved is run.resolved for resolved, run in zip(engine.opened, runs, strict=True)] == [True] * 4
    assert [sessions for sessions in engine.steps if sessions] == [[0, 1], [0, 1], [0, 1], [1, 2], [1, 3]]
    assert engine.open_states == {}


def test_a_run_that_waits_for_room_can_be_stopped(engine: FakeEngine, start: Start) -> None:
    engine.hold()
    engine.room = 1
    running, waiting = FakeRun(engine, steps=2), FakeRun(engine)
    start(running, waiting)
    engine.wait_for_call()
    waiting.stop_asked = True
    engine.release()
    assert (waiting.wait(), running.wait()) == (None, None)
    assert waiting.delivered == 0
    assert engine.opened == [running.resolved]


def test_a_run_that_fits_not_even_alone_fails_and_the_next_one_runs(engine: FakeEngine, start: Start) -> None:
    error = ResourceExhaustedError("too large for the abacus", 1.0)
    engine.failures["bad"].open = error
    first, large, last = FakeRun(engine, steps=2), FakeRun(engine, model="bad"), FakeRun(engine)
    start(first, large, last)
    assert large.wait() is error
    assert (first.wait(), last.wait()) == (None, None)
    assert (first.delivered, large.delivered, last.delivered) == (2, 0, 3)
    assert len(engine.opened) == 2


def test_a_run_that_runs_out_of_room_on_its_way_fails_alone(engine: FakeEngine, start: Start) -> None:
    error = engine.failures["bad"].run = ResourceExhaustedError("no beads left", 1.0)
    good, bad = FakeRun(engine), FakeRun(engine, model="bad")
    start(good, bad)
    assert bad.wait() is error
    assert (good.wait(), good.delivered) == (None, 3)
    assert engine.open_states == {}


@pytest.mark.parametrize("place", ["begin", "deliver"])
def test_a_failure_in_a_search_ends_its_own_run_only(place: str, engine: FakeEngine, start: Start) -> None:
    good, bad = FakeRun(engine), FakeRun(engine)
    if place == "begin":
        bad.breaks_at_begin = True
    else:
        bad.breaks = ZeroDivisionError()
    start(bad, good)
    assert isinstance(bad.wait(), KeyError if place == "begin" else ZeroDivisionError)
    assert good.wait() is None
    assert engine.open_states == {}


def test_a_session_that_cannot_be_closed_hurts_nobody(engine: FakeEngine, start: Start) -> None:
    engine.failures["bad"].close = OSError("stuck")
    bad, good = FakeRun(engine, steps=1, model="bad"), FakeRun(engine)
    start(bad, good)
    assert bad.wait() is None
    assert good.wait() is None


def test_a_run_that_breaks_at_its_end_hurts_nobody(engine: FakeEngine, start: Start) -> None:
    bad, good = FakeRun(engine, steps=1), FakeRun(engine)
    bad.breaks_at_end = True
    start(bad, good)
    assert bad.wait() is None
    assert good.wait() is None


def test_an_engine_that_breaks_as_a_whole_fails_what_it_was_working_on_and_goes_on(
    engine: FakeEngine, start: Start
) -> None:
    engine.hold()
    one, other = FakeRun(engine), FakeRun(engine)
    scheduler = start(one, other)
    engine.wait_for_call()
    engine.whole_call_fails = RuntimeError("no more beads")
    engine.let()
    assert one.wait() is other.wait() is engine.whole_call_fails
    engine.whole_call_fails = None
    engine.release()
    next_one = FakeRun(engine)
    scheduler.submit(next_one)
    assert next_one.wait() is None


def test_a_stopped_run_gets_nothing_more(engine: FakeEngine, start: Start) -> None:
    engine.hold()
    run, other = FakeRun(engine, steps=100), FakeRun(engine, steps=3)
    start(run, other)
    engine.wait_for_call()
    run.stop_asked = True
    engine.release()
    assert (run.wait(), other.wait()) == (None, None)
    assert (run.delivered, other.delivered) == (1, 3)
    assert engine.open_states == {}


def test_a_run_that_is_stopped_before_a_batch_takes_no_other_out_of_it(
    engine: FakeEngine, start: Start
) -> None:
    first, second, third = (FakeRun(engine, steps=2) for _ in range(3))
    asked = iter([False, False])  # as it is taken in, as it is opened
    first.stopped = lambda: next(asked, True)  # type: ignore[method-assign]
    start(first, second, third)
    assert [run.wait() for run in (first, second, third)] == [None] * 3
    assert [sessions for sessions in engine.steps if sessions] == [[1, 2], [1, 2]]


def test_a_run_that_is_stopped_while_it_waits_ends_without_its_turn(engine: FakeEngine, start: Start) -> None:
    engine.hold()
    running, waiting = FakeRun(engine, steps=1000), FakeRun(engine)
    scheduler = start(running, waiting, max_running=1)
    engine.wait_for_call()
    waiting.stop_asked = True
    engine.let()
    assert waiting.wait() is None  # while the other still runs
    assert not running.ended.is_set()
    assert (waiting.delivered, scheduler.queued) == (0, 0)
    assert engine.opened == [running.resolved]


def test_close_ends_running_and_waiting_runs(engine: FakeEngine, start: Start) -> None:
    engine.hold()
    runs = [FakeRun(engine, steps=10**9) for _ in range(3)]  # none ends by itself
    scheduler = start(*runs, max_running=1)
    engine.wait_for_call()
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    engine.release()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    for run in runs:
        error = run.wait()
        assert isinstance(error, ServerError)
        assert str(error) == "the server stopped"
    assert engine.open_states == {}


def test_after_close_a_run_ends_at_once(engine: FakeEngine, start: Start) -> None:
    scheduler = start()
    scheduler.close()
    run = FakeRun(engine)
    scheduler.submit(run)
    assert str(run.wait()) == "the server stopped"
    assert scheduler.queued == 0


def test_a_failure_is_logged_with_whose_it_is_and_a_stop_is_not(engine: FakeEngine, start: Start) -> None:
    about: list[Context] = []
    handler = logging.Handler()
    handler.emit = lambda record: about.append(current())  # type: ignore[method-assign]
    module = logging.getLogger("pahq_server.scheduler.scheduler")
    module.addHandler(handler)
    broken, endless = FakeRun(engine, user="ada"), FakeRun(engine, steps=1 << 30, user="bob")
    broken.breaks = KeyError("broken")
    scheduler = start(broken, endless)
    assert isinstance(broken.wait(), KeyError)
    scheduler.close()
    module.removeHandler(handler)
    assert [(context.user, context.job) for context in about] == [("ada", broken.name)]
    assert isinstance(endless.ends[0], ServerError)
