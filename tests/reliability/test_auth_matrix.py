"""Every RPC with credentials that are worth nothing, and with another user's names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from pahq.v1 import generation_pb2, model_pb2, patching_pb2, server_pb2
from pahq.v1 import jobs_pb2 as pb

from pahq_server.access.policy import POLICY, Scope

from .secured import SecuredServer, Stubs, objective, spec, wait_until

Code = grpc.StatusCode
FILES = (pb, generation_pb2, model_pb2, patching_pb2, server_pb2, health_pb2, reflection_pb2)
METHODS = {
    f"{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
REQUEST_ID = ("x-request-id", "always-the-same")


def bad_credentials(server: SecuredServer) -> dict[str, list[tuple[str, str]]]:
    good = server.tokens["ada"]
    values = {
        "none": [],
        "empty": [""],
        "scheme alone": ["Bearer"],
        "no scheme": [good],
        "another scheme": [f"Basic {good}"],
        "two spaces": [f"Bearer  {good}"],
        "cut": [f"Bearer {good[:-1]}"],
        "longer": [f"Bearer {good}A"],
        "another secret": [f"Bearer {good[:-43]}{'A' * 43}"],
        "another id": [f"Bearer pahq_{'0' * 16}_{good[-43:]}"],
        "secret of another": [f"Bearer {good[:-43]}{server.tokens['bob'][-43:]}"],
        "upper case": [f"Bearer {good.upper()}"],
        "twice": [f"Bearer {good}"] * 2,
        "in a list": [f"Bearer {good}, Bearer {good}"],
        "revoked": [f"Bearer {server.tokens['lost']}"],
        "expired": [f"Bearer {server.tokens['late']}"],
        "injection": ["Bearer pahq_' OR 1=1 --"],
        "long": ["Bearer " + "pahq_" * 1000],
    }
    return {name: [("authorization", value) for value in found] for name, found in values.items()}


def answer(channel: grpc.Channel, method: str, data: bytes, metadata: Any) -> tuple[Code, str, Any]:
    """Code, text and trailing metadata of a call that is refused."""
    call = channel.unary_stream(f"/{method}")(data, metadata=metadata, timeout=60)
    try:
        for _ in call:
            return Code.OK, "", ()
    except grpc.RpcError as error:
        return error.code(), error.details(), tuple(error.trailing_metadata())  # type: ignore[attr-defined]
    return Code.OK, "", ()


def test_nobody_gets_in_with_bad_credentials(secured: SecuredServer) -> None:
    bad = bad_credentials(secured)
    assert len(bad) >= 10
    refusals = set()
    with secured.channel() as channel:
        for method in POLICY:
            for metadata in bad.values():
                # Not even what is no message is looked at.
                for data in (b"", b"\xff"):
                    if POLICY[method] is not Scope.PUBLIC:
                        refusals.add(answer(channel, method, data, [REQUEST_ID, *metadata]))
    ((code, text, trailing),) = refusals
    assert code is Code.UNAUTHENTICATED
    told = " ".join((text, *(f"{key} {value!r}" for key, value in trailing)))
    for secret in ("ada", "bob", "lost", "expired", "revoked", "0.1.0", str(secured.data)):
        assert secret not in told


def test_health_alone_is_for_everybody(secured: SecuredServer) -> None:
    with secured.channel() as channel:
        for method, scope in POLICY.items():
            code, _, _ = answer(channel, method, b"", ())
            assert (code is Code.OK) == (scope is Scope.PUBLIC), method


def test_nothing_is_answered_without_tls(secured: SecuredServer) -> None:
    token = [("authorization", f"Bearer {secured.tokens['ada']}")]
    with grpc.insecure_channel(secured.process.address) as channel:
        for method in POLICY:
            assert answer(channel, method, b"", token)[0] is Code.UNAVAILABLE


@pytest.fixture
def ada(secured: SecuredServer) -> Iterator[Stubs]:
    with secured.as_user("ada") as stubs:
        yield stubs
        stubs.cancel_all()


def named_requests(job: str, session: str) -> dict[str, Any]:
    """A request of every RPC that takes a resource's name."""
    removed = patching_pb2.SessionCircuit(removed=patching_pb2.EdgeList(names=["m3->logits"]))
    return {
        "GetJob": pb.GetJobRequest(name=job),
        "CancelJob": pb.CancelJobRequest(name=job),
        "DeleteJob": pb.DeleteJobRequest(name=job),
        "WatchJob": pb.WatchJobRequest(name=job),
        "GetArtifact": pb.GetArtifactRequest(name=job),
        "ScoreCircuits": patching_pb2.ScoreCircuitsRequest(name=session, circuits=[removed]),
        "CommitCircuit": patching_pb2.CommitCircuitRequest(name=session, circuit=removed),
        "CloseSession": patching_pb2.CloseSessionRequest(name=session),
    }


