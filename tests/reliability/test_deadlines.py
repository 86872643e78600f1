"""Calls whose time is up before they are done, and jobs that are cancelled as soon as they are created."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import grpc
import pytest
from helpers.api_server import RunningServer
from helpers.api_server import evaluation as toy_evaluation
from helpers.api_server import node_evaluation as toy_node_evaluation
from helpers.api_server import objective as toy_measurement
from helpers.api_server import spec as toy_spec
from helpers.fake_engine import FakeEngine
from pahq.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    jobs_pb2_grpc,
    methods_pb2,
    model_pb2,
    model_pb2_grpc,
    patching_pb2,
    patching_pb2_grpc,
    task_pb2,
)
from pahq.v1 import jobs_pb2 as pb

from pahq_server.jobs.session_calls import SessionLimits

from .conftest import Figures
from .secured import SecuredServer, evaluation, node_evaluation, objective, spec, wait_until

Code = grpc.StatusCode
SHORT, FULL = (200, 100), (5_000, 2_000)  # calls that are too late, jobs that are cancelled
AT_ONCE = 50
PROMPT = task_pb2.Prompt(token_ids=task_pb2.TokenIds(ids=range(1, 21)))
GENERATE = generation_pb2.GenerateSamplesRequest(
    model="demo", prompts=[PROMPT], parameters=methods_pb2.GenerateParameters(n=20, max_tokens=20)
)


def _all_of(method: Any) -> Any:
    """Makes a call that reads a stream to its end."""

    async def call(request: Any, **options: Any) -> list[Any]:
        return [message async for message in method(request, **options)]

    return call


def test_no_work_is_started_for_calls_whose_time_is_up(figures: Figures) -> None:
    """While the engine is busy, calls come and expire; when it has time again, it never hears of them."""
    engine, calls = FakeEngine(), 60
    engine.answers = {"answers": (4,), "wrong_answers": (5,)}
    with RunningServer(engine, SessionLimits(sessions=calls)) as server:
        engine.hold()
        busy = server.create(toy_spec())
        engine.wait_for_call()
        opened = len(engine.opened)
        evaluate = toy_evaluation([])
        nodes = toy_node_evaluation()
        session = patching_pb2.OpenSessionRequest(objective=toy_measurement())
        task = toy_measurement().task
        predict = model_pb2.PredictTokensRequest(model="toy", prompts=task.prompts.clean)
        check = model_pb2.CheckTaskRequest(model="toy", task=task)
        asked = [
            method.future(request, timeout=0.05)
            for _ in range(calls // 5)
            for method, request in (
                (server.patching.EvaluateCircuits, evaluate),
                (server.patching.EvaluateNodes, nodes),
                (server.patching.OpenSession, session),
                (server.models.PredictTokens, predict),
                (server.models.CheckTask, check),
            )
        ]
        assert {call.code() for call in asked} == {Code.DEADLINE_EXCEEDED}
        # The server hears of it a moment later than the client.
        server.job_stub.GetJob(pb.GetJobRequest(name=busy.name))
        engine.release()
        server.events(busy.name)
        server.assert_alive()
        started = len(engine.opened) - opened
        assert started == 1  # the job of `assert_alive`
    figures(expired=calls, started=started - 1)


class Storm:
    """Many calls at a time to the demo model, as ada.

    Args:
        server: to call.
    """

    def __init__(self, server: SecuredServer) -> None:
        self._server = server
        self._metadata = (("authorization", f"Bearer {server.tokens['ada']}"),)
        self.codes: Counter[str] = Counter()

    async def run(self, late: int, cancelled: int, seed: int) -> None:
        chance, gate = random.Random(seed), asyncio.Semaphore(AT_ONCE)
        async with grpc.aio.secure_channel(
            self._server.process.address, self._server.credentials()
        ) as channel:
            jobs = jobs_pb2_grpc.JobServiceStub(channel)
            patching = patching_pb2_grpc.PatchingServiceStub(channel)
            generations = generation_pb2_grpc.GenerationServiceStub(channel)
            models, task = model_pb2_grpc.ModelServiceStub(channel), objective().task
            kinds = (
                (patching.EvaluateCircuits, evaluation()),
                (patching.EvaluateNodes, node_evaluation()),
                (models.PredictTokens, model_pb2.PredictTokensRequest(model="demo", prompts=[PROMPT] * 20)),
                (models.CheckTask, model_pb2.CheckTaskRequest(model="demo", task=task)),
                (_all_of(generations.GenerateSamples), GENERATE),
                (jobs.CreateJob, pb.CreateJobRequest(spec=spec())),
                (patching.OpenSession, patching_pb2.OpenSessionRequest(objective=objective())),
            )
            storms = [
                self._late(gate, *kinds[i % len(kinds)], chance.uniform(0.001, 0.05)) for i in range(late)
            ]
            storms += [self._cancelled(gate, jobs) for _ in range(cancelled)]
            chance.shuffle(storms)
            await asyncio.gather(*storms)

    async def _late(self, gate: asyncio.Semaphore, method: Any, request: Any, patience: float) -> None:
        async with gate:
            try:
                answer = await method(request, metadata=self._metadata, timeout=patience)
            except grpc.aio.AioRpcError as error:
                self.codes[error.code().name] += 1
            else:
                self.codes["OK"] += 1
                if isinstance(answer, patching_pb2.OpenSessionResponse):
                    await self._close(answer.session.name)

    async def _close(self, session: str) -> None:
        async with grpc.aio.secure_channel(
            self._server.process.address, self._server.credentials()
        ) as channel:
            close = patching_pb2_grpc.PatchingServiceStub(channel).CloseSession
            await close(patching_pb2.CloseSessionRequest(name=session), metadata=self._metadata)

    async def _cancelled(self, gate: asyncio.Semaphore, stub: Any) -> None:
        async with gate:
            created = await stub.CreateJob(
                pb.CreateJobRequest(spec=spec()), metadata=self._metadata, timeout=60
            )
            name = created.job.name
            cancel = pb.CancelJobRequest(name=name)
            await stub.CancelJob(cancel, metadata=self._metadata, timeout=60)
            self.codes["cancelled"] += 1


def storm(server: SecuredServer, late: int, cancelled: int, figures: Figures) -> float:
    """Seconds until the server was as before."""
    with server.as_user("ada") as ada:
        ada.cancel_all()
        server.assert_alive()  # and has what it keeps for the next job of this kind
        before = ada.info().memory.used_pages
        weather = Storm(server)
        asyncio.run(weather.run(late, cancelled, seed=1))
        begin = time.monotonic()
        # Creates that were answered in time made jobs that go on.
        ada.cancel_all()
        wait_until(lambda: ada.info().memory.used_pages <= before, "pages to be given back")
        taken = time.monotonic() - begin
        states = {job.state for job in ada.jobs()}
    assert states <= {pb.JOB_STATE_CANCELLED, pb.JOB_STATE_SUCCEEDED}
    assert set(weather.codes) <= {"OK", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED", "cancelled"}
    assert weather.codes["DEADLINE_EXCEEDED"] > late / 10
    assert weather.codes["cancelled"] == cancelled
    assert "a call failed" not in server.process.log()
    server.assert_alive()
    figures(
        late=late,
        cancelled=cancelled,
        pages_before=before,
        seconds=round(taken, 2),
        codes=dict(weather.codes),
    )
    return taken


def test_a_storm_leaves_nothing_behind(secured: SecuredServer, figures: Figures) -> None:
    storm(secured, *SHORT, figures)


@pytest.mark.long
def test_a_great_storm_leaves_nothing_behind(secured: SecuredServer, figures: Figures) -> None:
    assert storm(secured, *FULL, figures) <= 2.0
