"""The gate: request ids, who calls what, limits, and what observers hear."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.api_server import RunningServer, refused, spec
from helpers.fake_engine import PATIENCE_S, FakeEngine
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import model_pb2

from pahq_server.access.access import Access
from pahq_server.access.identity import Credentials, TokenAuthenticator
from pahq_server.access.limits import CallLimits
from pahq_server.access.tokens import TokenTable, new_token
from pahq_server.api.errors import guarded
from pahq_server.api.gate import host_of
from pahq_server.core.context import Caller
from pahq_server.core.errors import UnauthenticatedError
from pahq_server.core.observer import Observer
from pahq_server.store.database import Database

Code = grpc.StatusCode
LIST = model_pb2.ListModelsRequest()
JOBS = "pahq.v1.JobService"


class Names:
    """Takes the header for the user's name; ``root`` is an admin, ``gone`` has gone."""

    def __init__(self) -> None:
        self.gone: set[str] = set()

    def identify(self, credentials: Credentials) -> Caller:
        if len(credentials.authorization) != 1 or credentials.authorization[0] in self.gone:
            raise UnauthenticatedError("who are you?")
        (user,) = credentials.authorization
        return Caller(user, user == "root")


class Heard(Observer):
    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self._changed = threading.Condition()

    def rejected(self, reason: str) -> None:
        self.calls.append(("rejected", reason))

    def call_started(self, method: str) -> None:
        self.calls.append(("started", method.rpartition("/")[2]))

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        with self._changed:
            self.calls.append(("ended", method.rpartition("/")[2], code))
            self._changed.notify_all()

    def wait_for(self, *call: str, times: int = 1) -> None:
        """Clients have their answer before the server is done with the call."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls.count(call) >= times, PATIENCE_S), self.calls


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def server(engine: FakeEngine, names: Names, heard: Heard) -> Iterator[RunningServer]:
    """Knows its users, and lets each have one call and one stream at a time."""
    limits = CallLimits(user_calls=1, user_streams=1, rate=1e-6, burst=20)
    access = Access(names, limits, heard)
    with RunningServer(engine, api={"access": access, "observer": heard}) as running:
        yield running


def by(user: str, **more: str) -> dict[str, Any]:
    metadata = [("authorization", user), *((key.replace("_", "-"), value) for key, value in more.items())]
    return {"metadata": metadata, "timeout": PATIENCE_S}


def request_id(call: Any) -> str:
    (found,) = [value for key, value in call.trailing_metadata() if key == "x-request-id"]
    return str(found)


def test_a_request_id_comes_back(server: RunningServer) -> None:
    _, call = server.models.ListModels.with_call(LIST, **by("ada", x_request_id="My-id_1.0"))
    assert request_id(call) == "My-id_1.0"


@pytest.mark.parametrize("asked", ["", "a" * 65, "a b", "a;b", '{"a"'])
def test_a_request_id_that_is_none_is_replaced(asked: str, server: RunningServer) -> None:
    ids = set()
    for _ in range(2):
        _, call = server.models.ListModels.with_call(LIST, **by("ada", x_request_id=asked))
        ids.add(request_id(call))
    assert len(ids) == 2
    assert asked not in ids


def test_refusals_have_a_request_id_too(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        server.models.ListModels(LIST, metadata=[("x-request-id", "mine")])
    assert request_id(caught.value) == "mine"


def test_jobs_and_sessions_belong_to_the_caller(server: RunningServer, engine: FakeEngine) -> None:
    request = pb.CreateJobRequest(spec=spec(), request_id="same")
    names = [server.job_stub.CreateJob(request, **by(user)).job.name for user in ("ada", "bob")]
    assert [name.split("/")[1] for name in names] == ["ada", "bob"]
    listed = {}
    for user in ("ada", "bob", "cy", "root"):
        answer = server.job_stub.ListJobs(pb.ListJobsRequest(), **by(user))
        listed[user] = {job.name for job in answer.jobs}
    assert listed == {"ada": {names[0]}, "bob": {names[1]}, "cy": set(), "root": set(names)}
    found = server.job_stub.GetJob(pb.GetJobRequest(name=names[0]), **by("root")).job
    assert found.name == names[0]


def test_a_user_has_so_many_calls_and_streams_at_once(
    server: RunningServer, engine: FakeEngine, heard: Heard
) -> None:
    engine.hold()
    name = server.job_stub.CreateJob(pb.CreateJobRequest(spec=spec()), **by("ada")).job.name
    watch = pb.WatchJobRequest(name=name)
    stream = server.job_stub.WatchJob(watch, **by("ada"))
    next(stream)
    with refused() as refusal:
        list(server.job_stub.WatchJob(watch, **by("ada")))
    assert (refusal.code, refusal.info.reason) == (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    assert refusal.details["QuotaFailure"].violations[0].subject == "users/ada"
    assert refusal.details["RetryInfo"].retry_delay.ToSeconds() > 0
    next(server.job_stub.WatchJob(watch, **by("root")))
    stream.cancel()
    heard.wait_for("ended", "WatchJob", "CANCELLED")
    next(server.job_stub.WatchJob(watch, **by("ada")))
    assert ("rejected", "quota") in heard.calls


def test_calls_that_come_too_fast_are_told_when_to_come_again(server: RunningServer, heard: Heard) -> None:
    for number in range(20):
        server.models.ListModels(LIST, **by("ada"))
        heard.wait_for("ended", "ListModels", "OK", times=number + 1)
    with refused() as refusal:
        server.models.ListModels(LIST, **by("ada"))
    assert (refusal.code, refusal.info.reason) == (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert refusal.details["RetryInfo"].retry_delay.ToSeconds() > 0
    heard.wait_for("ended", "ListModels", "RESOURCE_EXHAUSTED")
    assert heard.calls[-3:] == [
        ("started", "ListModels"),
        ("rejected", "rate_limit"),
        ("ended", "ListModels", "RESOURCE_EXHAUSTED"),
    ]
    server.models.ListModels(LIST, **by("bob"))


def test_health_needs_no_credentials_and_has_no_rate(server: RunningServer) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    for _ in range(30):
        assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING


def test_a_stream_ends_with_its_credentials(server: RunningServer, engine: FakeEngine, names: Names) -> None:
    engine.hold()
    name = server.job_stub.CreateJob(pb.CreateJobRequest(spec=spec()), **by("ada")).job.name
    stream = server.job_stub.WatchJob(pb.WatchJobRequest(name=name), **by("ada"))
    next(stream)
    names.gone.add("ada")
    engine.release()
    with refused() as refusal:
        list(stream)
    assert refusal.code is Code.UNAUTHENTICATED


def test_what_observers_hear(server: RunningServer, heard: Heard) -> None:
    server.models.ListModels(LIST, **by("ada"))
    heard.wait_for("ended", "ListModels", "OK")
    with refused():
        server.job_stub.GetJob(pb.GetJobRequest(name="x"), **by("ada"))
    heard.wait_for("ended", "GetJob", "NOT_FOUND")
    with refused():
        server.job_stub.DeleteJob(pb.DeleteJobRequest(name="x"))
    heard.wait_for("ended", "DeleteJob", "UNAUTHENTICATED")
    assert heard.calls == [
        ("started", "ListModels"),
        ("ended", "ListModels", "OK"),
        ("started", "GetJob"),
        ("ended", "GetJob", "NOT_FOUND"),
        ("started", "DeleteJob"),
        ("rejected", "auth"),
        ("ended", "DeleteJob", "UNAUTHENTICATED"),
    ]


def test_a_call_that_ends_in_time_is_not_an_error(
    server: RunningServer, engine: FakeEngine, heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither a client that leaves nor one whose time is up is worth a line of the log."""
    engine.hold()
    name = server.job_stub.CreateJob(pb.CreateJobRequest(spec=spec()), **by("ada")).job.name
    watch = pb.WatchJobRequest(name=name)
    with refused() as refusal:
        list(server.job_stub.WatchJob(watch, metadata=[("authorization", "ada")], timeout=0.1))
    assert refusal.code is Code.DEADLINE_EXCEEDED
    heard.wait_for("ended", "WatchJob", "DEADLINE_EXCEEDED")
    stream = server.job_stub.WatchJob(watch, **by("ada"))
    next(stream)
    stream.cancel()
    heard.wait_for("ended", "WatchJob", "CANCELLED")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


