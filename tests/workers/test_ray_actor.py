"""An actor without Ray around it: what it answers, and to whom."""

from __future__ import annotations

import json
import os

import pytest
from helpers.small_worker import NOT_FOUND, RAISES

from pahq_server.core.engine import EngineStateId, MemoryUsage
from pahq_server.core.errors import InvalidRequestError, NotFoundError
from pahq_server.workers.codec import MessageError, decode, encode
from pahq_server.workers.messages import CloseState, MeasureMemory, WorkerInfo
from pahq_server.workers.ray_actor import RayActor
from pahq_server.workers.ray_link import FAILED, LOADED, REFUSED


def make(factory: str = "helpers.small_worker:load", **options: str) -> RayActor:
    return RayActor(factory, json.dumps(options).encode())


def test_a_loaded_actor_answers() -> None:
    actor = make()
    answer = actor.load(3)
    assert answer[:1] == LOADED
    info = decode(answer[1:])
    assert isinstance(info, WorkerInfo)
    assert info.hardware == {"process": str(os.getpid())}
    assert isinstance(decode(actor.run(3, encode(MeasureMemory()))), MemoryUsage)
    actor.ping(3)


def test_a_refusal_and_a_failure_are_told_apart(tmp_path: object) -> None:
    refused = make(refuse="no such model").load(1)
    assert refused[:1] == REFUSED
    assert isinstance(decode(refused[1:]), InvalidRequestError)
    failing = make(fail_once=f"{tmp_path}/marker")
    failed = failing.load(1)
    assert failed[:1] == FAILED
    assert str(decode(failed[1:])) == "no luck on purpose"
    assert failing.load(2)[:1] == LOADED


@pytest.mark.parametrize("factory", ["helpers.missing:load", "helpers.small_worker:missing", "nonsense"])
def test_a_factory_that_is_not_there_is_a_failure(factory: str) -> None:
    assert make(factory).load(1)[:1] == FAILED


def test_calls_for_another_incarnation_are_not_run() -> None:
    actor = make()
    with pytest.raises(RuntimeError, match="has not loaded"):
        actor.run(0, encode(MeasureMemory()))
    actor.load(2)
    for incarnation in (1, 3):
        with pytest.raises(RuntimeError, match="started again"):
            actor.run(incarnation, encode(MeasureMemory()))
        with pytest.raises(RuntimeError, match="started again"):
            actor.ping(incarnation)


def test_errors_are_answers() -> None:
    actor = make()
    actor.load(1)
    for state, kind in ((RAISES, ValueError), (NOT_FOUND, NotFoundError)):
        assert type(decode(actor.run(1, encode(CloseState(EngineStateId(state)))))) is kind
    assert isinstance(decode(actor.run(1, b"damaged")), MessageError)


def test_a_process_that_was_given_up_ends_when_it_is_to_load_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class EndedError(BaseException):
        pass

    def end(code: int) -> None:
        raise EndedError

    actor = make()
    actor.load(1)
    monkeypatch.setattr("os._exit", end)
    with pytest.raises(EndedError):
        actor.load(2)
