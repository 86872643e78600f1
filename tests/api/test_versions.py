"""Clients of other versions."""

from __future__ import annotations

import grpc
import pytest
from helpers.api_server import Refusal, RunningServer, every_call, refused
from pahq import __version__
from pahq.v1 import server_pb2

Code = grpc.StatusCode


def _other_minor() -> str:
    major, minor, *_ = __version__.split(".")
    return f"{major}.{int(minor) + 1}.0"


@pytest.mark.parametrize("version", ["99.0.0", "0.0.1", _other_minor(), "", "x"])
def test_a_client_of_another_version_is_refused_by_every_call(version: str, server: RunningServer) -> None:
    calls = every_call(server.channel)
    assert len(calls) == 20
    for call, request in calls.values():
        with refused() as refusal:
            call(request, metadata=[("pahq-version", version)])
        _assert_mismatch(refusal, version)
    server.assert_alive()


def _assert_mismatch(refusal: Refusal, version: str) -> None:
    assert (refusal.code, refusal.info.reason) == (Code.FAILED_PRECONDITION, "VERSION_MISMATCH")
    assert refusal.info.metadata == {"client": version, "server": __version__}
    assert refusal.message == f"client version {version} does not fit server version {__version__}"


def test_patch_releases_fit_and_the_version_may_be_left_out(server: RunningServer) -> None:
    major, minor, *_ = __version__.split(".")
    for metadata in ([], [("pahq-version", __version__)], [("pahq-version", f"{major}.{minor}.999")]):
        info = server.server.GetServerInfo(server_pb2.GetServerInfoRequest(), metadata=metadata)
        assert info.server_info.version == __version__