def takes_a_name(message: Descriptor) -> bool:
    return "name" in message.fields_by_name and message.name != "GetModelRequest"


def open_session(stubs: Stubs) -> str:
    request = patching_pb2.OpenSessionRequest(objective=objective())
    return str(stubs.ask(stubs.patching.OpenSession, request).session.name)


def test_what_is_anothers_is_not_there(secured: SecuredServer, ada: Stubs) -> None:
    # Long enough to still run when the others have tried.
    job, session = ada.create_long(), open_session(ada)
    missing = [re.sub("[0-9a-f]{32}$", "0" * 32, name) for name in (job, session)]
    requests = {name: method for name, method in METHODS.items() if takes_a_name(method.input_type)}
    theirs, nobodys = named_requests(job, session), named_requests(*missing)
    assert {name.rpartition("/")[2] for name in requests} == set(theirs)
    own = [REQUEST_ID, ("authorization", f"Bearer {secured.tokens['bob']}")]
    with secured.channel() as channel:
        for method in requests:
            short = method.rpartition("/")[2]
            found = answer(channel, method, theirs[short].SerializeToString(), own)
            expected = answer(channel, method, nobodys[short].SerializeToString(), own)
            assert found[0] is Code.NOT_FOUND, (method, found)
            # The name that was asked for is the only difference: in the text, and in its details.
            for name, other in zip((job, session), missing, strict=True):
                found = _replaced(found, name, other)
            assert found == expected, method
    assert ada.get(job).state in (pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING)
    score = named_requests(job, session)["ScoreCircuits"]
    assert len(ada.ask(ada.patching.ScoreCircuits, score).metrics) == 1
    ada.ask(ada.patching.CloseSession, patching_pb2.CloseSessionRequest(name=session))


def _replaced(told: Any, name: str, other: str) -> Any:
    code, text, trailing = told
    pairs = tuple(
        (key, value.replace(name.encode(), other.encode()) if isinstance(value, bytes) else value)
        for key, value in trailing
    )
    return code, text.replace(name, other), pairs


def test_a_session_that_is_gone_is_so_for_its_owner_alone(secured: SecuredServer, ada: Stubs) -> None:
    session = open_session(ada)
    close = patching_pb2.CloseSessionRequest(name=session)
    ada.ask(ada.patching.CloseSession, close)
    told = {}
    for user in ("ada", "bob"):
        with secured.as_user(user) as stubs, pytest.raises(grpc.RpcError) as caught:
            stubs.ask(stubs.patching.CloseSession, close)
        told[user] = caught.value.details()  # type: ignore[attr-defined]
    assert told["ada"].endswith("it was closed")
    assert told["bob"] == f"session {session!r} not found"


def test_lists_and_request_ids_are_each_users_own(secured: SecuredServer, ada: Stubs) -> None:
    request = pb.CreateJobRequest(spec=spec(threshold=50.0), request_id="the same")
    mine = ada.ask(ada.job_stub.CreateJob, request).job.name
    with secured.as_user("bob") as bob, secured.as_user("root") as root:
        theirs = bob.ask(bob.job_stub.CreateJob, request).job.name
        assert mine != theirs
        assert mine not in {job.name for job in bob.jobs()}
        assert theirs not in {job.name for job in ada.jobs()}
        assert {mine, theirs} <= {job.name for job in root.jobs()}
        assert root.get(mine).name == mine
        bob.cancel_all()


def test_a_token_ends_while_the_server_runs(secured: SecuredServer) -> None:
    secured.tokens["brief"] = secured.create_token("brief")
    with secured.as_user("brief") as brief:

        def works() -> bool:
            metadata = [("authorization", f"Bearer {secured.tokens['brief']}")]
            code, _, _ = answer(brief.channel, "pahq.v1.ServerService/GetServerInfo", b"", metadata)
            assert code in (Code.OK, Code.UNAUTHENTICATED)
            return code is Code.OK

        wait_until(works, "the new token")
        name = brief.create_long()
        stream = brief.ask(brief.job_stub.WatchJob, pb.WatchJobRequest(name=name))
        next(stream)
        secured.revoke("brief")
        wait_until(lambda: not works(), "the end of the token")
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() is Code.UNAUTHENTICATED  # type: ignore[attr-defined]
    with secured.as_user("root") as root:
        root.cancel_all()
