"""The health service: its watchers hear of every change, whoever else comes and goes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.api_server import RunningServer, spec
from helpers.fake_engine import PATIENCE_S, FakeEngine
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import server_pb2

from pahq_server.api.health import ALIVE, RESUMED, HealthService, Status
from pahq_server.api.server import SERVICES

Request = health_pb2.HealthCheckRequest


@contextmanager
def stubs(server: RunningServer, number: int) -> Iterator[list[health_pb2_grpc.HealthStub]]:
    """Each with a connection of its own."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(f"127.0.0.1:{server.port}", own) for _ in range(number)]
    yield [health_pb2_grpc.HealthStub(channel) for channel in channels]
    for channel in channels:
        channel.close()


@pytest.mark.parametrize("name", ["", *SERVICES])
def test_services_that_there_are(name: str, engine: FakeEngine) -> None:
    with RunningServer(engine) as server, stubs(server, 1) as (stub,):
        assert stub.Check(Request(service=name), timeout=PATIENCE_S).status == Status.SERVING


def test_a_service_that_there_is_not(engine: FakeEngine) -> None:
    with RunningServer(engine) as server, stubs(server, 1) as (stub,):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(Request(service="nothing"), timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        stream = stub.Watch(Request(service="nothing"), timeout=PATIENCE_S)
        assert next(stream).status == Status.SERVICE_UNKNOWN
        stream.cancel()


def test_watchers_hear_of_the_end_also_when_others_have_left(engine: FakeEngine) -> None:
    with RunningServer(engine) as server, stubs(server, 3) as (first, second, third):
        streams = [stub.Watch(Request(), timeout=PATIENCE_S) for stub in (first, second, third)]
        assert [next(stream).status for stream in streams] == [Status.SERVING] * 3
        streams[1].cancel()
        # When this one is answered, the server has heard of the cancellation before it.
        latest = second.Watch(Request(), timeout=PATIENCE_S)
        assert next(latest).status == Status.SERVING
        server.stop()
        for stream in (streams[0], streams[2], latest):
            assert next(stream).status == Status.NOT_SERVING


COMPUTING = ["", *SERVICES]


def test_services_are_down_while_nothing_can_be_computed(engine: FakeEngine) -> None:
    with RunningServer(engine) as server, stubs(server, 1) as (stub,):
        streams = [stub.Watch(Request(service=name), timeout=PATIENCE_S) for name in COMPUTING]
        assert {next(stream).status for stream in streams} == {Status.SERVING}
        engine.why_unavailable = "no worker is left"
        assert {next(stream).status for stream in streams} == {Status.NOT_SERVING}
        # Supervisors need not start it again, and jobs of an earlier process were resumed all the same.
        for name in (ALIVE, RESUMED):
            assert stub.Check(Request(service=name), timeout=PATIENCE_S).status == Status.SERVING
        engine.why_unavailable = ""
        assert {next(stream).status for stream in streams} == {Status.SERVING}


def test_jobs_that_come_while_nothing_can_be_computed_are_accepted(engine: FakeEngine) -> None:
    engine.why_unavailable = "no worker is left"
    with RunningServer(engine) as server, stubs(server, 1) as (stub,):
        assert stub.Check(Request(), timeout=PATIENCE_S).status == Status.NOT_SERVING
        assert server.create(spec()).name


def test_another_reason_is_no_change(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pahq_server.api.server.AVAILABILITY_S", 0.01)
    asked = threading.Semaphore(0)

    def reasons() -> Iterator[str]:
        yield from ("one worker starts", "it starts again", "the cluster does not answer")
        while True:
            yield ""

    reason = reasons()

    def unavailable() -> str:
        asked.release()
        return next(reason)

    engine.unavailable = unavailable  # type: ignore[method-assign]
    with RunningServer(engine) as server, stubs(server, 1) as (stub,):
        stream = stub.Watch(Request(), timeout=PATIENCE_S)
        told = [next(stream).status]
        while told[-1] != Status.SERVING:
            told.append(next(stream).status)
        assert told in ([Status.NOT_SERVING, Status.SERVING], [Status.SERVING])
        assert all(asked.acquire(timeout=PATIENCE_S) for _ in range(4))


def test_an_engine_that_does_not_answer_the_question_is_not_trusted(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pahq_server.api.server.AVAILABILITY_S", 0.01)

    def broken() -> str:
        raise RuntimeError("a defect")

    with RunningServer(engine) as server, stubs(server, 1) as (stub,):
        stream = stub.Watch(Request(), timeout=PATIENCE_S)
        assert next(stream).status == Status.SERVING
        engine.unavailable = broken  # type: ignore[method-assign]
        assert next(stream).status == Status.NOT_SERVING
        del engine.unavailable
        assert next(stream).status == Status.SERVING


@pytest.mark.parametrize("error", [MemoryError("full"), SystemExit(3)], ids=repr)
def test_a_worker_thread_that_ends_fails_its_jobs_and_shows_in_the_health(error: BaseException) -> None:
    engine = FakeEngine()

    def broken(work: object) -> list[object]:
        raise error

    engine.broken = error if isinstance(error, Exception) else None
    engine.run = broken  # type: ignore[assignment, method-assign]
    with RunningServer(engine) as server, stubs(server, 1) as (stub,):
        stream = stub.Watch(Request(), timeout=PATIENCE_S)
        assert next(stream).status == Status.SERVING
        name = server.create(spec()).name
        (*_, end) = server.events(name)
        assert end.state == pb.JOB_STATE_FAILED
        assert "cannot compute any more" in end.error_message
        assert next(stream).status == Status.NOT_SERVING
        info = server.server.GetServerInfo(server_pb2.GetServerInfoRequest()).server_info
        assert "has to be restarted" in info.unavailable


class Context:
    """Takes what a watcher is told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[int] = asyncio.Queue()

    async def write(self, answer: Status) -> None:
        await self.told.put(answer.status)


@asynccontextmanager
async def watching(health: HealthService, service: str) -> AsyncIterator[asyncio.Queue[int]]:
    context = Context()
    task = asyncio.create_task(health.Watch(Request(service=service), context))
    yield context.told
    task.cancel()


def test_every_change_is_told_once_and_nothing_after_the_end() -> None:
    async def run() -> list[int]:
        health, told = HealthService(), []
        async with watching(health, "x") as changes:
            told.append(await changes.get())
            for status in (Status.SERVING, Status.SERVING, Status.NOT_SERVING, Status.SERVING):
                await health.set("x", status)
                await asyncio.sleep(0)  # the watcher's turn
                await asyncio.sleep(0)
            for _ in range(3):
                told.append(await changes.get())
            await health.enter_graceful_shutdown()
            told.append(await changes.get())
            await health.set("x", Status.SERVING)
            await asyncio.sleep(0)
            assert changes.empty()
        return told

    serving, stopped = Status.SERVING, Status.NOT_SERVING
    assert asyncio.run(run()) == [Status.SERVICE_UNKNOWN, serving, stopped, serving, stopped]
