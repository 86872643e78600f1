"""Encrypted connections, and callers known by their certificates."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from helpers.api_server import RunningServer, refused, spec
from helpers.certificates import Authority, Pair
from helpers.fake_engine import PATIENCE_S, FakeEngine
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import jobs_pb2_grpc, model_pb2, model_pb2_grpc

from pahq_server.access.access import Access
from pahq_server.access.identity import CertificateAuthenticator
from pahq_server.access.tls import TlsFiles, read_tls_files

Code = grpc.StatusCode


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def port(engine: FakeEngine, authority: Authority) -> Iterator[int]:
    """Of a server that knows callers by their certificates."""
    own = authority.sign("server")
    tls = read_tls_files(TlsFiles(own.cert, own.key, authority.cert))
    access = Access(CertificateAuthenticator(["root"]))
    with RunningServer(engine, api={"access": access, "tls": tls}) as running:
        yield running.port


def connect(port: int, authority: Authority, own: Pair | None) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(
        authority.cert.read_bytes(), own and own.key_pem, own and own.cert_pem
    )
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials)


def models(channel: grpc.Channel) -> list[str]:
    answer = model_pb2_grpc.ModelServiceStub(channel).ListModels(
        model_pb2.ListModelsRequest(), timeout=PATIENCE_S
    )
    return [model.name for model in answer.models]


def test_the_certificate_tells_whose_a_job_is(port: int, authority: Authority) -> None:
    names = {}
    for user in ("ada", "bob"):
        with connect(port, authority, authority.sign(user)) as channel:
            stub = jobs_pb2_grpc.JobServiceStub(channel)
            names[user] = stub.CreateJob(pb.CreateJobRequest(spec=spec())).job.name
            seen = stub.ListJobs(pb.ListJobsRequest()).jobs
            assert [job.name for job in seen] == [names[user]]
            assert names[user].startswith(f"users/{user}/")
    with connect(port, authority, authority.sign("root")) as channel:
        seen = jobs_pb2_grpc.JobServiceStub(channel).ListJobs(pb.ListJobsRequest())
        assert {job.name for job in seen.jobs} == set(names.values())


def test_a_name_that_no_user_can_have(port: int, authority: Authority) -> None:
    with connect(port, authority, authority.sign("Ada Lovelace")) as channel, refused() as refusal:
        models(channel)
    assert refusal.code is Code.UNAUTHENTICATED


@pytest.mark.parametrize("who", ["nobody", "stranger", "expired", "plaintext", "suspicious"])
def test_who_does_not_get_a_connection(
    who: str, port: int, authority: Authority, tmp_path: Path, engine: FakeEngine
) -> None:
    stranger = Authority(tmp_path, "stranger")
    expired = authority.sign("ada", valid_for=-datetime.timedelta(days=1))
    channels = {
        "nobody": lambda: connect(port, authority, None),
        "stranger": lambda: connect(port, authority, stranger.sign("ada")),
        "expired": lambda: connect(port, authority, expired),
        "plaintext": lambda: grpc.insecure_channel(f"127.0.0.1:{port}"),
        "suspicious": lambda: connect(port, stranger, authority.sign("ada")),
    }
    with channels[who]() as channel, refused() as refusal:
        models(channel)
    assert refusal.code is Code.UNAVAILABLE
    with connect(port, authority, authority.sign("ada")) as channel:
        assert models(channel) == ["bad", "toy"]


def test_without_an_authority_clients_need_no_certificate(engine: FakeEngine, authority: Authority) -> None:
    own = authority.sign("server")
    tls = read_tls_files(TlsFiles(own.cert, own.key))
    with (
        RunningServer(engine, api={"tls": tls}) as running,
        connect(running.port, authority, None) as channel,
    ):
        assert models(channel) == ["bad", "toy"]
