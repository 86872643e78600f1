"""Every failure of a call becomes one error of the tree."""

from __future__ import annotations

import copy
import socket
from typing import Any

import pytest
from pahq import __version__

from pahq_client import Client, TlsConfig, errors
from pahq_client.connection import Endpoint

from .fake_server import Code, FakeServer, Fault


@pytest.mark.parametrize(
    ("fault", "kind", "attributes"),
    [
        (
            Fault(Code.INVALID_ARGUMENT, "m", "INVALID_REQUEST", violation=("task.clean", "is empty")),
            errors.InvalidRequest,
            {"field": "task.clean", "detail": "is empty"},
        ),
        (Fault(Code.INVALID_ARGUMENT, "bad"), errors.InvalidRequest, {"field": "request", "detail": "bad"}),
        (Fault(Code.OUT_OF_RANGE, "bad"), errors.InvalidRequest, {"detail": "bad"}),
        (Fault(Code.NOT_FOUND, "no x", "NOT_FOUND", {"name": "x"}), errors.NotFound, {"name": "x"}),
        (Fault(Code.NOT_FOUND, "no x"), errors.NotFound, {"detail": "no x"}),
        (Fault(Code.FAILED_PRECONDITION, "runs", "CONFLICT"), errors.Conflict, {}),
        (Fault(Code.FAILED_PRECONDITION, "runs"), errors.Conflict, {}),
        (Fault(Code.ABORTED, "runs"), errors.Conflict, {}),
        (Fault(Code.ALREADY_EXISTS, "there", "ALREADY_EXISTS"), errors.AlreadyExists, {}),
        (Fault(Code.ALREADY_EXISTS, "there"), errors.AlreadyExists, {}),
        (
            Fault(Code.RESOURCE_EXHAUSTED, "full", "RESOURCE_EXHAUSTED", retry_s=2.5),
            errors.ResourceExhausted,
            {"retry_after": 2.5, "detail": "full"},
        ),
        (Fault(Code.RESOURCE_EXHAUSTED, "full"), errors.ResourceExhausted, {"retry_after": None}),
        (
            Fault(Code.FAILED_PRECONDITION, "v", "VERSION_MISMATCH", {"client": "1.0", "server": "2.0"}),
            errors.VersionMismatch,
            {"client": "1.0", "server": "2.0"},
        ),
        (Fault(Code.UNIMPLEMENTED), errors.VersionMismatch, {"client": __version__, "server": "unknown"}),
        (Fault(Code.UNAUTHENTICATED, "who", "UNAUTHENTICATED"), errors.Unauthenticated, {}),
        (Fault(Code.UNAUTHENTICATED, "who"), errors.Unauthenticated, {}),
        (Fault(Code.PERMISSION_DENIED, "no", "PERMISSION_DENIED"), errors.PermissionDenied, {}),
        (Fault(Code.PERMISSION_DENIED, "no"), errors.PermissionDenied, {}),
        (
            Fault(Code.FAILED_PRECONDITION, "metric is NaN", "NON_FINITE_METRIC"),
            errors.JobFailed,
            {"message": "metric is NaN"},
        ),
        (Fault(Code.UNAVAILABLE, "down"), errors.Unavailable, {"detail": "down"}),
        (Fault(Code.CANCELLED, "bye"), errors.Unavailable, {"detail": "bye"}),
        (Fault(Code.DEADLINE_EXCEEDED, "late"), errors.DeadlineExceeded, {}),
        (Fault(Code.INTERNAL, "oops"), errors.ServerFault, {}),
        (Fault(Code.UNKNOWN, "oops"), errors.ServerFault, {}),
        (Fault(Code.DATA_LOSS, "oops"), errors.ServerFault, {}),
        # An unknown reason, and a proxy's own: the status code decides.
        (Fault(Code.NOT_FOUND, "x", "SOMETHING_NEW"), errors.NotFound, {}),
        (Fault(Code.INTERNAL, "x", "UNAUTHENTICATED", domain="proxy"), errors.ServerFault, {}),
    ],
)
def test_faults(
    server: FakeServer, client: Client, fault: Fault, kind: type[Exception], attributes: dict[str, Any]
) -> None:
    tries = 3 if kind is errors.Unavailable else 1
    server.faults["GetServerInfo"] = [fault] * tries
    with pytest.raises(errors.PahqError) as raised:
        client.server_info()
    assert type(raised.value) is kind
    assert {name: getattr(raised.value, name) for name in attributes} == attributes
    again = copy.copy(raised.value)  # as pickle does: from its arguments
    assert (type(again), str(again)) == (kind, str(raised.value))
    assert len(server.called("GetServerInfo")) == tries
    assert client.server_info().version == "9.9"  # the connection is none the worse


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_an_unreachable_server_tells_address_and_how_to_start_one() -> None:
    address = f"127.0.0.1:{_closed_port()}"
    with Client(address) as client, pytest.raises(errors.Unavailable) as raised:
        client.models()
    assert raised.value.address == address
    assert f"pahq-server serve --listen {address}" in str(raised.value)


