"""Models, the server, its health, and reflection."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from helpers.api_server import RunningServer, every_call
from helpers.fake_engine import FakeEngine
from pahq import __version__
from pahq.v1 import model_pb2, server_pb2

from pahq_server.access.access import Access
from pahq_server.access.limits import CallLimits
from pahq_server.api.server import MAX_MESSAGE_BYTES, SERVICES, ApiServer
from pahq_server.core.engine import WorkerState, WorkerStatus
from pahq_server.jobs.quotas import Quotas
from pahq_server.jobs.service import JobService


def test_models_are_listed_by_name(server: RunningServer) -> None:
    models = server.models.ListModels(model_pb2.ListModelsRequest()).models
    assert [model.name for model in models] == ["bad", "toy"]


def test_a_model(server: RunningServer, engine: FakeEngine) -> None:
    model = server.models.GetModel(model_pb2.GetModelRequest(name="toy")).model
    edges = engine.graph.num_edges
    assert model == model_pb2.Model(
        name="toy",
        architecture="fake",
        revision="c0ffee",
        layers=2,
        heads=2,
        kv_heads=2,
        d_model=8,
        vocabulary=100,
        context=10,
        parameters=1234,
        tokenizer=False,
        edges_group=edges,
        edges_query=edges,
    )


def test_the_server_tells_what_it_can(server: RunningServer) -> None:
    info = server.server.GetServerInfo(server_pb2.GetServerInfoRequest()).server_info
    assert info == server_pb2.ServerInfo(
        version=__version__,
        device="abacus",
        methods=[
            *("ablate_concepts", "acdc", "assign_concepts", "clean_corrupted", "concepts", "continuations"),
            *("eap", "eap_ig", "generate"),
            *("gim", "neurons", "node_pruning", "relp", "single_edge"),
        ],
        metrics=["kl_divergence", "l2"],
        ablations=["resample", "zero"],
        precisions=["fp32"],
        tasks=["ioi"],
        max_message_bytes=MAX_MESSAGE_BYTES,
        memory=server_pb2.MemoryUsage(
            page_bytes=16,
            pages=70,
            used_pages=60,
            shared_pages=50,
            peak_used_pages=65,
            scratch_bytes=400,
            preemptions=3,
            head_store_hits=11,
            head_store_misses=2,
            head_store_bytes_moved=4096,
        ),
        limits=server_pb2.Limits(
            requests_per_second=500, burst=1000, concurrent_calls=128, concurrent_streams=256
        ),
        generation="transformers",
        workers=[
            server_pb2.Worker(
                number=0,
                host="attic",
                device="abacus",
                hardware={"beads": "100"},
                state=server_pb2.WORKER_STATE_READY,
                batches=7,
            )
        ],
    )


def test_workers_that_do_not_compute_are_listed_with_the_reason(
    server: RunningServer, engine: FakeEngine
) -> None:
    engine.worker_list = [
        WorkerStatus(0, WorkerState.STARTING),
        WorkerStatus(1, WorkerState.LOST, "attic", "abacus", reason="its process ended", restarts=2),
        WorkerStatus(2, WorkerState.REFUSED, reason="it has another torch"),
    ]
    engine.why_unavailable = "no worker is left"
    info = server.server.GetServerInfo(server_pb2.GetServerInfoRequest()).server_info
    assert info.unavailable == "no worker is left"
    assert list(info.workers) == [
        server_pb2.Worker(number=0, state=server_pb2.WORKER_STATE_STARTING),
        server_pb2.Worker(
            number=1,
            host="attic",
            device="abacus",
            state=server_pb2.WORKER_STATE_LOST,
            reason="its process ended",
            restarts=2,
        ),
        server_pb2.Worker(number=2, state=server_pb2.WORKER_STATE_REFUSED, reason="it has another torch"),
    ]


def test_the_server_tells_what_a_user_may_have(engine: FakeEngine) -> None:
    quotas = Quotas(running_jobs=1, queued_jobs=0, prompt_tokens=1 << 40, stored_results=4)
    access = Access(limits=CallLimits(rate=0.5, burst=1, user_calls=2, user_streams=3))
    with RunningServer(engine, api={"access": access}, quotas=quotas) as server:
        info = server.server.GetServerInfo(server_pb2.GetServerInfoRequest()).server_info
    assert info.limits == server_pb2.Limits(
        running_jobs=1,
        queued_jobs=0,
        prompt_tokens=1 << 40,
        stored_results=4,
        requests_per_second=0.5,
        burst=1,
        concurrent_calls=2,
        concurrent_streams=3,
    )


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health(service: str, server: RunningServer) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    response = stub.Check(health_pb2.HealthCheckRequest(service=service))
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_something_else(server: RunningServer) -> None:
    stub = health_pb2_grpc.HealthStub(server.channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="pahq.v1.Nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_reflection_lists_the_services(server: RunningServer) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (response,) = stub.ServerReflectionInfo(iter([request]))
    names = {service.name for service in response.list_services_response.service}
    assert names >= {"pahq.v1.JobService", "pahq.v1.ModelService", "pahq.v1.ServerService"}


def test_every_method_of_the_protos_is_served(server: RunningServer) -> None:
    """An empty request is answered or refused, but not with UNIMPLEMENTED."""
    for name, (call, request) in every_call(server.channel).items():
        try:
            call(request)
        except grpc.RpcError as error:
            assert error.code() in (  # type: ignore[attr-defined]  # noqa: PT017
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
            ), name


def test_a_port_that_is_taken(server: RunningServer, engine: FakeEngine) -> None:
    async def second() -> None:
        ApiServer(engine, JobService(engine, "1"), f"127.0.0.1:{server.port}")

    with pytest.raises(RuntimeError, match=str(server.port)):
        asyncio.run(second())
