"""Sessions at a time of the test's choosing, and what their service remembers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from helpers.fake_engine import GRAPH, OBJECTIVE, FakeEngine

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.errors import ConflictError, NotFoundError, QuotaExceededError, ServerError
from pahq_server.core.operations import ScorePasses
from pahq_server.jobs import sessions as module
from pahq_server.jobs.session_calls import (
    BASE_CIRCUITS_PER_BATCH,
    Call,
    CallQueue,
    Reading,
    SessionCircuit,
    SessionCircuitReader,
    SessionLimits,
)
from pahq_server.jobs.sessions import PatchingSession, SessionService
from pahq_server.scheduler.scheduler import Scheduler

LIMITS = SessionLimits(idle_s=10)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> CallQueue:
    resolved = FakeEngine().resolve(OBJECTIVE)
    return CallQueue("users/me/sessions/1", resolved, LIMITS, batch=2, clock=clock, wake=lambda: None)


def a_call(passes: int = 3) -> Call:
    return Call(iter([PatchedPass(BaseCircuit(Circuit.full(GRAPH)))] * passes), passes)


def passes_of(queue: CallQueue) -> int:
    """How many passes the queue asks for next."""
    operation = queue.next_operation()
    assert operation is None or isinstance(operation, ScorePasses)
    return 0 if operation is None else len(operation.passes)


def test_use_keeps_a_session(queue: CallQueue, clock: Clock) -> None:
    for clock.now in (9.9, 19.8, 29.7):
        queue.touch()
    clock.now = 39.6
    assert not queue.released()
    clock.now = 39.7
    assert queue.released()
    with pytest.raises(NotFoundError, match="expired after 10 s without a call"):
        queue.touch()
    clock.now = 0
    assert queue.gone  # for ever


def test_a_session_does_not_expire_under_a_call(queue: CallQueue, clock: Clock) -> None:
    call = a_call()
    queue.submit(call)
    clock.now = 1000
    assert passes_of(queue) == 2
    queue.deliver([1.0, 2.0])
    clock.now = 2000
    assert queue.waiting()
    assert not queue.released()
    assert passes_of(queue) == 1
    queue.deliver([3.0])
    assert call.future.result() == [1.0, 2.0, 3.0]
    clock.now = 2009
    assert not queue.waiting()
    clock.now = 2010
    assert queue.waiting()  # to be released


def test_a_batch_has_few_base_circuits(clock: Clock) -> None:
    """Each takes memory in the engine."""
    resolved = FakeEngine().resolve(OBJECTIVE)
    queue = CallQueue("users/me/sessions/1", resolved, LIMITS, batch=32, clock=clock, wake=lambda: None)
    full = BaseCircuit(Circuit.full(GRAPH))
    passes = [PatchedPass(full, (edge,)) for edge in range(10)] + [
        PatchedPass(BaseCircuit(Circuit.empty(GRAPH))) for _ in range(6)
    ]
    queue.submit(Call(iter(passes), len(passes)))
    steps = []
    while taken := passes_of(queue):
        steps.append(taken)
        queue.deliver([0.0] * taken)
    assert steps == [10 + BASE_CIRCUITS_PER_BATCH - 1, 3]


def test_a_failure_ends_its_call_at_once(queue: CallQueue) -> None:
    failing, next_one = a_call(), a_call(1)
    queue.submit(failing)
    queue.submit(next_one)
    queue.next_operation()
    queue.deliver(KeyError("x"))
    assert isinstance(failing.future.exception(), KeyError)
    assert passes_of(queue) == 1
    queue.deliver([0.5])
    assert next_one.future.result() == [0.5]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ServerError("the server stopped"), "the server stopped"), (KeyError("secret"), "it failed to open")],
)
def test_the_end_fails_what_waits(error: Exception, reason: str, queue: CallQueue) -> None:
    call = a_call()
    queue.submit(call)
    queue.end(error)
    assert call.future.exception() is error
    assert queue.gone == reason
    with pytest.raises(NotFoundError, match=reason):
        queue.submit(a_call())


def test_two_commits_at_the_same_time(queue: CallQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    session = PatchingSession("users/me/sessions/1", queue, LIMITS)
    cut = SessionCircuit(["input->logits"], complete=False)
    read = SessionCircuitReader.read

    def slow(self: SessionCircuitReader, field: str, circuit: SessionCircuit, base: BaseCircuit) -> Reading:
        monkeypatch.setattr(SessionCircuitReader, "read", read)
        session.commit(cut)
        return read(self, field, circuit, base)

    monkeypatch.setattr(SessionCircuitReader, "read", slow)
    with pytest.raises(ConflictError, match="at the same time"):
        session.commit(SessionCircuit(["m0->logits"], complete=False))
    assert session.commit(SessionCircuit(["m0->logits"], complete=False)) == GRAPH.num_edges - 2


@pytest.fixture
def service(clock: Clock) -> Iterator[SessionService]:
    engine = FakeEngine()
    scheduler = Scheduler(engine)
    scheduler.start()
    yield SessionService(engine, scheduler, 1, replace(LIMITS, sessions=2), clock)
    scheduler.close()


def test_a_limited_number_of_lost_sessions_is_remembered(
    service: SessionService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 2)
    names = []
    for _ in range(3):
        session, ends = service.open(service.resolve(OBJECTIVE))
        ends.result()
        names.append(session.name)
        service.close(session.name)
    for name, known in zip(names, (False, True, True), strict=True):
        with pytest.raises(NotFoundError) as raised:
            service.find(name)
        assert ("it was closed" in str(raised.value)) is known


def test_a_user_holds_no_more_than_its_own(clock: Clock) -> None:
    scheduler = Scheduler(engine := FakeEngine())
    scheduler.start()
    service = SessionService(engine, scheduler, 1, replace(LIMITS, sessions=3, user_sessions=1), clock)
    resolved = service.resolve(OBJECTIVE)
    first, ends = service.open(resolved, "ada")
    ends.result()
    with pytest.raises(QuotaExceededError, match="1 sessions are open") as raised:
        service.open(resolved, "ada")
    assert (raised.value.quota, raised.value.subject) == ("sessions", "users/ada")
    service.open(resolved, "adam")[1].result()
    service.close(first.name)
    service.open(resolved, "ada")[1].result()
    scheduler.close()


def test_an_expired_session_makes_room(service: SessionService, clock: Clock) -> None:
    resolved = service.resolve(OBJECTIVE)
    for _ in range(2):
        service.open(resolved)[1].result()
    clock.now = 10
    session, ends = service.open(resolved)
    assert len(ends.result()) == 2
    assert service.find(session.name) is session
