"""The health service: its watchers hear of every change, whoever else comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.api_server import RunningServer
from helpers.fake_engine import PATIENCE_S, FakeEngine

from pahq_server.api.health import HealthService, Status
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
