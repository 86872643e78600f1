"""Floods of calls that show no credentials: they keep neither users nor probes out."""

from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import h2.exceptions
import pytest
from e2e.process import ServerProcess
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pahq.v1 import jobs_pb2 as pb

from pahq_server.cli import main

from .http2 import RawClient, framed
from .secured import PATIENCE_S, SecuredServer, Stubs, wait_until

CHECK, WATCH = "grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"
INFO = "pahq.v1.ServerService/GetServerInfo"
# The whole of 127.0.0.0/8 is this machine. The probe's own address is among them.
SOURCES = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
# From all sources together, again and again: more than one user may have, or from several sources more than
# all users together may have.
CONNECTIONS, CALLS = 20, 100


def flood(
    server: SecuredServer, source: str, connections: int, stop: threading.Event, full: threading.Event
) -> None:
    """Begins calls that never send a message, streams that never end, and calls that nobody may make."""
    while not stop.is_set():
        with ExitStack() as stack:
            for _ in range(connections):
                try:
                    client = stack.enter_context(RawClient(server, user=None, source=source))
                    for number in range(CALLS):
                        client.open((CHECK, WATCH, INFO)[number % 3])
                        if number % 3 == 1:
                            client.send(number * 2 + 1, framed(b""))
                except (OSError, h2.exceptions.ProtocolError):
                    continue  # the server may end a connection like that
            full.set()
            stop.wait(1.0)


@contextmanager
def flooded(server: SecuredServer, sources: tuple[str, ...]) -> Iterator[None]:
    stop, full = threading.Event(), [threading.Event() for _ in sources]
    floods = [
        threading.Thread(target=flood, args=(server, source, CONNECTIONS // len(sources), stop, event))
        for source, event in zip(sources, full, strict=True)
    ]
    for thread in floods:
        thread.start()
    try:
        for event in full:
            assert event.wait(PATIENCE_S)
        yield
        assert all(thread.is_alive() for thread in floods)
    finally:
        stop.set()
        for thread in floods:
            thread.join(PATIENCE_S)


def probe(server: SecuredServer) -> int:
    return main(["health", "--address", server.process.address, "--tls-ca", str(server.authority.cert)])


@pytest.mark.parametrize("sources", [SOURCES[:1], SOURCES[1:2], SOURCES], ids=["own", "other", "five"])
def test_a_flood_without_credentials_keeps_nobody_out(
    sources: tuple[str, ...], secured: SecuredServer
) -> None:
    with flooded(secured, sources):
        for _ in range(5):
            assert probe(secured) == 0
            for user in ("ada", "bob", "root"):
                with secured.as_user(user) as stubs:
                    assert stubs.info().version
                    name = stubs.create(threshold=50.0)
                    watch = pb.WatchJobRequest(name=name)
                    assert list(stubs.ask(stubs.job_stub.WatchJob, watch))
    assert probe(secured) == 0
    secured.assert_alive()


def test_a_probe_that_watches_is_told_through_a_flood(secured: SecuredServer) -> None:
    """A stream of a probe counts against its own address: a flood from another one leaves it alone."""
    with secured.channel() as channel, flooded(secured, SOURCES[1:]):
        stream = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
        )
        assert next(stream).status == health_pb2.HealthCheckResponse.SERVING
        for _ in range(3):
            assert probe(secured) == 0
        assert stream.is_active()
        stream.cancel()


def test_a_call_without_a_name_or_a_message_ends_soon(secured: SecuredServer) -> None:
    """Also one whose message comes byte by byte."""
    with RawClient(secured, user=None) as client:
        silent, slow = client.open(CHECK), client.open(CHECK)
        client.send(slow, framed(bytes(10))[:7], end=False)
        for stream in (silent, slow):
            assert client.wait(stream).status == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


def test_the_oldest_calls_make_room_and_are_told_so(secured: SecuredServer) -> None:
    with RawClient(secured, user=None, source="127.0.0.9") as client:
        calls = [client.open(CHECK) for _ in range(100)]
        first = client.wait(calls[0])
        assert first.status == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert "make room" in first.headers["grpc-message"].replace("%20", " ")
        assert not client.streams[calls[-1]].ended
        client.send(calls[-1], framed(b""))
        assert client.wait(calls[-1]).status == 0
    wait_until(lambda: probe(secured) == 0, "the server")


def test_more_connections_than_files_at_the_start(tmp_path: Path) -> None:
    """A system that starts the server with few files lets it have more: it takes what it may have."""
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    few, connections = 256, 600
    if own[1] < 4 * connections:
        pytest.skip(f"at most {own[1]} open files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, own[1]))
    try:
        process = ServerProcess(None, "--data-dir", str(tmp_path), "--threads", "1")
        process.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (own[1], own[1]))
    try:
        host, _, port = process.address.rpartition(":")
        with ExitStack() as stack:
            for _ in range(connections):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
            assert main(["health", "--address", process.address]) == 0
            with grpc.insecure_channel(process.address) as channel:
                assert Stubs(channel, None).info().version
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, own)
        process.__exit__(None, None, None)


def test_the_log_names_addresses_that_fail_and_certificates_that_end(secured: SecuredServer) -> None:
    with RawClient(secured, user="late", source="127.0.0.77") as client:
        assert client.wait(client.open(INFO)).status == grpc.StatusCode.UNAUTHENTICATED.value[0]
    id = secured.tokens["late"].split("_")[1]
    why = f"refused a call from 127.0.0.77: its token, {id} of user late, has expired (call 1 "
    assert why in secured.process.log()
    # The certificate of these tests is valid for a day.
    assert "--tls-cert: the certificate of CN=server in " in secured.process.log()
    assert ", in 1.0 days. Renew it" in secured.process.log()
