"""Connections: how many there may be, and which are closed."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.api_server import RunningServer, spec
from helpers.fake_engine import PATIENCE_S, FakeEngine
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import model_pb2, model_pb2_grpc

from pahq_server.api import connections
from pahq_server.api.connections import (
    MOST_CONNECTIONS,
    RESERVED_FILES,
    ConnectionLimits,
    most_connections,
    raise_file_limit,
)

# What a client of HTTP/2 sends first: its preface, and empty settings.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + bytes(8)
BRIEF = ConnectionLimits(idle_s=0.5, handshake_s=0.5)


def connect(server: RunningServer, first: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    connection.sendall(first)
    return connection


def wait_for_end(connection: socket.socket, drip: bytes = b"") -> None:
    """Waits until the server closes the connection, and sends bytes meanwhile."""
    connection.settimeout(0.1)
    end = time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < end, "the connection was not closed"
        try:
            connection.sendall(drip)
            if connection.recv(65_536) == b"":
                return
        except TimeoutError:
            continue
        except OSError:
            return


@pytest.mark.parametrize(
    ("first", "drip"),
    [(b"", b""), (PREFACE[:1], b""), (PREFACE[:24], b""), (PREFACE, b""), (PREFACE, PING)],
    ids=["silent", "one byte", "no settings", "idle", "pings"],
)
def test_connections_without_a_call_are_closed(first: bytes, drip: bytes, engine: FakeEngine) -> None:
    with RunningServer(engine, api={"connections": BRIEF}) as server, connect(server, first) as connection:
        wait_for_end(connection, drip)
        assert server.models.ListModels(model_pb2.ListModelsRequest(), timeout=PATIENCE_S).models


def test_a_connection_with_a_stream_stays(engine: FakeEngine) -> None:
    with RunningServer(engine, api={"connections": BRIEF}) as server, connect(server, PREFACE) as other:
        engine.hold()
        name = server.create(spec()).name
        stream = server.job_stub.WatchJob(pb.WatchJobRequest(name=name), timeout=PATIENCE_S)
        next(stream)
        wait_for_end(other)  # which began later: by now the first would have been closed, too
        time.sleep(BRIEF.idle_s)
        engine.release()
        assert list(stream)[-1].event.kind == pb.EVENT_KIND_END


def test_a_client_whose_connection_was_closed_connects_again(engine: FakeEngine) -> None:
    with RunningServer(engine, api={"connections": BRIEF}) as server:
        seen: list[grpc.ChannelConnectivity] = []
        server.channel.subscribe(seen.append)
        for round in range(3):
            assert server.models.ListModels(model_pb2.ListModelsRequest(), timeout=PATIENCE_S).models
            wait_until(lambda wanted=round: seen.count(grpc.ChannelConnectivity.IDLE) > wanted)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_connections_beyond_the_limit_are_closed_at_once_and_the_others_work(engine: FakeEngine) -> None:
    limits = ConnectionLimits(connections=3, idle_s=PATIENCE_S)
    with RunningServer(engine, api={"connections": limits}) as server:
        assert server.models.ListModels(model_pb2.ListModelsRequest(), timeout=PATIENCE_S).models
        held = [connect(server, PREFACE) for _ in range(2)]
        for connection in held:
            assert connection.recv(1)  # the server's settings
        with connect(server, PREFACE) as beyond:
            wait_for_end(beyond)
        assert server.models.ListModels(model_pb2.ListModelsRequest(), timeout=PATIENCE_S).models
        for connection in held:
            connection.close()

        def comes_in() -> bool:
            with grpc.insecure_channel(
                f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]
            ) as own:
                try:
                    health_pb2_grpc.HealthStub(own).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
                except grpc.RpcError:
                    return False
                return True

        wait_until(comes_in)


def test_a_connection_has_room_for_all_that_a_user_may_have(engine: FakeEngine) -> None:
    """What is too much is refused: with less room it would wait, and nobody would know for what."""
    with RunningServer(engine) as server:
        engine.hold()
        watch = pb.WatchJobRequest(name=server.create(spec()).name)
        streams = [server.job_stub.WatchJob(watch, timeout=PATIENCE_S) for _ in range(257)]
        told = [next(stream) for stream in streams[:256]]
        assert len(told) == 256
        with pytest.raises(grpc.RpcError) as caught:
            next(streams[256])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        stub = model_pb2_grpc.ModelServiceStub(server.channel)
        assert stub.ListModels(model_pb2.ListModelsRequest(), timeout=PATIENCE_S).models
        for stream in streams:
            stream.cancel()


@pytest.mark.parametrize(
    ("files", "most"),
    [
        (20_000, 20_000 - RESERVED_FILES),
        (1024, 1024 - RESERVED_FILES),
        (300, 150),
        (64, 32),
        (1, 1),
        (1 << 30, MOST_CONNECTIONS),
    ],
)
def test_some_files_are_kept_for_other_uses(files: int, most: int) -> None:
    assert most_connections(files) == most


def test_the_limit_of_files_is_raised_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _, limits: asked.append(limits))
    never = resource.RLIM_INFINITY
    for soft, hard in ((1024, 4096), (4096, 4096), (never, never), (256, never)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _, limits=(soft, hard): limits)
        raise_file_limit()
    assert asked == [(4096, 4096), (MOST_CONNECTIONS + RESERVED_FILES, never)]


def test_a_limit_that_cannot_be_raised_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(connections.resource, "setrlimit", refuse)
    raise_file_limit()
    assert "at most 256 open files: the limit cannot be raised (not allowed" in caplog.text
