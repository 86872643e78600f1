"""Every RPC that can be called has an entry in the policy, and every entry an RPC."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import pahq.v1
import pytest
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from helpers.fake_engine import FakeEngine

from pahq_server.access.policy import POLICY, Scope
from pahq_server.api.server import ApiServer
from pahq_server.jobs.service import JobService


def files() -> Iterator[FileDescriptor]:
    for folder in pahq.v1.__path__:
        for file in Path(folder).glob("*_pb2.py"):
            yield import_module(f"pahq.v1.{file.stem}").DESCRIPTOR
    yield from (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)


def methods() -> set[str]:
    return {
        f"{service.full_name}/{method.name}"
        for file in files()
        for service in file.services_by_name.values()
        for method in service.methods
    }


def test_every_rpc_has_an_entry_and_every_entry_an_rpc() -> None:
    assert set(POLICY) == methods()


def test_only_health_is_for_everybody() -> None:
    public = {method for method, scope in POLICY.items() if scope is Scope.PUBLIC}
    assert public == {method for method in methods() if method.startswith("grpc.health.v1.Health/")}


def test_nothing_is_served_beside_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own handlers, not the descriptors: a service may come from elsewhere."""
    served: set[str] = set()
    add = grpc.aio._server.Server.add_generic_rpc_handlers

    def record(server: Any, handlers: Any) -> None:
        served.update(name.lstrip("/") for handler in handlers for name in handler._method_handlers)
        add(server, handlers)

    async def serve() -> None:
        engine = FakeEngine()
        await ApiServer(engine, JobService(engine, "1"), "127.0.0.1:0", reflect=True).stop(0)

    monkeypatch.setattr(grpc.aio._server.Server, "add_generic_rpc_handlers", record)
    asyncio.run(serve())
    assert served == set(POLICY)
