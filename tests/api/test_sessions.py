"""The life of sessions: beside jobs and each other, cancelled calls, limits, and the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from helpers.api_server import RunningServer, objective, refused, spec
from helpers.fake_engine import PATIENCE_S, FakeEngine
from helpers.scores import SetScore
from helpers.topology import edge_names
from pahq.v1 import jobs_pb2
from pahq.v1 import patching_pb2 as pb

from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.jobs.session_calls import SessionLimits
from pahq_server.scheduler import scheduler

Code = grpc.StatusCode
EDGE = "input->logits"


@pytest.fixture(autouse=True)
def _no_long_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "TICK_S", 0.01)


def opening(server: RunningServer, model: str = "toy") -> Any:
    """A call that opens a session, under way."""
    request = pb.OpenSessionRequest(objective=objective(model=model))
    return server.patching.OpenSession.future(request, timeout=PATIENCE_S)


def open_session(server: RunningServer, model: str = "toy") -> str:
    name: str = opening(server, model).result().session.name
    for _ in range(2):  # the full model, the empty circuit: a step has one pass here
        server.engine.wait_for_call()
    return name


def scoring(server: RunningServer, name: str, passes: int = 1) -> Any:
    """A call that scores circuits, under way."""
    circuit = pb.SessionCircuit(removed=pb.EdgeList(names=[EDGE]))
    request = pb.ScoreCircuitsRequest(name=name, circuits=[circuit] * passes)
    return server.patching.ScoreCircuits.future(request, timeout=PATIENCE_S)


def close(server: RunningServer, name: str) -> None:
    server.patching.CloseSession(pb.CloseSessionRequest(name=name), timeout=PATIENCE_S)


def eventually(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit, "it never came true"
        time.sleep(0.001)


def wait_queued(server: RunningServer, name: str, calls: int) -> None:
    """Until so many calls of a session wait or are worked on."""
    session = server.jobs.sessions.find(name)
    eventually(lambda: len(session._calls._calls) == calls)


def test_passes_of_sessions_and_jobs_share_their_steps(server: RunningServer, engine: FakeEngine) -> None:
    names = [open_session(server), open_session(server)]
    engine.hold()
    job = server.create(spec()).name
    engine.wait_for_call()
    calls = [scoring(server, name) for name in names]
    for name in names:
        wait_queued(server, name, 1)
    engine.let()
    engine.wait_for_call()
    assert len(engine.steps[-1]) == 3
    engine.release()
    assert [len(call.result().metrics) for call in calls] == [1, 1]
    assert server.events(job)[-1].state == jobs_pb2.JOB_STATE_SUCCEEDED


def test_sessions_need_no_turn_among_the_jobs(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    for _ in range(6):  # more than run at the same time
        server.create(spec())
    engine.wait_for_call()
    call = opening(server)
    eventually(lambda: server.jobs.sessions._sessions)
    engine.let()
    engine.wait_for_call()
    assert len(engine.steps[-1]) == 4 + 1
    engine.release()
    assert call.result().session.name


def test_a_failing_call_hurts_nobody_else(server: RunningServer, engine: FakeEngine) -> None:
    good, bad = open_session(server), open_session(server, "bad")
    engine.failures["bad"].run = NonFiniteMetricError("the metric is nan")
    engine.hold()
    job = server.create(spec()).name
    engine.wait_for_call()
    calls = [scoring(server, good), scoring(server, bad)]
    wait_queued(server, good, 1)
    wait_queued(server, bad, 1)
    engine.release()
    assert len(calls[0].result().metrics) == 1
    assert calls[1].exception().code() is Code.FAILED_PRECONDITION
    assert server.events(job)[-1].state == jobs_pb2.JOB_STATE_SUCCEEDED
    engine.failures["bad"].run = None
    assert len(scoring(server, bad).result().metrics) == 1


def test_a_cancelled_call_leaves_its_passes_undone(server: RunningServer, engine: FakeEngine) -> None:
    """Also those of a call that was begun."""
    name = open_session(server)
    engine.hold()
    begun = scoring(server, name, passes=50)
    engine.wait_for_call()
    waiting = scoring(server, name, passes=50)
    wait_queued(server, name, 2)
    last = scoring(server, name, passes=2)
    wait_queued(server, name, 3)
    begun.cancel()
    waiting.cancel()
    calls = server.jobs.sessions.find(name)._calls._calls
    eventually(lambda: [call.future.cancelled() for call in calls] == [True, True, False])
    before = len(engine.steps)
    engine.release()
    assert len(last.result().metrics) == 2
    assert len(engine.steps) == before + 2


def test_a_call_that_is_too_late_leaves_its_passes_undone(server: RunningServer, engine: FakeEngine) -> None:
    name = open_session(server)
    engine.hold()
    circuits = [pb.SessionCircuit(removed=pb.EdgeList())] * 100
    request = pb.ScoreCircuitsRequest(name=name, circuits=circuits)
    with refused() as refusal:
        server.patching.ScoreCircuits(request, timeout=0.05)
    assert refusal.code is Code.DEADLINE_EXCEEDED
    calls = server.jobs.sessions.find(name)._calls._calls
    eventually(lambda: not calls or calls[0].future.cancelled())
    engine.release()
    assert len(scoring(server, name).result().metrics) == 1
    assert len(engine.steps) <= 4


def test_an_opening_that_is_cancelled_leaves_no_session(server: RunningServer, engine: FakeEngine) -> None:
    engine.hold()
    call = opening(server)
    engine.wait_for_call()
    call.cancel()
    sessions = server.jobs.sessions
    eventually(lambda: all(session.gone for session in sessions._sessions.values()))
    engine.release()
    eventually(lambda: engine.open_states == {})


@pytest.mark.parametrize("place", ["open", "run"])
def test_a_session_that_cannot_be_opened_is_none(
    place: str, server: RunningServer, engine: FakeEngine
) -> None:
    setattr(engine.failures["bad"], place, NonFiniteMetricError("the metric is nan"))
    with refused() as refusal:
        opening(server, "bad").result()
    assert (refusal.code, refusal.message) == (Code.FAILED_PRECONDITION, "the metric is nan")
    eventually(lambda: engine.open_states == {})
    setattr(engine.failures["bad"], place, KeyError("secret"))
    with refused() as refusal:
        opening(server, "bad").result()
    assert (refusal.code, "secret" in refusal.message) == (Code.INTERNAL, False)
    eventually(lambda: engine.open_states == {})


def test_close_frees_the_session_and_fails_its_calls(server: RunningServer, engine: FakeEngine) -> None:
    name = open_session(server)
    engine.hold()
    call = scoring(server, name, passes=50)
    engine.wait_for_call()
    close(server, name)
    engine.release()
    eventually(lambda: engine.open_states == {})
    assert len(engine.steps) == 3
    with refused() as refusal:
        call.result()
    assert (refusal.code, "; it was closed" in refusal.message) == (Code.NOT_FOUND, True)
    with refused() as refusal:
        close(server, name)
    assert refusal.message == f"session {name!r} not found; it was closed"
    assert refusal.info.metadata == {"name": f"session {name!r}"}


def test_a_session_that_cannot_be_closed_hurts_nobody(server: RunningServer, engine: FakeEngine) -> None:
    engine.failures["bad"].close = OSError("stuck")
    close(server, open_session(server, "bad"))
    eventually(lambda: engine.open_states == {})
    assert len(scoring(server, open_session(server)).result().metrics) == 1


def test_the_number_of_sessions_is_limited(engine: FakeEngine) -> None:
    with RunningServer(engine, session_limits=SessionLimits(sessions=2)) as server:
        first, _ = open_session(server), open_session(server)
        with refused() as refusal:
            opening(server).result()
        assert refusal.code is Code.RESOURCE_EXHAUSTED
        assert refusal.message == "2 sessions are open already"
        assert refusal.details["RetryInfo"].retry_delay.ToSeconds() == 30
        close(server, first)
        assert open_session(server)


def test_calls_are_limited_in_size_and_number(engine: FakeEngine) -> None:
    limits = SessionLimits(circuits=3, calls=2)
    with RunningServer(engine, session_limits=limits) as server:
        name = open_session(server)
        with refused() as refusal:
            scoring(server, name, passes=4).result()
        assert refusal.violation == ("circuits", "4 are too many for one call: 3")
        engine.hold()
        calls = []
        for number in (1, 2):
            calls.append(scoring(server, name, passes=3))
            wait_queued(server, name, number)
        with refused() as refusal:
            scoring(server, name).result()
        assert refusal.code is Code.RESOURCE_EXHAUSTED
        assert refusal.details["RetryInfo"].retry_delay.ToSeconds() == 1
        engine.release()
        assert [len(call.result().metrics) for call in calls] == [3, 3]


def test_a_session_that_is_not_used_expires(engine: FakeEngine) -> None:
    with RunningServer(engine, session_limits=SessionLimits(idle_s=0.2)) as server:
        name = open_session(server)
        eventually(lambda: engine.open_states == {})  # though nobody asked
        with refused() as refusal:
            scoring(server, name).result()
        assert refusal.code is Code.NOT_FOUND
        assert refusal.message == f"session {name!r} not found; it expired after 0.2 s without a call"
        assert refusal.info.metadata == {"name": f"session {name!r}"}


def test_a_stopping_server_ends_sessions_and_calls(server: RunningServer, engine: FakeEngine) -> None:
    name = open_session(server)
    engine.hold()
    call = scoring(server, name, passes=50)
    engine.wait_for_call()
    late = opening(server)
    eventually(lambda: len(server.jobs.sessions._sessions) == 2)
    closing = threading.Thread(target=server.jobs.close)
    closing.start()
    eventually(lambda: server.jobs._scheduler._closing)
    engine.release()
    closing.join(PATIENCE_S)
    for stopped in (call, late, opening(server)):
        with refused() as refusal:
            stopped.result()
        assert (refusal.code, refusal.message) == (Code.UNAVAILABLE, "the server stopped")
    assert engine.open_states == {}
    with refused() as refusal:
        scoring(server, name).result()
    assert refusal.message == f"session {name!r} not found; the server stopped"


def test_many_sessions_at_once(server: RunningServer, engine: FakeEngine) -> None:
    """Every call gets its own answers."""
    names = [opening(server) for _ in range(10)]
    sessions = [call.result().session for call in names]
    edges, score = edge_names(engine.graph), SetScore(engine.graph, 1)
    expected: list[list[float]] = []
    calls = []
    for i, session in enumerate(sessions):
        kept = [edges[: (7 * i + j) % len(edges)] for j in range(20)]
        circuits = [pb.SessionCircuit(edges=pb.EdgeList(names=names)) for names in kept]
        request = pb.ScoreCircuitsRequest(name=session.name, circuits=circuits)
        calls.append(server.patching.ScoreCircuits.future(request, timeout=PATIENCE_S))
        expected.append([score.of_names(names) for names in kept])
    assert [list(call.result().metrics) for call in calls] == expected
    for session in sessions:
        close(server, session.name)
    eventually(lambda: engine.open_states == {})