class Gone:
    """The context of a call whose connection has gone."""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []

    def set_trailing_metadata(self, metadata: object) -> None:
        pass

    def time_remaining(self) -> None:
        return None


def test_a_connection_that_breaks_while_an_answer_is_sent_is_no_fault(
    heard: Heard, caplog: pytest.LogCaptureFixture
) -> None:
    async def call() -> None:
        async with guarded(Gone(), "x/Watch", heard):
            raise grpc.aio.InternalError("Failed to execute batch")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(call())
    assert heard.calls == [("started", "Watch"), ("ended", "Watch", "CANCELLED")]
    assert caplog.records == []


def raw(server: RunningServer, method: str) -> Any:
    return server.channel.unary_unary(f"/{JOBS}/{method}")


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x01\xff", b"\x0f" * 9])
def test_what_is_no_message(data: bytes, server: RunningServer) -> None:
    with refused() as refusal:
        raw(server, "GetJob")(data, **by("ada"))
    assert (refusal.code, refusal.violation[0]) == (Code.INVALID_ARGUMENT, "request")


def test_a_call_without_a_message(server: RunningServer) -> None:
    with refused() as refusal:
        server.channel.stream_unary(f"/{JOBS}/GetJob")(iter(()), **by("ada"))
    assert (refusal.code, refusal.violation) == (Code.INVALID_ARGUMENT, ("request", "there is no message"))


