"""ModelService and ServerService."""

from __future__ import annotations

from typing import Any

from pahq import __version__
from pahq.v1 import model_pb2, model_pb2_grpc, server_pb2, server_pb2_grpc

from pahq_server.api import responses
from pahq_server.core.engine import Engine
from pahq_server.core.errors import NotFoundError
from pahq_server.jobs.spec import METHODS


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """Tells which models an engine serves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Any
    ) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=map(responses.model, self._engine.models()))

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        for info in self._engine.models():
            if info.name == request.name:
                return model_pb2.GetModelResponse(model=responses.model(info))
        raise NotFoundError(f"model {request.name!r}")


class ServerService(server_pb2_grpc.ServerServiceServicer):
    """Tells what the server is and can do.

    Args:
        engine: describes itself.
        max_message_bytes: of a request.
        limits: of each user.
    """

    def __init__(self, engine: Engine, max_message_bytes: int, limits: server_pb2.Limits) -> None:
        self._engine, self._max_message_bytes, self._limits = engine, max_message_bytes, limits

    async def GetServerInfo(
        self, request: server_pb2.GetServerInfoRequest, context: Any
    ) -> server_pb2.GetServerInfoResponse:
        can = self._engine.capabilities()
        info = server_pb2.ServerInfo(
            version=__version__,
            device=can.device,
            methods=METHODS,
            metrics=can.metrics,
            ablations=can.ablations,
            precisions=can.precisions,
            tasks=can.tasks,
            max_message_bytes=self._max_message_bytes,
            memory=responses.memory(self._engine.memory_usage()),
            limits=self._limits,
        )
        return server_pb2.GetServerInfoResponse(server_info=info)