def test_a_server_started_after_a_failed_call_is_found_at_once() -> None:
    port = _closed_port()
    with Client(f"127.0.0.1:{port}") as client, pytest.raises(errors.Unavailable):
        client.models()
    with FakeServer(port), Client(f"127.0.0.1:{port}") as client:
        assert client.models()[0].name == "demo"


def test_a_server_that_does_not_answer(server: FakeServer) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        with Client(address, timeout=0.2) as client, pytest.raises(errors.Unavailable) as raised:
            client.models()
        assert address in str(raised.value)


def test_every_call_carries_version_and_token(server: FakeServer) -> None:
    with Client(server.address, token="s3cret") as client:
        client.models()
        list(client.submit("demo", "ioi").watch())
    for _, _, metadata in server.calls:
        assert metadata["pahq-version"] == __version__
        assert metadata["authorization"] == "Bearer s3cret"
    assert "s3cret" not in repr(client)


def test_no_token_no_header(server: FakeServer, client: Client) -> None:
    client.models()
    assert "authorization" not in server.calls[0][2]


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "unix:/tmp/x"])
def test_a_token_may_go_to_this_machine(address: str) -> None:
    assert Endpoint(address, token="t").metadata[-1] == ("authorization", "Bearer t")


@pytest.mark.parametrize("address", ["gpu-box:7300", "10.0.0.1:1", "[2001:db8::1]:1", "localhost.evil.com:1"])
def test_a_token_goes_elsewhere_only_encrypted(address: str) -> None:
    with pytest.raises(errors.InvalidRequest, match="in the clear") as raised:
        Endpoint(address, token="t")
    assert raised.value.field == "token"
    assert Endpoint(address, token="t", tls=True).credentials is not None
    assert len(Endpoint(address).metadata) == 1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"address": "gpu-box"}, "server"),
        ({"address": "http://gpu-box:7300"}, "server"),
        ({"address": "gpu-box:0"}, "server"),
        ({"address": "gpu-box:70000"}, "server"),
        ({"address": ""}, "server"),
        ({"address": 7300}, "server"),
        ({"token": "a\nb"}, "token"),
        ({"token": "ü"}, "token"),
        ({"token": ""}, "token"),
        ({"token": 3}, "token"),
        ({"tls": "yes"}, "tls"),
        ({"tls": TlsConfig(ca="/no/such/file")}, "tls.ca"),
        ({"tls": TlsConfig(cert="/no/such/file")}, "tls"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "1"}, "timeout"),
    ],
)
def test_wrong_arguments_of_a_client(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.InvalidRequest) as raised:
        Client(**{"address": "127.0.0.1:1", **arguments})
    assert raised.value.field == field


def test_a_closed_client_says_so(server: FakeServer) -> None:
    with Client(server.address) as client:
        job = client.submit("demo", "ioi")
    with pytest.raises(RuntimeError, match="closed"):
        client.models()
    with pytest.raises(RuntimeError, match="closed"):
        list(job.watch())


def test_a_message_beyond_the_limit_is_an_error_not_a_crash(server: FakeServer, client: Client) -> None:
    job = client.submit("demo", "ioi")
    server.artifact.prompts = ["x" * (20 << 20)]
    with pytest.raises(errors.ResourceExhausted):
        job.result()
