"""The port answers, and health says how far it is, while jobs of an earlier process are gone on with."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from helpers.fake_engine import OBJECTIVE, PATIENCE_S, FakeEngine
from pahq.v1 import jobs_pb2 as pb
from pahq.v1 import jobs_pb2_grpc

from pahq_server.api import health as health_module
from pahq_server.api.health import Status
from pahq_server.api.server import ApiServer
from pahq_server.cli import main
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.jobs.service import JobPolicy, JobService
from pahq_server.jobs.spec import JobSpec
from pahq_server.methods.acdc.method import AcdcParameters
from pahq_server.store.database import Database
from pahq_server.store.jobs import SqliteJobStore

SPEC = JobSpec(OBJECTIVE, "acdc", AcdcParameters(threshold=2.0))


class Waiting(FakeEngine):
    """Prepares nothing before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def resolve(self, objective: Objective, activations: bool = True) -> ResolvedObjective:
        assert self.go.wait(PATIENCE_S), "the test forgot the engine"
        return super().resolve(objective)


def test_health_tells_when_all_jobs_are_taken_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = Database(tmp_path / "db")
    before = JobService(FakeEngine(), "1", JobPolicy(), store=SqliteJobStore(database))
    before.start()
    before.close()
    name = before.create(SPEC, "").name
    engine = Waiting()
    jobs = JobService(engine, "1", JobPolicy(), store=SqliteJobStore(database))
    asyncio.run(_ask(engine, jobs, name, capsys))
    jobs.close()
    database.close()


async def _ask(engine: Waiting, jobs: JobService, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    api = ApiServer(engine, jobs, "127.0.0.1:0")
    jobs.start(wait=False)
    await api.start()
    address = f"127.0.0.1:{api.port}"
    async with grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service, status in (("", Status.SERVING), (health_module.RESUMED, Status.NOT_SERVING)):
            request = health_pb2.HealthCheckRequest(service=service)
            assert (await health.Check(request, timeout=PATIENCE_S)).status == status
        assert await asyncio.to_thread(main, ["health", "--address", address]) == 0
        assert await asyncio.to_thread(main, ["health", "--address", address, "--resumed"]) == 1
        assert capsys.readouterr().out.split() == ["SERVING", "NOT_SERVING"]
        watching = health.Watch(health_pb2.HealthCheckRequest(service=health_module.RESUMED))
        assert (await watching.read()).status == Status.NOT_SERVING
        stub = jobs_pb2_grpc.JobServiceStub(channel)
        found = await stub.GetJob(pb.GetJobRequest(name=name), timeout=PATIENCE_S)
        assert found.job.state == pb.JOB_STATE_QUEUED
        events = stub.WatchJob(pb.WatchJobRequest(name=name), timeout=PATIENCE_S)
        engine.go.set()
        assert await asyncio.to_thread(jobs.wait_resumed)
        await api.tell_resumed()
        assert (await watching.read()).status == Status.SERVING
        assert [message.event async for message in events][-1].kind == pb.EVENT_KIND_END
        assert await asyncio.to_thread(main, ["health", "--address", address, "--resumed"]) == 0
    await api.stop(0)