def test_a_message_that_does_not_come(engine: FakeEngine) -> None:
    """The call ends, and gives its permit back."""
    access = Access(limits=CallLimits(user_calls=1, read_s=0.05))
    with RunningServer(engine, api={"access": access}) as server:
        held, patience = threading.Event(), {"timeout": PATIENCE_S}
        never = (b"" for _ in range(1) if not held.wait(PATIENCE_S))
        with refused() as refusal:
            server.channel.stream_unary(f"/{JOBS}/GetJob")(never, **patience)
        held.set()
        assert (refusal.code, refusal.message) == (Code.DEADLINE_EXCEEDED, "the deadline has passed")
        server.models.ListModels(LIST, **patience)


def test_an_unknown_call(server: RunningServer) -> None:
    with refused() as refusal:
        raw(server, "Nothing")(b"", **by("ada"))
    assert refusal.code is Code.UNIMPLEMENTED


def test_compressed_messages_are_refused_unread(server: RunningServer) -> None:
    with refused() as refusal:
        raw(server, "GetJob")(bytes(1_000_000), compression=grpc.Compression.Gzip, **by("ada"))
    assert refusal.code is Code.UNIMPLEMENTED


def test_a_failure_is_logged_with_its_address_and_limited_while_users_get_in(
    engine: FakeEngine, names: Names, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(names, CallLimits(failure_rate=1e-3, failure_burst=2))
    with RunningServer(engine, api={"access": access}) as server:
        told = []
        for _ in range(4):
            with refused() as refusal:
                server.models.ListModels(LIST)
            told.append((refusal.code, refusal.info.reason))
            assert server.models.ListModels(LIST, **by("ada")).models
        unknown, limited = (
            (Code.UNAUTHENTICATED, "UNAUTHENTICATED"),
            (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED"),
        )
        assert told == [unknown, unknown, limited, limited]
        assert refusal.details["RetryInfo"].retry_delay.ToSeconds() > 0
    assert "refused a call from 127.0.0.1: no valid credentials (call 1 " in caplog.text


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:127.0.0.1:50412", "127.0.0.1"),
        ("ipv6:[::1]:50412", "::/64"),
        ("ipv6:%5B::1%5D:50412", "::/64"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:ffff::1%5D:1", "2001:db8:1:2::/64"),
        ("ipv6:[::ffff:10.0.0.7]:1", "10.0.0.7"),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::/64"),
        ("unix:/run/pahq.sock", "unix:/run/pahq.sock"),
        ("", ""),
    ],
)
def test_the_host_of_a_peer(peer: str, host: str) -> None:
    assert host_of(peer) == host


class TokenServer:
    """A database with one token, and access by it."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder / "db")
        table = TokenTable(self.database)
        self.text, token = new_token("ada", "user", 0.0)
        table.add(token)
        self.holders = TokenAuthenticator(table)


def test_a_call_with_a_token_is_answered_while_the_database_is_locked(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pahq_server.access.identity.REFRESH_S", 0.01)
    tokens = TokenServer(tmp_path)
    access = Access(tokens.holders)
    with (
        tokens.holders.refreshing(),
        RunningServer(engine, api={"access": access}) as server,
        tokens.database._writing,  # held by this thread
        tokens.database._reading,
    ):
        time.sleep(0.2)  # the thread that reads tokens waits for them, too
        for _ in range(3):
            assert server.models.ListModels(LIST, **by(f"Bearer {tokens.text}")).models
        with refused() as refusal:
            server.models.ListModels(LIST, **by("Bearer x"))
        assert refusal.code is Code.UNAUTHENTICATED
    tokens.database.close()
